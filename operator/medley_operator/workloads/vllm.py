"""vLLM: how its OpenAI server is started for one variant.

Written for vLLM 0.18 and newer: that release added `--shutdown-timeout`.
Sources: vLLM's argument parser, its image's Dockerfile and non-root entry point, at the pinned release.
"""

from __future__ import annotations

from medley_operator.workloads.arguments import Argument
from medley_operator.workloads.engine import EngineRuntime, Launch, lacks_bf16
from medley_planner.capacities.memory import MEMORY_SHARE

IMAGE = "vllm/vllm-openai:v0.33.0"
IMAGE_AMD = "vllm/vllm-openai-rocm:v0.33.0"

USER_ID = 2000
"""The image's user `vllm`. The image starts as root by default, but is made to run as this user."""

HOME = "/home/vllm"


def runtime(launch: Launch) -> EngineRuntime:
    """How vLLM runs for one variant."""
    return EngineRuntime(
        image=IMAGE_AMD if launch.is_amd else IMAGE,
        arguments=arguments(launch),
        # A user id without an entry in an older image's passwd file makes PyTorch fail unless the name is in the
        # environment.
        environment={} if launch.is_amd else {"HOME": HOME, "USER": "vllm", "LOGNAME": "vllm"},
        # AMD's devices belong to groups whose ids differ between hosts; only the image's root user always reaches them.
        user_id=None if launch.is_amd else USER_ID,
        home="" if launch.is_amd else HOME,
    )


def arguments(launch: Launch) -> tuple[Argument, ...]:
    """Medley's arguments of `vllm serve`, in order.

    The model comes first, by its position: `--model` is deprecated there.
    """
    made: list[Argument] = [
        (launch.model,),
        ("--served-model-name", launch.served_name),
        ("--port", str(launch.port)),
        *_parallelism(launch),
        ("--max-model-len", str(launch.context_tokens)),
        # Given, because vLLM's own default moved from 0.90 to 0.92 between releases, and plans count with this one.
        ("--gpu-memory-utilization", f"{MEMORY_SHARE:.2f}"),
        ("--shutdown-timeout", str(launch.drain_timeout_s)),
    ]
    if launch.revision is not None:
        made.append(("--revision", launch.revision))
    if lacks_bf16(launch.gpu_type):
        made.append(("--dtype", "half"))
    if launch.architecture.key_value_data_type == "fp8":
        made.append(("--kv-cache-dtype", "fp8"))
    return tuple(made)


def _parallelism(launch: Launch) -> list[Argument]:
    """How the GPUs share the work; data parallel ranks share the experts, or without any are whole copies."""
    parallelism = launch.parallelism
    made: list[Argument] = [("--tensor-parallel-size", str(parallelism.tensor))]
    if parallelism.pipeline > 1:
        made.append(("--pipeline-parallel-size", str(parallelism.pipeline)))
    if parallelism.data > 1:
        made.append(("--data-parallel-size", str(parallelism.data)))
        if launch.architecture.experts is not None:
            made.append(("--enable-expert-parallel",))
    return made
