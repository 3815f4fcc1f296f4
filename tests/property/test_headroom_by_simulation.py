"""The formula of queueing headroom against queues that are simulated request by request: never far on the wrong side.

One line of requests for N places, first come first served. Times between arrivals and in a place are gamma below a
variation of 1, exponential at 1, and hyperexponential with balanced means above.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest

from medley_planner.programme.headroom import usable_places

SEED = 20240801
REQUESTS = 60_000
WARM_UP = REQUESTS // 5


def times(rng: np.random.Generator, squared_cv: float) -> np.ndarray:
    """So many times of mean 1."""
    if squared_cv < 1:
        return rng.gamma(1 / squared_cv, squared_cv, REQUESTS)
    if squared_cv == 1:
        return rng.exponential(1.0, REQUESTS)
    share = 0.5 * (1 + math.sqrt((squared_cv - 1) / (squared_cv + 1)))
    means = np.where(rng.random(REQUESTS) < share, 1 / (2 * share), 1 / (2 * (1 - share)))
    return rng.exponential(means)


def share_that_waits(rng: np.random.Generator, places: int, busy: float, arrivals: float, service: float) -> float:
    begin_s = np.cumsum(times(rng, arrivals)) / busy
    took_s = times(rng, service)
    free_at = [0.0] * places
    waited = 0
    for number, (arrives, takes) in enumerate(zip(begin_s.tolist(), took_s.tolist(), strict=True)):
        earliest = free_at[0]
        waited += number >= WARM_UP and earliest > arrives
        heapq.heapreplace(free_at, max(earliest, arrives) + takes)
    return waited / (REQUESTS - WARM_UP)


@pytest.mark.parametrize("places", [1, 8, 64])
@pytest.mark.parametrize(("arrivals", "service"), [(1, 1), (1, 0.25), (1, 4), (4, 1), (4, 4), (0.25, 1)])
def test_no_more_wait_than_asked_for(places: int, arrivals: float, service: float) -> None:
    burstiness = max(1.0, (arrivals + service) / 2)
    for quantile in (0.5, 0.9):
        rng = np.random.default_rng([SEED, places, int(4 * arrivals), int(4 * service), int(100 * quantile)])
        busy = usable_places(places, burstiness, quantile)
        waits = share_that_waits(rng, places, busy, arrivals, service)
        told = f"seed {SEED}: {waits:.3f} wait on {places} places, {1 - quantile:.1f} may"
        assert waits <= (1 - quantile) * 1.15 + 0.02, told
        if arrivals == service == 1:
            assert waits == pytest.approx(1 - quantile, rel=0.12, abs=0.015), told
