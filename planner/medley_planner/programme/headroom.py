"""What replicas can be loaded with when requests come at random: headroom that shrinks as replicas grow.

A replica that serves its capacity holds so many requests at once, each in a *place*. n replicas are one queue for
N = n·m places. A request that finds no place free waits. With probability p (the service's quantile) it shall not:

    C(N, a) ≤ 1 − p        with a the busy places on average (in Erlangs), C Erlang's delay formula

C is exact for Poisson arrivals and exponential times. Let a₁(N) be the largest a that keeps it, and
β(N) = (N − a₁)/√a₁ the safety factor that follows: N = a₁ + β·√a₁ is square-root staffing, and as N grows β(N) tends to
the constant of Halfin and Whitt (1981), 1 − p = [1 + β·Φ(β)/φ(β)]⁻¹. Other arrivals and times stretch the deviation by
√z, with z the factor of Allen and Cunneen:

    a + β(N)·√(z·a) = N,   z = max(1, (c_a² + c_s²)/2)

c_a and c_s are the coefficients of variation of times between arrivals and of times in a place. Requests that come
more regularly than at random get no credit (z ≥ 1): with few places it would be wrong. a/m is what the replicas can be
loaded with, in replicas; it is convex in n, and the share that stays free shrinks as 1/√n.

docs/formulation.md gives the sources. Everything here is a function of its arguments.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

EXACT_UP_TO = 16
"""Up to so many replicas, every count is a step of its own; from there on, every doubling has half as many steps."""

_ITERATIONS = 200

_MANY_PLACES = 100_000
"""The safety factor falls as places grow; beyond so many it is within a few thousandths of its limit, and kept."""


@dataclass(frozen=True)
class Queue:
    """How requests wait for replicas of one kind.

    Args:
        places: Requests that a replica holds at once when it serves its capacity; at least 1.
        burstiness: z, at least 1.
        quantile: With this probability a request finds a place free; above 0, below 1.
    """

    places: int
    burstiness: float
    quantile: float


@dataclass(frozen=True)
class Step:
    """From `replicas` replicas on, for up to `more` beyond, usable(n) ≥ usable + slope · (n − replicas).

    Equality at `replicas`.
    """

    replicas: int
    usable: float
    slope: float
    more: int


def queue_of(
    rates: Sequence[float],
    capacities_rps: Sequence[float],
    concurrencies: Sequence[float],
    *,
    interarrival_cv: float,
    quantile: float,
) -> Queue:
    """The queue before replicas of one kind, as if it served all the sizes that it can.

    By Little's law a request of size b is in its place for concurrency[b] / capacity[b]. Places and the variation of
    that time are those of the mixture of sizes. Where some concurrency is not known, a replica counts as one place.

    Args:
        rates: Requests per second of each size.
        capacities_rps: Requests per second of that size that one replica sustains; 0 where it cannot.
        concurrencies: Requests in the replica at that rate; 0 where that is not known.
        interarrival_cv: c_a.
        quantile: p, above 0, below 1.
    """
    served = [
        (rate, capacity, within)
        for rate, capacity, within in zip(rates, capacities_rps, concurrencies, strict=True)
        if rate > 0 and capacity > 0
    ]
    if not served:
        return Queue(1, max(1.0, interarrival_cv**2 / 2), quantile)
    known = all(within > 0 for _, _, within in served)
    times_s = [(within if known else 1.0) / capacity for _, capacity, within in served]
    arrivals = math.fsum(rate for rate, _, _ in served)
    mean_s = math.fsum(rate * time_s for (rate, _, _), time_s in zip(served, times_s, strict=True)) / arrivals
    squares = math.fsum(rate * time_s**2 for (rate, _, _), time_s in zip(served, times_s, strict=True)) / arrivals
    busy = math.fsum(rate / capacity for rate, capacity, _ in served)
    places = max(1, math.floor(mean_s * arrivals / busy + 1e-9))
    variation = max(0.0, squares / mean_s**2 - 1.0)
    return Queue(places, max(1.0, (interarrival_cv**2 + variation) / 2), quantile)


def erlang_c(places: int, busy: float) -> float:
    """Erlang's delay formula C(N, a): the probability that all places are taken when a request comes.

    1/C = (1 − a/N)/B + a/N with 1/B = Σ_{k=0}^N N·(N−1)…(N−k+1)/a^k, all of whose terms are positive.

    Args:
        places: N, at least 1.
        busy: a, busy places on average; at least 0. From N on, every request waits.
    """
    if busy <= 0:
        return 0.0
    if busy >= places:
        return 1.0
    # Terms grow while N − k > a and then fall off like those of a normal distribution of variance N.
    terms = min(places, math.ceil(2.0 * (places - busy) + 12.0 * math.sqrt(places)) + 50)
    with np.errstate(over="ignore"):  # beyond all floating-point numbers: nobody waits
        inverse = 1.0 + float(np.cumprod(np.arange(places, places - terms, -1) / busy).sum())
    share = busy / places
    return 1.0 / (inverse * (1.0 - share) + share)


def waiting_probability(places: int, busy: float, burstiness: float = 1.0) -> float:
    """The probability that a request waits for a place, an estimate for burstiness above 1.

    Args:
        places: N, at least 1.
        busy: Busy places on average; at least 0.
        burstiness: z, at least 1.
    """
    if busy <= 0:
        return 0.0
    if busy >= places:
        return 1.0
    factor = (places - busy) / math.sqrt(burstiness * busy)
    many = min(places, _MANY_PLACES)
    return erlang_c(many, _staffed(many, factor))


def usable_places(places: int, burstiness: float, quantile: float) -> float:
    """The busy places at which just the share `quantile` of requests finds one free.

    Args:
        places: N, at least 0.
        burstiness: z, at least 1.
        quantile: p, above 0, below 1.
    """
    if places < 1:
        return 0.0
    many = min(places, _MANY_PLACES)
    at_random = _erlang_load(many, quantile)
    if burstiness == 1.0 and many == places:
        return at_random
    factor = (many - at_random) / math.sqrt(at_random)
    return _staffed(places, factor * math.sqrt(burstiness))


def usable_replicas(replicas: int, queue: Queue) -> float:
    """What so many replicas can be loaded with together, in replicas: usable(n), convex, at most n."""
    return usable_places(replicas * queue.places, queue.burstiness, queue.quantile) / queue.places


def replicas_for(load: float, queue: Queue) -> int:
    """The fewest replicas that can be loaded with so many replicas' work."""
    most = max(1, math.ceil(load))
    while usable_replicas(most, queue) < load:
        most *= 2
    least = 0
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if usable_replicas(middle, queue) < load else (least, middle)
    return most if load > 0 else 0


@functools.lru_cache(maxsize=65_536)
def steps(queue: Queue, most: int) -> tuple[Step, ...]:
    """usable(n) for n = 1 … most as steps: exact at the beginning of each, a tangent from below in between.

    The tangent is the last difference before the step: usable is convex, so it is never steeper than usable.
    """
    found = []
    begin = 1
    while begin <= most:
        width = 1
        while width * EXACT_UP_TO <= begin:
            width *= 2
        width = min(width, most + 1 - begin)
        usable = usable_replicas(begin, queue)
        found.append(Step(begin, usable, usable - usable_replicas(begin - 1, queue), width - 1))
        begin += width
    return tuple(found)


@functools.lru_cache(maxsize=65_536)
def usable_by_steps(queue: Queue, most: int, replicas: int) -> npt.NDArray[np.float64]:
    """What 0, 1, … `replicas` replicas can be loaded with by the steps up to `most`, (replicas + 1,); not to be written
    to. Beyond the last step, no more."""
    counts = np.arange(replicas + 1)
    usable = np.zeros(replicas + 1)
    for step in steps(queue, most):
        more = np.minimum(counts - step.replicas, step.more)
        usable = np.where(more >= 0, np.maximum(usable, step.usable + step.slope * more), usable)
    usable.flags.writeable = False
    return usable


def _staffed(places: int, factor: float) -> float:
    """The a with a + factor·√a = N."""
    root = (math.sqrt(factor * factor + 4.0 * places) - factor) / 2.0
    return root * root


@functools.lru_cache(maxsize=65_536)
def _erlang_load(places: int, quantile: float) -> float:
    """The largest a with C(N, a) ≤ 1 − p, from below: false position on log C over log a, both ends kept."""
    wanted = 1.0 - quantile
    low, high = 0.0, float(places)
    below, above = -math.inf, -math.log(wanted)
    guess = _staffed(places, math.sqrt(max(0.0, -2.0 * math.log(wanted))) + 1.0)
    for _ in range(_ITERATIONS):
        value = erlang_c(places, guess)
        error = math.log(value / wanted) if value > 0 else -math.inf
        if error <= 0:
            low, below = guess, error
        else:
            high, above = guess, error
        if high - low <= 1e-11 * places or error == 0:
            break
        secant = low + (high - low) * below / (below - above) if math.isfinite(below) else math.nan
        middle = (low + high) / 2.0
        inside = low + 0.01 * (high - low) < secant < high - 0.01 * (high - low)
        guess = secant if inside else middle
    return low
