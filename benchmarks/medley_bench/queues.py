"""Queues that have closed forms, served by the simulator's engine with steps that all take the same time.

An engine whose steps do not depend on what they compute is a queue with as many servers as it has places in a batch: a
request of k output tokens is served for k steps. Steps are short against service times, so that waiting for the end of
one hardly counts.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
import numpy.typing as npt

from medley_planner.simulator.book import Book
from medley_planner.simulator.engine import EngineLimits, StepTimes
from medley_planner.simulator.gauges import Gauges
from medley_planner.simulator.replica import Replica
from medley_planner.simulator.requests import Requests

FloatArray = npt.NDArray[np.float64]

STEP_S = 1e-4


def served(arrivals_s: FloatArray, service_s: FloatArray, servers: int) -> Book:
    """The book of a queue, first come first served."""
    tokens = np.maximum(1, np.round(service_s / STEP_S)).astype(np.int64)
    book = Book.of(Requests(arrivals_s, np.ones(len(tokens), dtype=np.int64), tokens))
    steps = StepTimes((STEP_S,) * (2 * servers + 2))
    limits = EngineLimits(2**40, max_sequences=servers, watermark=0.0)
    replica = Replica(0, steps, limits, book, Gauges())
    for request, arrived_s in enumerate(book.arrived_s):
        replica.advance(arrived_s)
        replica.offer(request, arrived_s)
    replica.advance(math.nextafter(math.inf, 0.0))
    return book


def exact_waits_s(arrivals_s: FloatArray, service_s: FloatArray, servers: int) -> FloatArray:
    """Waits in the same queue by Kiefer's and Wolfowitz's recursion: each begins where a server is free first."""
    free_s = [0.0] * servers
    waits = np.empty(len(arrivals_s))
    for request, (arrived_s, lasts_s) in enumerate(zip(arrivals_s.tolist(), service_s.tolist(), strict=True)):
        begins_s = max(arrived_s, free_s[0])
        heapq.heapreplace(free_s, begins_s + lasts_s)
        waits[request] = begins_s - arrived_s
    return waits


def drawn(
    load: float, servers: int, requests: int, seed: int, *, deterministic: bool = False
) -> tuple[FloatArray, FloatArray]:
    """Poisson arrivals, and service times with a mean of 1 s, exponential or always the same.

    Both are scaled to have exactly their means: what is left is the queue's own randomness.
    """
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1.0, requests)
    arrivals_s = np.cumsum(gaps / gaps.mean() / (load * servers))
    service_s = np.ones(requests) if deterministic else rng.exponential(1.0, requests)
    return arrivals_s, service_s / service_s.mean()


def mean_wait_s(load: float, servers: int, requests: int, seed: int, *, deterministic: bool = False) -> float:
    """Mean wait of drawn requests in the simulator."""
    arrivals_s, service_s = drawn(load, servers, requests, seed, deterministic=deterministic)
    book = served(arrivals_s, service_s, servers)
    return float(np.mean(np.array(book.admitted_s) - arrivals_s))


def erlang_wait_s(load: float, servers: int) -> float:
    """Mean wait of M/M/c with a mean service time of 1 s (Erlang C)."""
    busy = load * servers
    terms = [math.exp(k * math.log(busy) - math.lgamma(k + 1)) for k in range(servers)]
    last = math.exp(servers * math.log(busy) - math.lgamma(servers + 1)) / (1 - load)
    return last / (sum(terms) + last) / (servers * (1 - load))


def deterministic_wait_s(load: float) -> float:
    """Mean wait of M/D/1 with a service time of 1 s (Pollaczek and Khinchine)."""
    return load / (2 * (1 - load))
