"""Percentiles: the batch's fluctuation and the queue, against their formulae and what is known about queues."""

import math

import numpy as np
import pytest

from medley_planner.capacities.capacity import capacity
from medley_planner.capacities.percentiles import count_at, deviations, largest_load, mean_within, waiting_services
from medley_planner.capacities.roofline import sustained_rates
from medley_planner.capacities.steady_state import SteadyState
from medley_planner.capacities.step_time import StepTime
from medley_planner.catalogue.gpus import gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.catalogue.models import ThroughputPoint
from medley_planner.fleet import Objectives, Parallelism

LLAMA = known_models()["meta-llama/Llama-3.1-8B-Instruct"]
H100 = gpu_type("H100-80GB")


def rate(objectives: Objectives, size=(1000, 200)) -> float:
    return float(sustained_rates(LLAMA, H100, Parallelism(1), [size], objectives).requests_per_second[0])


@pytest.mark.parametrize(("percentile", "z"), [(None, 0.0), (10, 0.0), (50, 0.0), (95, 1.645), (99, 2.326)])
def test_percentiles_in_standard_deviations(percentile, z):
    assert deviations(percentile) == pytest.approx(z, abs=1e-3)


def test_a_mean_within_a_count_is_the_inverse_of_the_count_at_a_mean():
    means = np.array([0.0, 0.01, 1.0, 40.0, 1e4])
    for percentile in (None, 50, 90, 99.9):
        assert mean_within(count_at(means, percentile), percentile) == pytest.approx(means, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
def test_the_wait_is_that_of_one_server_with_exponential_service(load):
    """M/M/1: the mean is ρ/(1 − ρ) services, and P(W > t) = ρ·exp(−(1 − ρ)t)."""
    mean, median, tail = (float(waiting_services(np.array([load]), p)[0]) for p in (None, 50, 99))

    assert mean == pytest.approx(load / (1 - load))
    assert median == pytest.approx(max(0.0, math.log(2 * load) / (1 - load)), abs=1e-12)
    assert load * math.exp(-(1 - load) * tail) == pytest.approx(0.01)


@pytest.mark.parametrize("percentile", [None, 50.0, 95.0, 99.9])
def test_the_largest_load_is_where_the_wait_is_just_allowed(percentile):
    allowed = np.array([0.01, 0.5, 3.0, 100.0])

    loads = largest_load(allowed, percentile)

    assert waiting_services(loads, percentile) == pytest.approx(allowed, rel=0.01)
    assert (largest_load(np.array([-1e-9]), percentile) == 0).all()


def test_no_percentile_is_the_mean_of_a_state_without_queues():
    assert rate(Objectives(0.05, 1.0)) == rate(Objectives(0.05, 1.0, None, None))
    assert rate(Objectives(None, None, 99, 99)) == rate(Objectives())


def test_a_tail_costs_rate_and_more_of_it_more():
    by_percentile = [rate(Objectives(0.02, None, percentile)) for percentile in (None, 90, 99, 99.9)]
    assert by_percentile == sorted(by_percentile, reverse=True)
    assert by_percentile[0] > by_percentile[-1] > 0

    by_percentile = [rate(Objectives(None, 0.3, None, percentile)) for percentile in (None, 90, 99, 99.9)]
    assert by_percentile == sorted(by_percentile, reverse=True)
    assert by_percentile[0] > by_percentile[-1]


def test_at_the_rate_found_the_queue_just_keeps_the_objective():
    """Waiting follows from the rate by the page's formulae, written out here once more."""
    objectives = Objectives(time_to_first_token_s=0.6, time_to_first_token_percentile=95)
    found = rate(objectives, (2000, 100))
    state = SteadyState.of(StepTime(LLAMA, H100, Parallelism(1)), [(2000, 100)])
    lowest, highest = 0.0, float(state.limit[0])
    for _ in range(60):
        middle = (lowest + highest) / 2
        at = np.array([middle])
        lowest, highest = (
            (middle, highest)
            if middle / float(state.latencies(at)[0].time_per_output_token_s) < found
            else (lowest, middle)
        )
    rho = np.array([lowest])
    assert float(state.waiting_s(rho, 95)[0]) == pytest.approx(0.6, rel=1e-3)


def test_requests_of_one_output_token_queue_too():
    calm, strict = (rate(Objectives(None, 0.2, None, percentile), (2000, 1)) for percentile in (None, 99))
    assert 0 < strict < calm


@pytest.mark.parametrize("prompt_tokens", [1, 31, 300])
def test_one_output_token_is_served_at_least_as_often_as_two(prompt_tokens):
    alone_s = sustained_rates(LLAMA, H100, Parallelism(1), [(prompt_tokens, 1)], Objectives(None, None)).idle[0]
    hardly_more = Objectives(None, 1.6 * alone_s.time_to_first_token_s, None, 99)
    one, two = (rate(hardly_more, (prompt_tokens, outputs)) for outputs in (1, 2))
    assert one >= two > 0


def measured(rate_rps: float, per_token_s: float, first_token_s: float) -> ThroughputPoint:
    return ThroughputPoint(
        gpu="H100-80GB",
        tensor_parallel=1,
        input_tokens=1000,
        output_tokens=200,
        requests_per_second=rate_rps,
        time_per_output_token_s=per_token_s,
        time_to_first_token_s=first_token_s,
    )


def test_measured_means_become_percentiles_by_the_rooflines_ratio():
    points = (measured(1.0, 0.010, 0.05), measured(10.0, 0.020, 0.10), measured(20.0, 0.040, 0.40))

    def find(objectives: Objectives):
        return capacity(
            model=LLAMA,
            measurements=points,
            engine="vllm",
            gpu=H100,
            parallelism=Parallelism(1),
            input_tokens=1000,
            output_tokens=200,
            objectives=objectives,
            max_context_tokens=8192,
        )

    mean, tail, strict = (find(Objectives(0.03, None, percentile)) for percentile in (None, 90, 99))
    assert mean.source == "measured"
    assert mean.requests_per_second == pytest.approx(15)
    assert tail.source == "measured, percentiles by roofline"
    assert strict.requests_per_second < tail.requests_per_second < mean.requests_per_second
    assert find(Objectives(0.03, 0.3, None, 99)).requests_per_second < find(Objectives(0.03, 0.3)).requests_per_second
