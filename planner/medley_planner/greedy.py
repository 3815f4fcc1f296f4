"""A plan without a solver: replica by replica, the one that serves the most for its price.

Used where the solver's time ended before it found anything, or what it found did not pass the check.
It keeps stock, caps and upper bounds always, and serves what it can; it proves nothing.

A bucket is worth what it costs at least in fractions of replicas, p[b] = min_v c[v]·ℓ[b,v].
One more replica of v takes the unserved parts of buckets with the most worth per load p[b] / ℓ[b,v] first, until it
is full (the fractional knapsack, which that order solves exactly). The replica with the most worth per dollar is added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from medley_planner.problem import LOAD_TOLERANCE, FleetProblem, ServiceProblem

_SERVED = 1e-9


def greedy(problem: FleetProblem) -> tuple[tuple[int, ...], ...]:
    """Replicas by service and variant, within stock, caps and upper bounds."""
    fleet = _Fleet(problem)
    for s in range(len(problem.services)):
        fleet.reach_minima(s)
    for s in range(len(problem.services)):
        fleet.serve(s)
    return tuple(tuple(mix) for mix in fleet.replicas)


class _Fleet:
    """Mixes that grow within what is allowed."""

    def __init__(self, problem: FleetProblem) -> None:
        self.problem = problem
        self.replicas = [[0] * len(service.variants) for service in problem.services]
        self.unserved = [[1.0] * len(service.loads) for service in problem.services]
        self.worth = [[_worth(service, b) for b in range(len(service.loads))] for service in problem.services]

    def reach_minima(self, s: int) -> None:
        service = self.problem.services[s]
        for bounds in service.pool_bounds:
            for _ in range(bounds.minimum):
                here = [v for v, variant in enumerate(service.variants) if variant.pool == bounds.pool]
                self._add_best(s, here)
        while sum(self.replicas[s]) < service.replicas_min and self._add_best(s, range(len(service.variants))):
            pass

    def serve(self, s: int) -> None:
        while any(part > _SERVED for part in self.unserved[s]):
            if not self._add_best(s, range(len(self.problem.services[s].variants)), useful=True):
                return

    def _add_best(self, s: int, variants: Sequence[int], *, useful: bool = False) -> bool:
        """Add the replica with the most worth per dollar; False where none is allowed, or none serves anything."""
        service = self.problem.services[s]
        fills = {v: _fill(service, v, self.unserved[s], self.worth[s]) for v in variants if self._allowed(s, v)}
        if useful:
            fills = {v: fill for v, fill in fills.items() if fill}
        if not fills:
            return False
        worth = {v: sum(self.worth[s][b] * part for b, part in fill.items()) for v, fill in fills.items()}
        best = min(fills, key=lambda v: (-worth[v] / max(service.prices[v], 1e-9), service.prices[v], v))
        self.replicas[s][best] += 1
        for b, part in fills[best].items():
            self.unserved[s][b] -= part
        return True

    def _allowed(self, s: int, v: int) -> bool:
        service = self.problem.services[s]
        mix = self.replicas[s]
        more = [count + (1 if other == v else 0) for other, count in enumerate(mix)]
        if service.replicas_max is not None and sum(more) > service.replicas_max:
            return False
        if service.cost_cap is not None and service.cost(more) > service.cost_cap + LOAD_TOLERANCE:
            return False
        pool = service.variants[v].pool
        here = sum(count for variant, count in zip(service.variants, more, strict=True) if variant.pool == pool)
        if any(b.pool == pool and b.maximum is not None and here > b.maximum for b in service.pool_bounds):
            return False
        return all(
            service.gpus[v]
            + sum(limit.used_by(*pair) for pair in zip(self.problem.services, self.replicas, strict=True))
            <= limit.gpus
            for limit in self.problem.stock
            if limit.pool == pool and service.gpus[v] >= limit.group
        )


def _worth(service: ServiceProblem, b: int) -> float:
    return min(
        (max(price, 1e-9) * load for price, load in zip(service.prices, service.loads[b], strict=True)),
        default=math.inf,
    )


def _fill(service: ServiceProblem, v: int, unserved: Sequence[float], worth: Sequence[float]) -> dict[int, float]:
    """The parts of buckets that one more replica of v takes, by bucket."""
    order = sorted(
        (b for b, part in enumerate(unserved) if part > _SERVED and service.loads[b][v] < math.inf),
        key=lambda b: (-worth[b] / service.loads[b][v], b),
    )
    room = 1.0
    fill: dict[int, float] = {}
    for b in order:
        part = min(unserved[b], room / service.loads[b][v])
        if part <= 0:
            break
        fill[b] = part
        room -= part * service.loads[b][v]
    return fill
