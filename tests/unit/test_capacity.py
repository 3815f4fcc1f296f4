import time
from dataclasses import replace

import pytest

from medley_planner.capacities.capacity import Capacity, capacities, capacity
from medley_planner.capacities.memory import ReplicaMemory
from medley_planner.catalogue.gpus import GPUType, catalogue, gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.catalogue.models import ThroughputPoint
from medley_planner.fleet import Objectives, Parallelism
from medley_planner.workload.presets import preset

LLAMA_2_7B = known_models()["meta-llama/Llama-2-7b-hf"]
LLAMA_3_1_8B = known_models()["meta-llama/Llama-3.1-8B-Instruct"]
LLAMA_3_1_70B = known_models()["meta-llama/Llama-3.1-70B-Instruct"]
QWEN3_30B_A3B = known_models()["Qwen/Qwen3-30B-A3B"]


def find(model=LLAMA_3_1_8B, gpu="A100-80GB", parallel=1, size=(1000, 200), context=8192, **others) -> Capacity:
    arguments = {"measurements": (), "engine": "vllm", "objectives": Objectives(0.1, 2.0)} | others
    return capacity(
        model=model,
        gpu=gpu_type(gpu) if isinstance(gpu, str) else gpu,
        parallelism=Parallelism(parallel),
        input_tokens=size[0],
        output_tokens=size[1],
        max_context_tokens=context,
        **arguments,
    )


def test_a_gpu_that_holds_the_model_has_a_rate_by_the_roofline():
    found = find()

    assert found.requests_per_second > 1
    assert (found.reason, found.detail, found.source) == ("", "", "roofline")


def test_weights_that_do_not_fit_are_refused_with_figures():
    assert find(LLAMA_3_1_70B, "A100-80GB") == Capacity(
        0.0,
        "MemoryTooSmall",
        "1×A100-80GB can use 72.00 GiB; weights take 131.42 GiB, working memory 1.00 GiB, "
        "the cache of one request of 8192 tokens 2.50 GiB",
        "roofline",
    )


def test_more_gpus_hold_what_one_cannot():
    assert find(LLAMA_3_1_70B, "A100-80GB", 2).reason == ""


def test_a_context_that_does_not_fit_is_refused_and_the_longest_that_would_is_named():
    found = find(gpu="L4", context=None)

    assert found.reason == "MemoryTooSmall"
    assert found.detail == (
        "1×L4 can use 20.24 GiB; weights take 14.96 GiB, working memory 1.00 GiB, "
        "the cache of one request of 131072 tokens 16.00 GiB; a context of at most 35120 tokens would fit"
    )
    assert find(gpu="L4", context=35120).reason == ""
    assert find(gpu="L4", context=35121).reason == "MemoryTooSmall"


def test_heads_that_more_gpus_share_are_kept_by_each():
    per_token = [
        ReplicaMemory.of(QWEN3_30B_A3B, gpu_type("L4"), Parallelism(gpus)).key_value_bytes_per_token
        for gpus in (1, 2, 4, 8)
    ]

    assert [per_token[0] / each for each in per_token] == [1, 2, 4, 4]


@pytest.mark.parametrize(("size", "context"), [((8000, 193), 8192), ((131072, 1), None), ((131072, 1), 10**6)])
def test_requests_longer_than_the_context_are_refused(size, context):
    found = find(gpu="H200", size=size, context=context)

    limit = min(context or 131072, 131072)
    assert found.reason == "ContextTooLong"
    assert found.detail == (
        f"requests of {size[0]} input and {size[1]} output tokens exceed the context of {limit} tokens"
    )
    assert find(gpu="H200", size=(size[0] - 1, size[1]), context=context, objectives=Objectives()).reason == ""


@pytest.mark.parametrize(
    ("objectives", "detail"),
    [
        (
            Objectives(time_per_output_token_s=0.02),
            "time per output token is 69 ms for 1000 input and 200 output tokens on an idle replica, by estimate; "
            "the objective is 20 ms",
        ),
        (
            Objectives(time_to_first_token_s=0.1),
            "time to first token is 249 ms for 1000 input and 200 output tokens on an idle replica, by estimate; "
            "the objective is 100 ms",
        ),
    ],
)
def test_an_objective_out_of_reach_is_refused_with_figures(objectives, detail):
    found = find(gpu="L4", objectives=objectives)

    assert (found.requests_per_second, found.reason, found.detail) == (0.0, "ObjectiveNotMet", detail)


def test_heads_that_cannot_be_shared_out_are_refused():
    odd = replace(LLAMA_3_1_8B, attention_heads=40, key_value_heads=8)
    found = find(odd, "L4", 16)
    assert (found.reason, found.detail) == (
        "HeadsNotDivisible",
        "40 attention heads cannot be shared out over 16 GPUs",
    )

    few = replace(LLAMA_3_1_8B, attention_heads=24, key_value_heads=6)
    assert find(few, "L4", 4).detail == "6 key-value heads cannot be shared out over 4 GPUs"
    assert find(few, "L4", 2).reason == ""
    assert find(LLAMA_3_1_8B, "L4", 16).reason == ""


def measured(rate_rps: float, size=(1000, 200)) -> ThroughputPoint:
    return ThroughputPoint(
        gpu="A100-80GB",
        tensor_parallel=1,
        input_tokens=size[0],
        output_tokens=size[1],
        requests_per_second=rate_rps,
        time_per_output_token_s=0.05,
        time_to_first_token_s=0.3,
    )


def test_a_measurement_comes_before_any_estimate():
    found = find(measurements=(measured(3.25),))

    assert found == Capacity(3.25, "", "", "measured", concurrency=pytest.approx(3.25 * (0.3 + 199 * 0.05)))
    assert find(measurements=(measured(3.25),), gpu="H100-80GB").source == "roofline"
    assert find(measurements=(measured(3.25),), size=(2000, 200)).source == "measured, scaled"


def test_a_measurement_within_no_objective_is_refused():
    found = find(measurements=(measured(3.25),), objectives=Objectives(0.04))

    assert (found.requests_per_second, found.reason, found.source) == (0.0, "ObjectiveNotMet", "measured")
    assert "the lightest load measured" in found.detail


def test_memory_is_judged_before_measurements():
    small = GPUType.of("A100-80GB", memory_gib=10, memory_bandwidth_gb_per_s=2039, teraflops=312)

    assert find(gpu=small, measurements=(measured(3.25),)).reason == "MemoryTooSmall"


def test_many_sizes_at_once_are_as_one_by_one():
    sizes = [(1000, 200), (9000, 10), (1000, 200), (5, 5), (2000, 200)]
    for measurements in ((), (measured(3.25),)):
        together = capacities(
            model=LLAMA_3_1_8B,
            measurements=measurements,
            engine="vllm",
            gpu=gpu_type("A100-80GB"),
            parallelism=Parallelism(1),
            sizes=sizes,
            objectives=Objectives(0.1, 2.0),
            max_context_tokens=8192,
        )
        assert list(together) == [find(size=size, measurements=measurements) for size in sizes]


def test_no_sizes_give_no_capacities():
    assert (
        capacities(
            model=LLAMA_3_1_8B,
            measurements=(),
            engine="vllm",
            gpu=gpu_type("L4"),
            parallelism=Parallelism(1),
            sizes=(),
            objectives=Objectives(),
            max_context_tokens=8192,
        )
        == ()
    )


@pytest.mark.parametrize("gpu", sorted(catalogue()))
def test_every_gpu_of_the_catalogue_serves_a_7b_model_or_says_why_not(gpu):
    found = find(LLAMA_2_7B, gpu, size=(329, 196), context=2048, objectives=Objectives(0.12))

    assert (found.requests_per_second > 0) == (found.reason == "")
    assert found.reason in {"", "MemoryTooSmall"}


def test_a_hundred_sizes_on_24_variants_take_less_than_half_a_second():
    sizes = [
        (bucket.input_tokens, bucket.output_tokens) for bucket in preset("mooncake-conversation-2024").sizes.buckets
    ]
    assert len(sizes) == 100

    def capacities_of_all() -> float:
        start_s = time.process_time()
        for gpu in ("L4", "A10G", "A100-80GB", "H100-80GB", "H200", "B200"):
            for parallel in (1, 2, 4, 8):
                capacities(
                    model=QWEN3_30B_A3B,
                    measurements=(),
                    engine="vllm",
                    gpu=gpu_type(gpu),
                    parallelism=Parallelism(parallel),
                    sizes=sizes,
                    objectives=Objectives(0.06, 5.0),
                    max_context_tokens=32768,
                )
        return time.process_time() - start_s

    assert min(capacities_of_all() for _ in range(3)) < 0.5
