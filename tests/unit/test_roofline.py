"""The roofline against a second, plain implementation of docs/formulation-capacity.md and against figures of others."""

import itertools
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from medley_planner.capacities.roofline import sustained_rates
from medley_planner.catalogue.gpus import GPUType, gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.catalogue.models import ModelArchitecture
from medley_planner.fleet import Objectives, Parallelism

REPOSITORY = Path(__file__).parents[2]

LLAMA_2_7B = known_models()["meta-llama/Llama-2-7b-hf"]
LLAMA_3_1_8B = known_models()["meta-llama/Llama-3.1-8B-Instruct"]
QWEN3_32B = known_models()["Qwen/Qwen3-32B"]
QWEN3_30B_A3B = known_models()["Qwen/Qwen3-30B-A3B"]


def rate(model: ModelArchitecture, gpu: str, parallel: int, size: tuple[int, int], objectives: Objectives) -> float:
    return float(
        sustained_rates(model, gpu_type(gpu), Parallelism(parallel), [size], objectives).requests_per_second[0]
    )


def step_s(model, gpu, p, batch, context, chunk, prompt):
    """Time of one step, by the page's formulae, for numbers rather than arrays."""
    tokens = batch + chunk
    flops = gpu.dense_flops_16bit
    if model.weight_bytes_per_parameter == 1 and gpu.dense_flops_8bit:
        flops = gpu.dense_flops_8bit
    width = model.weight_bytes_per_parameter
    bandwidth = gpu.memory_bandwidth_bytes_per_s
    expert, shared = 0.0, float(model.parameters)
    if model.experts:
        expert = (model.parameters - model.active_parameters) / (model.experts - model.active_experts)
        shared = model.parameters - model.experts * expert
    seconds = 1e-3 + (35e-6 if model.experts else 15e-6) * model.layers
    shared -= model.lookup_parameters
    seconds += max(shared / p * width / (0.75 * bandwidth), 2 * shared / p * tokens / (0.60 * flops))
    if model.experts:
        touched = model.experts * (1 - (1 - model.active_experts / model.experts) ** tokens)
        read_s = expert * touched / p * width / (0.75 * bandwidth)
        compute_s = 2 * expert * model.active_experts / p * tokens / (0.60 * flops)
        seconds += max(read_s, compute_s) / 0.80
    heads_per_gpu = math.ceil(model.key_value_heads / p)
    cached = 2 * model.layers * heads_per_gpu * model.head_size * model.key_value_bytes_per_element
    seconds += batch * context * cached / (0.60 * bandwidth)
    attention = 4 * model.layers * model.attention_heads * model.head_size / p * chunk * prompt / 2
    seconds += attention / (0.40 * gpu.dense_flops_16bit)
    if p > 1:
        sent = 2 * (p - 1) / p * tokens * model.hidden_size * 2
        seconds += 2 * model.layers * (15e-6 + sent / (0.5 * gpu.link_bandwidth_bytes_per_s))
    return seconds


def operating_point(model, gpu, p, size, rho):
    """Rate, mean step and mean time to first token at ρ; None where the engine's limits forbid it."""
    inputs, outputs = size
    decoded = outputs - 1
    heads_per_gpu = math.ceil(model.key_value_heads / p)
    cached = 2 * model.layers * heads_per_gpu * model.head_size * model.key_value_bytes_per_element
    room_bytes = 0.9 * gpu.memory_bytes - model.parameters * model.weight_bytes_per_parameter / p - 2**30
    running = rho * decoded
    if running > 256 or running * (inputs + outputs / 2) > room_bytes / cached or rho * (inputs + decoded) > 2048:
        return None
    batch = max(1.0, running) if decoded else 0.0
    chunk = max(min(inputs, 2048 - batch), rho * inputs)
    share = rho * inputs / chunk
    context = inputs + outputs / 2
    mixed = step_s(model, gpu, p, batch, context, chunk, inputs)
    plain = step_s(model, gpu, p, batch, context, 0, inputs) if decoded else 0.0
    mean = (1 - share) * plain + share * mixed
    return rho / mean, mean, mean / 2 + max(1, inputs / chunk) * mixed


def reference_rate(model, gpu, p, size, objectives):
    per_token_s = objectives.time_per_output_token_s or math.inf
    first_token_s = objectives.time_to_first_token_s or math.inf
    best = 0.0
    for exponent in range(-5000, 2200):
        point = operating_point(model, gpu, p, size, 1.005**exponent)
        if point is None or (point[1] > per_token_s and size[1] > 1) or point[2] > first_token_s:
            break
        best = max(best, point[0])
    return best


@pytest.mark.parametrize("seed", range(40))
def test_rates_are_those_of_the_formulation(seed):
    rng = random.Random(seed)
    model = rng.choice([LLAMA_2_7B, LLAMA_3_1_8B, QWEN3_32B, QWEN3_30B_A3B])
    model = replace(model, weight_bytes_per_parameter=rng.choice([2.0, 1.0, 0.53]))
    gpu = gpu_type(rng.choice(["A100-80GB", "H100-80GB", "H200", "MI300X", "A100-80GB-PCIe"]))
    parallel = rng.choice([1, 2, 4, 8])
    size = (round(math.exp(rng.uniform(0, 9.5))), round(math.exp(rng.uniform(0, 7))))
    objectives = Objectives(
        time_per_output_token_s=rng.choice([None, rng.uniform(0.005, 0.1)]),
        time_to_first_token_s=rng.choice([None, rng.uniform(0.02, 3)]),
    )
    expected = reference_rate(model, gpu, parallel, size, objectives)

    found = float(sustained_rates(model, gpu, Parallelism(parallel), [size], objectives).requests_per_second[0])

    assert found == pytest.approx(expected, rel=0.01)


def test_sizes_are_judged_apart_from_each_other():
    sizes = [(100, 100), (4000, 20), (10, 1), (1, 900)]
    objectives = Objectives(0.04, 0.5)

    together = sustained_rates(LLAMA_3_1_8B, gpu_type("A100-80GB"), Parallelism(1), sizes, objectives)

    for size, found in zip(sizes, together.requests_per_second.tolist(), strict=True):
        assert found == pytest.approx(rate(LLAMA_3_1_8B, "A100-80GB", 1, size, objectives), rel=1e-12)


def test_an_idle_replica_reads_its_weights_once_a_token():
    gpu = GPUType.of("Round", memory_gib=100, memory_bandwidth_gb_per_s=1000, teraflops=500)

    idle = sustained_rates(LLAMA_3_1_8B, gpu, Parallelism(1), [(1, 100)], Objectives()).idle[0]

    weights_s = 2 * (8_030_261_248 - 128_256 * 4096) / (0.75 * 1e12)
    overhead_s = 1e-3 + 32 * 15e-6
    assert idle.time_per_output_token_s == pytest.approx(weights_s + overhead_s, rel=1e-3)


def test_a_prompt_alone_takes_its_arithmetic():
    gpu = GPUType.of("Round", memory_gib=100, memory_bandwidth_gb_per_s=1000, teraflops=500)

    found = float(sustained_rates(LLAMA_3_1_8B, gpu, Parallelism(1), [(2048, 1)], Objectives()).requests_per_second[0])

    products_s = 2 * (8_030_261_248 - 128_256 * 4096) * 2048 / (0.60 * 500e12)
    attention_s = 2 * 32 * 32 * 128 * 2048**2 / (0.40 * 500e12)
    assert 1 / found == pytest.approx(products_s + attention_s + 1e-3 + 32 * 15e-6, rel=1e-6)


def test_an_objective_that_an_idle_replica_misses_leaves_no_rate():
    found = sustained_rates(
        LLAMA_3_1_8B, gpu_type("L4"), Parallelism(1), [(1000, 100)], Objectives(time_per_output_token_s=0.05)
    )

    assert found.requests_per_second.tolist() == [0.0]
    assert found.idle[0].time_per_output_token_s > 0.05


def test_requests_of_one_output_token_have_no_time_per_output_token():
    found = sustained_rates(
        LLAMA_3_1_8B, gpu_type("L4"), Parallelism(1), [(1000, 1)], Objectives(time_per_output_token_s=1e-6)
    )

    assert found.requests_per_second[0] > 1
    assert found.idle[0].time_per_output_token_s == 0


def test_fp8_weights_help_more_where_the_gpu_computes_with_them():
    eight_bit = replace(LLAMA_3_1_8B, weight_bytes_per_parameter=1.0)
    gain = {
        gpu: rate(eight_bit, gpu, 1, (2000, 50), Objectives()) / rate(LLAMA_3_1_8B, gpu, 1, (2000, 50), Objectives())
        for gpu in ("A100-80GB", "H100-80GB")
    }

    assert gain["H100-80GB"] > 1.5 > gain["A100-80GB"] > 1


def test_more_gpus_serve_more_but_not_in_proportion():
    rates = [rate(QWEN3_32B, "H100-80GB", parallel, (1000, 200), Objectives(0.06)) for parallel in (2, 4, 8)]

    for fewer, more in itertools.pairwise(rates):
        assert fewer < more < 2.2 * fewer


# Requests per second at 2048 input and 512 output tokens within TTFT 2 s and TPOT 60 ms, by aiconfigurator 0.12.
OTHERS_ESTIMATES = {
    ("meta-llama/Llama-3.1-8B-Instruct", 1): {"H200": 10.99, "H100-80GB": 8.89, "A100-80GB": 3.41, "L40S": 1.58},
    ("Qwen/Qwen3-32B", 2): {"H200": 5.47, "H100-80GB": 4.45, "A100-80GB": 1.38, "L40S": 0.26},
    ("Qwen/Qwen3-30B-A3B", 2): {"H200": 21.2, "H100-80GB": 15.6, "A100-80GB": 5.31, "L40S": 1.65},
}


@pytest.mark.parametrize(("name", "parallel"), sorted(OTHERS_ESTIMATES))
def test_estimates_rank_gpus_as_another_model_does_and_are_of_its_size(name, parallel):
    theirs = OTHERS_ESTIMATES[name, parallel]
    ours = {gpu: rate(known_models()[name], gpu, parallel, (2048, 512), Objectives(0.06, 2.0)) for gpu in theirs}

    assert sorted(ours, key=ours.__getitem__) == sorted(theirs, key=theirs.__getitem__)
    for gpu in ("H200", "H100-80GB", "A100-80GB"):
        assert 0.7 < ours[gpu] / theirs[gpu] < 1.3, gpu
    assert 0.4 < ours["L40S"] / theirs["L40S"] < 1.3


def test_the_ratios_between_gpus_of_melange_table_3_are_of_the_right_size():
    # GPUs for 32 requests/s of Arena (329 input and 196 output tokens on average) within a TPOT of 120 ms.
    counts = {"H100-80GB": 8, "A100-80GB-PCIe": 9, "A10G": 39, "L4": 65}
    ours = {gpu: rate(LLAMA_2_7B, gpu, 1, (329, 196), Objectives(0.12)) for gpu in counts}

    assert sorted(ours, key=ours.__getitem__) == sorted(counts, key=counts.__getitem__, reverse=True)
    for gpu in ("A10G", "L4"):
        theirs = counts[gpu] / counts["A100-80GB-PCIe"]
        assert 0.7 < ours["A100-80GB-PCIe"] / ours[gpu] / theirs < 1.5, gpu


def test_the_page_with_the_estimates_of_others_is_up_to_date():
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "capacity.py"), "--check"]
    environment = {"PYTHONPATH": str(REPOSITORY / "planner")}

    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert (done.returncode, done.stderr) == (0, "")
