"""Times of steps of parallel replicas, against figures worked out by hand from docs/formulation-capacity.md."""

from dataclasses import replace

import numpy as np
import pytest

from medley_planner.capacities.memory import ReplicaMemory
from medley_planner.capacities.roofline import sustained_rates
from medley_planner.capacities.steady_state import KEY_VALUE_TRANSFER_BYTES_PER_S, SteadyState
from medley_planner.capacities.step_budget import STEP_TOKENS, step_budget_tokens
from medley_planner.capacities.step_time import StepTime
from medley_planner.catalogue.gpus import GPUType
from medley_planner.catalogue.models import ModelArchitecture
from medley_planner.fleet import Objectives, Parallelism, Role

GPU = GPUType.of("Round", memory_gib=100, memory_bandwidth_gb_per_s=1000, teraflops=500)
GPU = replace(GPU, link_bandwidth_bytes_per_s=100e9)

DENSE = ModelArchitecture(
    parameters=8_000_000_000,
    layers=32,
    hidden_size=4096,
    attention_heads=32,
    key_value_heads=8,
    head_size=128,
    max_context_tokens=8192,
)
MIXTURE = replace(DENSE, parameters=34_000_000_000, active_parameters=4_000_000_000, experts=64, active_experts=4)
"""2 billion shared parameters, 32 billion in 64 experts of which each token takes 4."""


def step_s(model, parallelism, *, batch=0.0, context=0.0, chunk=0.0, prompt=0.0, gpu=GPU) -> float:
    figures = (np.array([float(value)]) for value in (batch, context, chunk, prompt))
    return float(StepTime(model, gpu, parallelism).step_s(*figures)[0])


def reads_s(parameters: float) -> float:
    return 2 * parameters / (0.75 * 1e12)


def test_a_pipeline_reads_all_weights_and_hands_activations_on():
    one = step_s(DENSE, Parallelism(1), batch=8, context=100)
    four = step_s(DENSE, Parallelism(1, 4), batch=8, context=100)

    sends_s = 3 * (15e-6 + 8 * 4096 * 2 / (0.5 * 100e9))
    assert four - one == pytest.approx(sends_s, rel=1e-6)


def test_stages_that_are_uneven_are_paced_by_the_fullest():
    """30 layers in 4 stages: two stages of 8, two of 7, and every stage takes as long as 8 layers."""
    thirty = replace(DENSE, layers=30)
    flat = step_s(thirty, Parallelism(1), batch=1, context=100) - 1e-3
    paced = step_s(thirty, Parallelism(1, 4), batch=1, context=100) - 1e-3 - 3 * (15e-6 + 4096 * 2 / (0.5 * 100e9))

    assert paced / flat == pytest.approx(32 / 30, rel=1e-6)


def test_a_pipeline_in_flight_serves_more_than_one_gpu_and_less_than_its_stages():
    objectives = Objectives(0.1, 2.0)
    rates = {
        stages: float(
            sustained_rates(DENSE, GPU, Parallelism(1, stages), [(1000, 200)], objectives).requests_per_second[0]
        )
        for stages in (1, 2, 4)
    }

    assert rates[1] < rates[2] < 2 * rates[1]
    assert rates[2] < rates[4] < 2 * rates[2]


def test_ranks_of_a_dense_model_are_whole_copies():
    objectives = Objectives(0.05, 1.0, 95, 95)
    one, two = (sustained_rates(DENSE, GPU, Parallelism(1, 1, ranks), [(1000, 200)], objectives) for ranks in (1, 2))

    assert two.requests_per_second[0] == pytest.approx(2 * one.requests_per_second[0])
    assert two.concurrency[0] == pytest.approx(2 * one.concurrency[0])
    assert two.idle == one.idle


def test_ranks_share_the_experts_and_repeat_the_rest():
    lone = ReplicaMemory.of(MIXTURE, GPU, Parallelism(1))
    four = ReplicaMemory.of(MIXTURE, GPU, Parallelism(1, 1, 4))
    tensor = ReplicaMemory.of(MIXTURE, GPU, Parallelism(4))

    assert lone.weight_bytes == pytest.approx(68e9)
    assert four.weight_bytes == pytest.approx(2 * (2e9 + 8e9))
    assert tensor.weight_bytes == pytest.approx(2 * (0.5e9 + 8e9))
    assert four.key_value_bytes_per_token == lone.key_value_bytes_per_token
    assert tensor.key_value_bytes_per_token == pytest.approx(lone.key_value_bytes_per_token / 4)


def test_ranks_read_their_part_of_the_experts_and_exchange_tokens():
    """One token on each of 4 ranks: 4 tokens touch 1 − (1 − 4/64)⁴ of the experts, a quarter of them on each GPU."""
    found = step_s(MIXTURE, Parallelism(1, 1, 4), batch=1, context=0)

    touched = 1 - (1 - 4 / 64) ** 4
    others = 3 * (1 - (3 / 4) ** 4)
    exchange_s = 2 * 32 * (15e-6 + others * 4096 * 2 / (0.5 * 100e9))
    expected = 1e-3 + 32 * 35e-6 + reads_s(2e9) + reads_s(8e9) * touched / 0.8 + exchange_s
    assert found == pytest.approx(expected, rel=1e-9)


def test_latent_attention_is_computed_where_reading_it_is_cheap():
    """128 heads share 576 cached values a token: 4 · 128 · 576 operations against 1,152 bytes of them."""
    latent = replace(DENSE, key_value_heads=1, attention_heads=128, latent_size=576)
    wide = replace(GPU, memory_bandwidth_bytes_per_s=2e12)
    with_cache, without = (step_s(latent, Parallelism(1), batch=10, context=context, gpu=wide) for context in (1000, 0))

    read_s = 10 * 1000 * 32 * 576 * 2 / (0.60 * 2e12)
    compute_s = 10 * 1000 * 32 * 4 * 128 * 576 / (0.40 * 500e12)
    assert with_cache - without == pytest.approx(max(read_s, compute_s), rel=1e-9)
    assert compute_s > read_s


def test_layers_with_a_window_read_no_more_than_the_window():
    windowed = replace(DENSE, window_layers=16, window_tokens=1000)
    longer = step_s(windowed, Parallelism(1), batch=4, context=5000) - step_s(
        windowed, Parallelism(1), batch=4, context=3000
    )

    per_token = 16 * 2 * 8 * 128 * 2
    assert longer == pytest.approx(4 * 2000 * per_token / (0.60 * 1e12), rel=1e-9)
    assert ReplicaMemory.of(windowed, GPU, Parallelism(1)).request_bytes(5000) == 5000 * per_token + 1000 * per_token


def test_constant_states_take_memory_and_time_by_request_not_by_token():
    states = replace(DENSE, constant_layers=24, state_bytes_per_request=60e6)
    memory = ReplicaMemory.of(states, GPU, Parallelism(1))

    assert memory.request_bytes(1000) == 60e6 + 1000 * 8 * 2 * 8 * 128 * 2
    twice = step_s(states, Parallelism(1), batch=2, context=1000) - step_s(
        states, Parallelism(1), batch=1, context=1000
    )
    assert twice == pytest.approx((60e6 + 1000 * 8 * 2 * 8 * 128 * 2) / (0.60 * 1e12), rel=1e-9)


def test_a_table_that_is_looked_up_is_neither_read_nor_computed():
    table = 500_000_000
    with_table = replace(DENSE, parameters=DENSE.parameters + table, lookup_parameters=table)

    assert step_s(with_table, Parallelism(1), batch=1) == pytest.approx(step_s(DENSE, Parallelism(1), batch=1))
    extra = ReplicaMemory.of(with_table, GPU, Parallelism(1)).weight_bytes - 2 * DENSE.parameters
    assert extra == pytest.approx(2 * table)


def test_a_replica_that_only_decodes_is_never_held_up_by_prompts():
    objectives = Objectives(0.03, 0.5)
    shared, decode = (
        float(sustained_rates(DENSE, GPU, Parallelism(1), [(2000, 300)], objectives, role=role).requests_per_second[0])
        for role in (Role.SHARED, Role.DECODE)
    )

    assert decode > 1.2 * shared


def test_a_replica_that_only_prefills_serves_prompts_whatever_their_outputs():
    objectives = Objectives(0.03, 1.0)
    rates = sustained_rates(DENSE, GPU, Parallelism(1), [(2000, 1), (2000, 300)], objectives, role=Role.PREFILL)

    assert rates.requests_per_second[0] == rates.requests_per_second[1]
    alone_s = step_s(DENSE, Parallelism(1), chunk=2000, prompt=2000)
    assert 0 < rates.requests_per_second[0] < 1 / alone_s


def test_handing_the_cache_over_counts_for_the_first_token():
    sizes, parallelism = [(2000, 100)], Parallelism(1)
    prefill = SteadyState.of(StepTime(DENSE, GPU, parallelism), sizes, Role.PREFILL).idle[0]
    whole = SteadyState.of(StepTime(DENSE, GPU, parallelism), [(2000, 1)], Role.SHARED).idle[0]

    cache_bytes = 2000 * DENSE.key_value_bytes_per_token
    assert prefill.time_to_first_token_s - whole.time_to_first_token_s == pytest.approx(
        cache_bytes / KEY_VALUE_TRANSFER_BYTES_PER_S
    )


def test_the_step_budget_is_the_largest_that_keeps_the_objective():
    times = StepTime(DENSE, GPU, Parallelism(1))
    takes_s = {tokens: step_s(DENSE, Parallelism(1), chunk=tokens, prompt=tokens) for tokens in STEP_TOKENS}

    assert step_budget_tokens(times, takes_s[1024]) == 1024
    assert step_budget_tokens(times, takes_s[1024] * 0.999) == 512
    assert step_budget_tokens(times, 100.0) == STEP_TOKENS[-1]
    assert step_budget_tokens(times, takes_s[512] * 0.999) is None


def test_requests_that_are_always_inside_leave_at_the_rate_of_littles_law():
    state = SteadyState.of(StepTime(DENSE, GPU, Parallelism(1)), [(500, 100)])
    one, many = (float(state.rates_at(np.array([float(inside)]))[0]) for inside in (1, 32))

    alone_s = state.idle[0].time_to_first_token_s + 99 * state.idle[0].time_per_output_token_s
    assert one == pytest.approx(1 / alone_s, rel=0.05)
    assert one * 10 < many < one * 32
