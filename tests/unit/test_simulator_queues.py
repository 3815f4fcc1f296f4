"""The engine against closed forms of queueing theory; `benchmarks/planner_simulator.py` does the same to within 2 %."""

from __future__ import annotations

import numpy as np
import pytest

from medley_bench.queues import STEP_S, deterministic_wait_s, drawn, erlang_wait_s, exact_waits_s, mean_wait_s, served


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (2, 0.6), (8, 0.6)])
def test_exponential_servers_wait_as_erlang_says(servers: int, load: float) -> None:
    waits = [mean_wait_s(load, servers, 15_000, seed) for seed in range(3)]
    assert np.mean(waits) == pytest.approx(erlang_wait_s(load, servers), rel=0.06), "seeds 0, 1, 2"


def test_one_server_of_constant_time_waits_as_pollaczek_and_khinchine_say() -> None:
    waits = [mean_wait_s(0.7, 1, 15_000, seed, deterministic=True) for seed in range(3)]
    assert np.mean(waits) == pytest.approx(deterministic_wait_s(0.7), rel=0.05), "seeds 0, 1, 2"


@pytest.mark.parametrize("servers", [1, 3, 12])
def test_every_request_waits_as_in_kiefers_and_wolfowitzs_recursion(servers: int) -> None:
    arrivals_s, service_s = drawn(0.9, servers, 3000, seed=5)
    service_s = np.maximum(STEP_S, np.round(service_s / STEP_S) * STEP_S)
    book = served(arrivals_s, service_s, servers)
    waits = np.array(book.admitted_s) - arrivals_s
    expected = exact_waits_s(arrivals_s, service_s, servers)
    assert expected.mean() > 100 * STEP_S
    assert np.abs(waits - expected).max() < 300 * STEP_S
    assert waits.mean() == pytest.approx(expected.mean(), rel=0.01)
