import itertools
import math

import pytest

from medley_planner.capacities.load_curve import LoadCurve
from medley_planner.capacities.measured import MeasuredRate, load_curves, measured_rates
from medley_planner.capacities.roofline import sustained_rates
from medley_planner.catalogue.gpus import gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.catalogue.models import ThroughputPoint
from medley_planner.fleet import Objectives, Parallelism

MODEL = known_models()["meta-llama/Llama-3.1-8B-Instruct"]
A100 = gpu_type("A100-80GB")


def point(rate_rps, per_token_ms, first_token_ms, *, size=(1000, 200), gpu="A100-80GB", parallel=1, engine=None):
    return ThroughputPoint(
        gpu=gpu,
        tensor_parallel=parallel,
        engine=engine,
        input_tokens=size[0],
        output_tokens=size[1],
        requests_per_second=rate_rps,
        time_per_output_token_s=per_token_ms / 1000,
        time_to_first_token_s=first_token_ms / 1000,
    )


def within(per_token_ms=None, first_token_ms=None) -> Objectives:
    return Objectives(
        time_per_output_token_s=None if per_token_ms is None else per_token_ms / 1000,
        time_to_first_token_s=None if first_token_ms is None else first_token_ms / 1000,
    )


def rates(points, sizes, objectives) -> tuple[MeasuredRate, ...]:
    curves = load_curves(points, engine="vllm", gpu=A100, parallelism=Parallelism(1))
    return measured_rates(curves, model=MODEL, gpu=A100, parallelism=Parallelism(1), sizes=sizes, objectives=objectives)


def rate(points, size, objectives) -> MeasuredRate:
    return rates(points, [size], objectives)[0]


def roofline(size) -> float:
    return float(sustained_rates(MODEL, A100, Parallelism(1), [size], Objectives()).requests_per_second[0])


CURVE = (point(1, 20, 100), point(2, 30, 200), point(4, 50, 800))


@pytest.mark.parametrize(
    ("objectives", "expected_rps"),
    [
        (within(), 4),
        (within(per_token_ms=50), 4),
        (within(per_token_ms=500), 4),
        (within(per_token_ms=30), 2),
        (within(per_token_ms=20), 1),
        (within(per_token_ms=40), 3),
        (within(per_token_ms=25), 1.5),
        (within(first_token_ms=350), 2.5),
        (within(per_token_ms=40, first_token_ms=350), 2.5),
        (within(per_token_ms=25, first_token_ms=350), 1.5),
    ],
)
def test_at_a_measured_size_the_rate_lies_on_the_curve(objectives, expected_rps):
    for points in itertools.permutations(CURVE):
        found = rate(points, (1000, 200), objectives)

        assert found.requests_per_second == pytest.approx(expected_rps)
        assert not found.scaled
        assert found.detail == ""


def test_an_objective_that_the_lightest_load_misses_leaves_no_rate():
    found = rate(CURVE, (1000, 200), within(per_token_ms=19))

    assert found == MeasuredRate(
        0.0,
        scaled=False,
        detail="time per output token is 20 ms for 1000 input and 200 output tokens at 1 requests/s, the lightest load "
        "measured; the objective is 19 ms",
    )


def test_a_latency_that_falls_with_the_rate_is_noise_and_the_worse_one_counts():
    noisy = (point(1, 20, 100), point(2, 40, 200), point(3, 30, 300), point(4, 60, 400))

    assert rate(noisy, (1000, 200), within(per_token_ms=35)).requests_per_second == pytest.approx(1.75)
    assert rate(noisy, (1000, 200), within(per_token_ms=40)).requests_per_second == pytest.approx(3)


def test_of_points_at_one_rate_the_worst_latencies_count():
    curve = LoadCurve.of([point(2, 30, 100), point(2, 20, 300), point(1, 10, 50)])

    assert curve == LoadCurve((1, 2), (0.010, 0.030), (0.050, 0.300))


GRID = (
    point(8, 20, 100, size=(100, 100)),
    point(4, 20, 100, size=(400, 100)),
    point(2, 20, 100, size=(100, 400)),
    point(1, 20, 100, size=(400, 400)),
)


@pytest.mark.parametrize(
    ("size", "expected_rps"),
    [
        ((100, 100), 8),
        ((400, 400), 1),
        ((200, 100), math.sqrt(8 * 4)),
        ((100, 200), math.sqrt(8 * 2)),
        ((200, 200), (8 * 4 * 2 * 1) ** 0.25),
    ],
)
def test_between_measured_sizes_logarithms_are_interpolated(size, expected_rps):
    found = rate(GRID, size, within(per_token_ms=20))

    assert found.requests_per_second == pytest.approx(expected_rps)
    assert not found.scaled


def test_of_rectangles_around_a_size_the_smallest_is_used():
    inner = (
        point(6, 20, 100, size=(150, 150)),
        point(6, 20, 100, size=(250, 150)),
        point(6, 20, 100, size=(150, 250)),
        point(6, 20, 100, size=(250, 250)),
    )

    assert rate(GRID + inner, (200, 200), within()).requests_per_second == pytest.approx(6)


def test_a_corner_that_misses_an_objective_leaves_no_rate_between():
    grid = (*GRID[:3], point(1, 90, 100, size=(400, 400)))

    found = rate(grid, (200, 200), within(per_token_ms=50))

    assert found.requests_per_second == 0
    assert "90 ms for 400 input and 400 output tokens" in found.detail
    assert rate(grid, (200, 100), within(per_token_ms=50)).requests_per_second == pytest.approx(math.sqrt(8 * 4))


@pytest.mark.parametrize("size", [(2000, 200), (1000, 400), (500, 100), (5000, 50)])
def test_elsewhere_the_nearest_size_is_carried_over_by_the_rooflines_shape(size):
    found = rate(CURVE, size, within(per_token_ms=50))

    assert found.requests_per_second == pytest.approx(4 * roofline(size) / roofline((1000, 200)))
    assert found.scaled


def test_what_is_carried_over_never_contradicts_a_measurement():
    points = (point(5, 20, 100, size=(100, 100)), point(4.9, 20, 100, size=(1000, 1000)))

    for size in ((101, 101), (400, 200), (900, 990)):
        assert 4.9 <= rate(points, size, within()).requests_per_second <= 5


def test_where_a_smaller_request_misses_an_objective_a_larger_one_does():
    points = (point(1, 90, 100, size=(100, 100)), point(1, 20, 100, size=(4000, 100)))

    assert rate(points, (3000, 101), within(per_token_ms=50)).requests_per_second == 0


def test_a_prompt_far_longer_than_measured_misses_its_time_to_first_token():
    found = rate(CURVE, (30_000, 200), within(first_token_ms=500))

    assert found.requests_per_second == 0
    assert found.detail.startswith("time to first token is ")
    assert "estimated from 1000 input and 200 output tokens at the lightest load measured" in found.detail


def test_several_sizes_at_once_are_as_one_by_one():
    sizes = [(100, 100), (200, 200), (5000, 10), (400, 100), (50, 900)]

    assert rates(GRID, sizes, within(per_token_ms=20)) == tuple(
        rate(GRID, size, within(per_token_ms=20)) for size in sizes
    )


def test_only_points_of_the_gpu_and_the_parallelism_count():
    points = (
        point(1, 20, 100),
        point(2, 20, 100, gpu="H100-80GB"),
        point(3, 20, 100, parallel=2),
        point(4, 20, 100, gpu="h100-80gb", parallel=4),
    )

    def measured(gpu, parallel):
        return [
            curve.rates_rps
            for curve in load_curves(
                points, engine="vllm", gpu=gpu_type(gpu), parallelism=Parallelism(parallel)
            ).values()
        ]

    assert measured("A100-80GB", 1) == [(1,)]
    assert measured("H100-80GB", 1) == [(2,)]
    assert measured("A100-80GB", 2) == [(3,)]
    assert measured("H100-80GB", 4) == [(4,)]
    assert measured("L4", 1) == []


def test_points_that_name_the_engine_come_before_those_for_any():
    points = (point(1, 20, 100), point(2, 20, 100, engine="vllm"), point(3, 20, 100, engine="sglang"))

    def rates_of(engine):
        return [
            curve.rates_rps
            for curve in load_curves(points, engine=engine, gpu=A100, parallelism=Parallelism(1)).values()
        ]

    assert rates_of("vllm") == [(2,)]
    assert rates_of("sglang") == [(3,)]
    assert rates_of("custom") == [(1,)]
