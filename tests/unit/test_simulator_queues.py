"""The engine against closed forms of queueing theory; `benchmarks/planner_simulator.py` does the same to within 2 %."""

from __future__ import annotations

import numpy as np
import pytest

from queues import STEP_S, deterministic_wait_s, erlang_wait_s, mean_wait_s, served


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (2, 0.6), (8, 0.6)])
def test_exponential_servers_wait_as_erlang_says(servers: int, load: float) -> None:
    waits = [mean_wait_s(load, servers, 15_000, seed) for seed in range(3)]
    assert np.mean(waits) == pytest.approx(erlang_wait_s(load, servers), rel=0.06), "seeds 0, 1, 2"


def test_one_server_of_constant_time_waits_as_pollaczek_and_khinchine_say() -> None:
    waits = [mean_wait_s(0.7, 1, 15_000, seed, deterministic=True) for seed in range(3)]
    assert np.mean(waits) == pytest.approx(deterministic_wait_s(0.7), rel=0.05), "seeds 0, 1, 2"


def test_wait_of_every_request_obeys_lindley() -> None:
    """W[n+1] = max(0, W[n] + S[n] − A[n+1]), up to the wait for the end of a step."""
    rng = np.random.default_rng(5)
    gaps, service_s = rng.exponential(1.2, 3000), np.round(rng.exponential(1.0, 3000), 3) + STEP_S
    arrivals_s = np.cumsum(gaps)
    book = served(arrivals_s, service_s, 1)
    wait_s = 0.0
    for request in range(1, 3000):
        wait_s = max(0.0, wait_s + service_s[request - 1] - gaps[request])
        assert book.admitted_s[request] - arrivals_s[request] == pytest.approx(wait_s, abs=3000 * STEP_S / 10)
