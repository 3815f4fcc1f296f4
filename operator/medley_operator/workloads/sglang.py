"""SGLang: how its OpenAI server is started for one variant.

The share of memory (`--mem-fraction-static`) is left to SGLang: it works it out from the GPU's memory, the
parallelism, the chunk size, whether the model takes images, and (newer releases) what is free after CUDA graphs were
captured. A fixed share would switch all of that off. After SIGTERM, SGLang by itself answers 503 to health checks and
finishes what is in flight, within the pod's grace period.

Sources: SGLang's argument groups, memory rules, health endpoint and SIGTERM watchdog, at the pinned release.
"""

from __future__ import annotations

from medley_operator.workloads.arguments import Argument
from medley_operator.workloads.engine import EngineRuntime, Launch, lacks_bf16

IMAGE = "lmsysorg/sglang:v0.5.23"

HEALTH_TIMEOUT_S = 25
"""SGLang's `/health` generates a token where the server is idle, takes at least a second, and answers 503 only after
20."""


def runtime(launch: Launch) -> EngineRuntime:
    """How SGLang runs for one variant."""
    return EngineRuntime(
        image=IMAGE,
        command=("python3", "-m", "sglang.launch_server"),
        arguments=arguments(launch),
        health_timeout_s=HEALTH_TIMEOUT_S,
        # The image knows no other user than root, and kernels are compiled into root's home at the start.
        user_id=None,
    )


def arguments(launch: Launch) -> tuple[Argument, ...]:
    """Medley's arguments of `sglang.launch_server`, in order."""
    made: list[Argument] = [
        ("--model-path", launch.model),
        ("--served-model-name", launch.served_name),
        # SGLang's own default is 127.0.0.1, where no probe and no client reaches it.
        ("--host", "0.0.0.0"),  # noqa: S104
        ("--port", str(launch.port)),
        *_parallelism(launch),
        ("--context-length", str(launch.context_tokens)),
        ("--enable-metrics",),
    ]
    if launch.revision is not None:
        made.append(("--revision", launch.revision))
    if lacks_bf16(launch.gpu_type):
        made.append(("--dtype", "half"))
    if launch.architecture.key_value_data_type == "fp8":
        made.append(("--kv-cache-dtype", "fp8_e4m3"))
    return tuple(made)


def _parallelism(launch: Launch) -> list[Argument]:
    """How the GPUs share the work; SGLang's tensor parallel size counts the data parallel ranks that share experts.

    With experts, each rank attends to requests of its own, and the experts are spread over all of a stage's GPUs.
    Without, the ranks are whole copies, each of the tensor parallel size.
    """
    parallelism = launch.parallelism
    made: list[Argument] = []
    if parallelism.data > 1 and launch.architecture.experts is not None:
        together = str(parallelism.tensor * parallelism.data)
        made += [("--tp-size", together), ("--dp-size", str(parallelism.data)), ("--enable-dp-attention",)]
        made.append(("--ep-size", together))
    else:
        made.append(("--tp-size", str(parallelism.tensor)))
        if parallelism.data > 1:
            made.append(("--dp-size", str(parallelism.data)))
    if parallelism.pipeline > 1:
        made.append(("--pp-size", str(parallelism.pipeline)))
    return made
