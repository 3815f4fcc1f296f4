import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from medley_planner.workload.arrivals import Arrivals, arrivals, busy_rate_rps
from medley_planner.workload.traces import read_trace

TRACES = Path(os.environ.get("MEDLEY_TRACES") or Path(__file__).parents[3] / "shared" / "traces")

needs_traces = pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not here: set MEDLEY_TRACES")


def renewal(seed: int, cv: float, count: int = 40_000, rate_rps: float = 5.0) -> np.ndarray:
    """Arrivals whose gaps are gamma distributed, with this coefficient of variation."""
    shape = 1 / cv**2
    return np.cumsum(np.random.default_rng(seed).gamma(shape, 1 / (shape * rate_rps), count))


@pytest.mark.parametrize("seed", range(3))
def test_poisson_arrivals_have_no_burst_at_any_scale(seed: int) -> None:
    made = arrivals(renewal(seed, 1.0))

    assert made.rate_rps == pytest.approx(5, rel=0.03)
    assert made.gap_cv == pytest.approx(1, rel=0.03)
    assert made.grid_s is None
    assert [length for length, _ in made.dispersion] == [1, 10, 60]
    for length, dispersion in made.dispersion:
        assert dispersion == pytest.approx(1, rel=0.1 + 0.02 * length / 5), f"seed {seed}"


@pytest.mark.parametrize("cv", [0.5, 2.0, 3.0])
def test_dispersion_of_a_renewal_process_tends_to_the_square_of_the_variation(cv: float) -> None:
    made = arrivals(renewal(7, cv, 200_000))

    assert made.gap_cv == pytest.approx(cv, rel=0.03)
    assert made.interarrival_cv == made.gap_cv
    assert dict(made.dispersion)[10.0] == pytest.approx(cv**2, rel=0.15)


@pytest.mark.parametrize("jitter_s", [0.0, 0.002])
def test_a_grid_is_seen_and_its_gaps_are_not_taken_for_bursts(jitter_s: float) -> None:
    rng = np.random.default_rng(3)
    exact = renewal(1, 1.0, 60_000)
    ticks = np.floor(exact / 3)
    jitter = rng.integers(-1, 2, int(ticks[-1]) + 1) * jitter_s / 2
    made = arrivals(np.sort(3 * ticks + jitter[ticks.astype(int)]))

    assert made.grid_s == pytest.approx(3, rel=1e-3)
    assert made.gap_cv == pytest.approx(np.sqrt(15 - 1), rel=0.05)  # 15 requests a tick: gaps of 0 or of the grid
    assert [length for length, _ in made.dispersion] == pytest.approx([60], rel=1e-4)
    assert made.interarrival_cv == pytest.approx(1, rel=0.15)


def test_regular_arrivals_are_no_grid() -> None:
    made = arrivals(np.arange(1000.0))

    assert made.grid_s is None
    assert made.gap_cv == made.interarrival_cv == 0


@pytest.mark.parametrize("times", [[5.0], [5.0, 5.0, 5.0]])
def test_arrivals_at_one_moment_have_no_figures(times: list[float]) -> None:
    made = arrivals(times)

    assert made == Arrivals(None, None, None, ())
    assert made.interarrival_cv is None


def test_a_short_trace_has_no_dispersion() -> None:
    assert arrivals([0.0, 1.0, 5.0]).dispersion == ()


@needs_traces
@pytest.mark.parametrize(
    ("name", "rate_rps", "gap_cv", "grid_s"),
    [
        ("azure-conv-2023", 5.53, 1.09, None),
        ("azure-code-2023", 2.57, 13.15, None),
        ("mooncake-conversation-2024", 3.40, 3.03, 3.0),
    ],
)
def test_public_traces(name: str, rate_rps: float, gap_cv: float, grid_s: float | None) -> None:
    with gzip.open(TRACES / f"{name}.csv.gz", "rt", encoding="utf-8") as file:
        made = read_trace(file).arrivals

    assert made.rate_rps == pytest.approx(rate_rps, abs=0.005)
    assert made.gap_cv == pytest.approx(gap_cv, abs=0.005)
    assert made.grid_s == (None if grid_s is None else pytest.approx(grid_s, abs=0.001))
    assert made.interarrival_cv == pytest.approx(1.70 if grid_s else gap_cv, abs=0.01)


def test_the_busy_rate_is_what_most_requests_see() -> None:
    """Nine calm windows of 10 requests and a busy one of 90: half of the requests come in the busy one."""
    calm = [10.0 * window + place for window in range(9) for place in range(10)]
    busy = [90.0 + place / 9 for place in range(90)]
    times = np.array(calm + busy)
    assert busy_rate_rps(times, 10.0, 50.0) == 1.0
    assert busy_rate_rps(times, 10.0, 51.0) == 9.0
    assert busy_rate_rps(times, 100.0, 99.0) == 1.8
