"""Requests: from traces at any rate, or drawn."""

from __future__ import annotations

import numpy as np
import pytest

from medley_planner.simulator.requests import Requests, RequestsError
from medley_planner.workload.sizes import SizeHistogram
from medley_planner.workload.traces import Trace

SIZES = SizeHistogram.of((100, 10, 0.25), (900, 90, 0.75))


def trace(*arrivals_s: float) -> Trace:
    count = len(arrivals_s)
    return Trace(np.array(arrivals_s, dtype=float), np.arange(1, count + 1), np.arange(1, count + 1))


def test_a_trace_keeps_its_times_and_sizes() -> None:
    made = Requests.of_trace(trace(0.0, 1.0, 4.0))
    assert made.arrivals_s.tolist() == [0.0, 1.0, 4.0]
    assert made.input_tokens.tolist() == [1, 2, 3]


def test_a_trace_is_stretched_to_a_rate() -> None:
    made = Requests.of_trace(trace(0.0, 1.0, 4.0, 9.0), rate_rps=2.0)
    assert np.diff(made.arrivals_s) == pytest.approx(np.array([1.0, 3.0, 5.0]) / 6)
    assert made.interarrival_cv == pytest.approx(trace(0.0, 1.0, 4.0, 9.0).interarrival_cv)


def test_a_trace_begins_again_where_it_is_too_short_and_ends_where_it_is_too_long() -> None:
    made = Requests.of_trace(trace(0.0, 1.0, 2.0), duration_s=7.5)
    assert made.arrivals_s.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert made.input_tokens.tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    assert len(Requests.of_trace(trace(0.0, 1.0, 2.0), duration_s=1.5)) == 2


def test_arrivals_on_a_coarse_grid_are_spread_over_its_intervals() -> None:
    bunched = trace(*np.repeat(np.arange(100) * 3.0, 5))
    made = Requests.of_trace(bunched, rng=np.random.default_rng(1))
    assert len(np.unique(made.arrivals_s)) == 500
    assert np.bincount((made.arrivals_s // 3.0).astype(int)).tolist() == [5] * 100
    assert Requests.of_trace(bunched).arrivals_s.tolist() == bunched.arrivals_s.tolist()


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 3.0])
def test_drawn_arrivals_have_the_rate_and_the_burstiness_asked_for(cv: float) -> None:
    rng = np.random.default_rng(7)
    made = Requests.drawn(SIZES, rate_rps=50.0, duration_s=2000.0, rng=rng, interarrival_cv=cv)
    assert len(made) / 2000.0 == pytest.approx(50.0, rel=0.05)
    assert made.interarrival_cv == pytest.approx(cv, abs=0.15)
    assert (made.input_tokens == 100).mean() == pytest.approx(0.25, abs=0.01)
    assert (made.output_tokens[made.input_tokens == 100] == 10).all()


def test_no_rate_is_no_request() -> None:
    assert len(Requests.drawn(SIZES, rate_rps=0.0, duration_s=10.0, rng=np.random.default_rng(0))) == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Requests(np.zeros(2), np.ones(1, int), np.ones(2, int)), "differ in number"),
        (lambda: Requests(np.array([1.0, 0.0]), np.ones(2, int), np.ones(2, int)), "in order"),
        (lambda: Requests(np.array([0.0, np.nan]), np.ones(2, int), np.ones(2, int)), "finite"),
        (lambda: Requests(np.zeros(1), np.zeros(1, int), np.ones(1, int)), "at least 1"),
        (lambda: Requests.of_trace(trace(0.0, 0.0), rate_rps=1.0), "no rate"),
        (lambda: Requests.of_trace(trace(0.0, 1.0), duration_s=1e9), "can be simulated"),
        (
            lambda: Requests.drawn(SIZES, rate_rps=1e5, duration_s=1e5, rng=np.random.default_rng(0)),
            "can be simulated",
        ),
        (
            lambda: Requests.drawn(SIZES, rate_rps=-1.0, duration_s=1.0, rng=np.random.default_rng(0)),
            "the rate must be",
        ),
    ],
)
def test_impossible_requests_are_refused(make, words: str) -> None:
    with pytest.raises(RequestsError, match=words):
        make()
