import itertools
import math

import numpy as np
import pytest

from medley_planner.workload.marginals import Margin, MarginalsError, blend, fit, fit_sizes
from medley_planner.workload.presets import preset
from medley_planner.workload.sizes import SizeHistogram

PRIOR = SizeHistogram.of((100, 10, 4), (100, 100, 1), (1000, 10, 1), (1000, 100, 4))


def margin(*cells: tuple[float, float], mean: float | None = None) -> Margin:
    return Margin(tuple(edge for edge, _ in cells), tuple(weight for _, weight in cells), mean)


def test_margins_are_met_and_the_odds_of_the_prior_are_kept() -> None:
    made = fit_sizes(margin((500, 30), (2000, 70)), margin((50, 60), (200, 40)), PRIOR)
    weight = {
        bucket[:2]: bucket[2] for bucket in ((b.input_tokens, b.output_tokens, b.weight) for b in made.sizes.buckets)
    }

    assert weight[100, 10] + weight[100, 100] == pytest.approx(0.3)
    assert weight[100, 10] + weight[1000, 10] == pytest.approx(0.6)
    odds = weight[100, 10] * weight[1000, 100] / (weight[100, 100] * weight[1000, 10])
    assert odds == pytest.approx(16, rel=0.06)  # 16 but for the smoothing
    assert made.beyond_prior_share == 0
    assert made.measured_share == 1


def test_the_margins_of_the_prior_itself_change_nothing_but_the_smoothing() -> None:
    made = fit_sizes(margin((500, 50), (2000, 50)), margin((50, 50), (200, 50)), PRIOR)

    for bucket, before in zip(made.sizes.buckets, PRIOR.buckets, strict=True):
        assert bucket.weight == pytest.approx(before.weight, abs=0.002)


def test_cells_where_the_prior_has_nothing_get_their_requests_all_the_same() -> None:
    made = fit_sizes(margin((500, 50), (2000, 30), (8000, 20)), margin((50, 50), (200, 50)), PRIOR)

    long = [bucket for bucket in made.sizes.buckets if bucket.input_tokens > 2000]
    assert math.fsum(bucket.weight for bucket in long) == pytest.approx(0.2)
    assert {bucket.input_tokens for bucket in long} == {round(math.sqrt(2001 * 8000))}
    assert {bucket.output_tokens for bucket in long} == {10, 100}
    assert made.beyond_prior_share == pytest.approx(0.2)


def test_sizes_of_the_prior_beyond_the_last_edge_are_held_back() -> None:
    made = fit_sizes(margin((500, 2)), margin((50, 1), (math.inf, 1)), PRIOR)

    assert {bucket.input_tokens for bucket in made.sizes.buckets} == {100, 500}
    assert {bucket.output_tokens for bucket in made.sizes.buckets} == {10, 100}


@pytest.mark.parametrize("mean", [400.0, 700.0, 1200.0])
def test_a_known_mean_moves_sizes_within_their_cells(mean: float) -> None:
    inputs = margin((50, 10), (500, 30), (2000, 60), mean=mean)
    made = fit_sizes(inputs, margin((50, 60), (200, 40)), PRIOR)

    assert made.sizes.mean_input_tokens == pytest.approx(mean, abs=0.6)
    shares = np.bincount(
        inputs.cells(np.array([bucket.input_tokens for bucket in made.sizes.buckets])),
        weights=[bucket.weight for bucket in made.sizes.buckets],
    )
    assert shares == pytest.approx(inputs.shares)


def test_a_prometheus_histogram_is_cumulative_and_ends_at_infinity() -> None:
    made = Margin.of_cumulative([(math.inf, 10), (1, 0), (2, 3), (5, 9)], total_tokens=40)

    assert made == Margin((1, 2, 5, math.inf), (0, 3, 6, 1), 4.0)
    assert Margin.of_cumulative([(5, 9), (math.inf, 9)]).up_to == (5,)


@pytest.mark.parametrize(("requests", "share"), [(0, 0.0), (50, 0.25), (200, 1.0), (10**6, 1.0)])
def test_few_requests_leave_the_prior_in(requests: float, share: float) -> None:
    made = fit_sizes(margin((500, 1)), margin((50, 1)), PRIOR, requests=requests)

    assert made.measured_share == share
    long = math.fsum(bucket.weight for bucket in made.sizes.buckets if bucket.input_tokens == 1000)
    assert long == pytest.approx(0.5 * (1 - share))


def test_blending_is_a_mixture() -> None:
    other = SizeHistogram.of((100, 10, 1), (5, 5, 1))

    assert blend(other, PRIOR, 0.5) == SizeHistogram.of(
        (100, 10, 0.25 + 0.2), (5, 5, 0.25), (100, 100, 0.05), (1000, 10, 0.05), (1000, 100, 0.2)
    )


@pytest.mark.parametrize(
    ("cells", "mean", "message"),
    [
        ([], None, "there is no cell"),
        ([(0.0, 1.0)], None, "[0].upTo: must be above 0 and at most 10000000, is 0.0"),
        ([(5.0, 1.0), (5.0, 1.0)], None, "[1].upTo: must be above 5"),
        ([(5.0, 1.0), (2.0, 1.0)], None, "[1].upTo: must be above 5"),
        ([(math.nan, 1.0)], None, "[0].upTo: must be above 0"),
        ([(math.inf, 1.0), (math.inf, 1.0)], None, "[0].upTo: must be above 0"),
        ([(1e9, 1.0)], None, "[0].upTo: must be above 0 and at most 10000000, is 1000000000.0"),
        ([(5.0, -1.0)], None, "[0].weight: must be between 0 and 1e+15, is -1.0"),
        ([(5.0, math.nan)], None, "[0].weight: must be between 0 and 1e+15, is nan"),
        ([(5.0, 0.0)], None, "all weights are zero"),
        ([(5.0, 1e16)], None, "[0].weight: must be between 0 and 1e+15, is 1e+16"),
        ([(float(edge), 1.0) for edge in range(1, 514)], None, "there are 513 cells, at most 512 are allowed"),
        ([(5.0, 1.0), (9.0, 1.0)], 1.0, "a mean of 1 tokens is impossible: by its cells it is between 3.5 and 7"),
        ([(5.0, 1.0), (9.0, 1.0)], 8.0, "a mean of 8 tokens is impossible"),
        ([(5.0, 1.0)], math.nan, "a mean of nan tokens is impossible"),
    ],
)
def test_impossible_margins_are_refused(cells: list[tuple[float, float]], mean: float | None, message: str) -> None:
    with pytest.raises(MarginalsError) as caught:
        margin(*cells, mean=mean)

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([(1, 5), (2, 3)], "3 requests are at most 2 long, but 5 are shorter"),
        ([(1, 5), (1, 5)], "the edge 1 is there twice"),
        ([(1, 0), (math.inf, 0)], "all weights are zero"),
    ],
)
def test_impossible_cumulative_counts_are_refused(counts: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(MarginalsError, match=f"^{message}$"):
        Margin.of_cumulative(counts)


def test_margins_of_different_requests_are_refused() -> None:
    with pytest.raises(MarginalsError, match=r"^inputs add up to 100 requests, outputs to 90: these are not the same"):
        fit_sizes(margin((500, 100)), margin((50, 90)), PRIOR)

    assert fit_sizes(margin((500, 100)), margin((50, 96)), PRIOR).measured_share == 1


@pytest.mark.parametrize("seed", range(20))
def test_each_round_comes_nearer_and_the_end_is_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 12, 2)
    prior = rng.random(shape) * (rng.random(shape) < 0.6)
    prior[0, 0] += 1.0
    rows, columns = (weights / weights.sum() for weights in (rng.random(size) + 0.01 for size in shape))

    final, rounds = fit(prior, rows, columns)

    assert final.sum(axis=1) == pytest.approx(rows, abs=2e-9), f"seed {seed}"
    assert final.sum(axis=0) == pytest.approx(columns, abs=1e-12), f"seed {seed}"
    distances = []
    for limit in range(1, rounds + 1):
        partial, _ = fit(prior, rows, columns, max_iterations=limit)
        distances.append(float((final * np.log(final / partial)).sum()))
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(distances))


@pytest.mark.parametrize("name", ["azure-conversation-2023", "azure-code-2023", "mooncake-conversation-2024"])
def test_every_preset_fits_to_every_other_ones_margins(name: str) -> None:
    edges = [float(edge * 10**power) for power in range(6) for edge in (1, 2, 5)]
    other = preset("azure-conversation-2023").sizes

    def measured(sizes: list[tuple[int, float]]) -> Margin:
        counts = [(edge, math.fsum(weight for size, weight in sizes if size <= edge)) for edge in edges]
        return Margin.of_cumulative(counts, total_tokens=math.fsum(size * weight for size, weight in sizes))

    inputs = measured([(bucket.input_tokens, bucket.weight) for bucket in other.buckets])
    outputs = measured([(bucket.output_tokens, bucket.weight) for bucket in other.buckets])
    made = fit_sizes(inputs, outputs, preset(name).sizes)

    assert made.sizes.mean_input_tokens == pytest.approx(other.mean_input_tokens, rel=1e-3)
    assert made.sizes.mean_output_tokens == pytest.approx(other.mean_output_tokens, rel=5e-3)
    assert made.iterations < 100
    if name == "azure-conversation-2023":
        assert made.beyond_prior_share < 0.01
