"""Arguments of engines: Medley's own, the user's, and those that nobody but Medley may set."""

from __future__ import annotations

import pytest

from medley_operator.workloads import refused_arguments, reserved_arguments
from medley_operator.workloads.arguments import joined


@pytest.mark.parametrize(
    ("engine", "argument"),
    [
        ("vllm", "--tensor-parallel-size"),
        ("vllm", "--tensor-parallel-size=2"),
        ("vllm", "--tensor_parallel_size"),
        ("vllm", "--tensor-parallel"),
        ("vllm", "-tp"),
        ("vllm", "-tp=2"),
        ("vllm", "--pipeline-parallel-size=2"),
        ("vllm", "-dp"),
        ("vllm", "--port=80"),
        ("vllm", "--served-model-name"),
        ("vllm", "--model=other"),
        ("vllm", "--api-key"),
        ("sglang", "--tp"),
        ("sglang", "--tp-size"),
        ("sglang", "--tensor-parallel-size=2"),
        ("sglang", "--model"),
        ("sglang", "--context-length"),
        ("sglang", "--pp-size"),
        ("sglang", "--dp-size"),
    ],
)
def test_reserved_arguments_are_refused_however_they_are_written(engine: str, argument: str) -> None:
    (refused,) = refused_arguments(engine, ["--seed", "1", argument])
    assert refused.index == 2
    assert refused.instead


@pytest.mark.parametrize(
    ("engine", "arguments"),
    [
        ("vllm", ["--enable-prefix-caching", "--max-num-seqs", "64", "--gpu-memory-utilization=0.95"]),
        ("vllm", ["--model-impl", "transformers"]),
        ("vllm", ["--data-parallel-size-local=1"]),
        ("vllm", ["--hf-overrides", '{"port": 1}']),
        ("vllm", ["--chat-template", "/port"]),
        ("vllm", ["--seed", "-1"]),
        ("sglang", ["--mem-fraction-static", "0.8", "--schedule-policy", "lpm"]),
        ("custom", ["--port", "80", "--model", "x"]),
    ],
)
def test_other_arguments_are_the_users(engine: str, arguments: list[str]) -> None:
    assert refused_arguments(engine, arguments) == ()


def test_what_to_do_instead_is_said_for_every_reserved_argument() -> None:
    assert reserved_arguments("vllm")["--port"] == "set engine.port"
    assert all(reserved_arguments(engine).values() for engine in ("vllm", "sglang"))
    assert reserved_arguments("custom") == {}


def test_the_users_arguments_come_last_and_replace_medleys() -> None:
    own = [("org/model",), ("--port", "8000"), ("--gpu-memory-utilization", "0.90"), ("--enable-metrics",)]
    assert joined(own, ["--seed", "3"]) == [
        "org/model",
        "--port",
        "8000",
        "--gpu-memory-utilization",
        "0.90",
        "--enable-metrics",
        "--seed",
        "3",
    ]
    assert joined(own, ["--gpu_memory_utilization=0.95"]) == [
        "org/model",
        "--port",
        "8000",
        "--enable-metrics",
        "--gpu_memory_utilization=0.95",
    ]
