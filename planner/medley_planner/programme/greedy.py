"""A plan without a solver: replica by replica, the one that serves the most for its price.

Used where the solver's time ended before it found anything, or what it found did not pass the check.
It keeps stock, caps, upper bounds and shares always, and serves what it can; it proves nothing. It looks only at
replicas that compute whole requests, and at no spot where a share of spot is given or its loss must be survived.

A bucket is worth what it costs at least in fractions of replicas, p[b] = min_v c[v]·ℓ[b,v].
One more replica of v takes the unserved parts of buckets with the most worth per load p[b] / ℓ[b,v] first, until it
is full (the fractional knapsack, which that order solves exactly). The replica with the most worth per dollar is added.
Where a pool then has more than its share of the replicas, cheap ones are added elsewhere, or some of its own removed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from medley_planner.fleet import Role
from medley_planner.programme.problem import LOAD_TOLERANCE, CountRow, FleetProblem, ServiceProblem

_SERVED = 1e-9
_SHARES = ("spot_share", "pool_share")


def greedy(problem: FleetProblem) -> tuple[tuple[int, ...], ...]:
    """Replicas by service and variant, within stock, caps and upper bounds."""
    fleet = _Fleet(problem)
    for s in range(len(problem.services)):
        fleet.reach_minima(s)
    for s in range(len(problem.services)):
        fleet.serve(s)
        fleet.spread(s)
    return tuple(tuple(mix) for mix in fleet.replicas)


class _Fleet:
    """Mixes that grow within what is allowed."""

    def __init__(self, problem: FleetProblem) -> None:
        self.problem = problem
        self.replicas = [[0] * len(service.variants) for service in problem.services]
        self.unserved = [[1.0] * len(service.loads) for service in problem.services]
        self.looked_at = [_looked_at(service) for service in problem.services]
        self.worth = [
            [_worth(service, b, variants) for b in range(len(service.loads))]
            for service, variants in zip(problem.services, self.looked_at, strict=True)
        ]

    def reach_minima(self, s: int) -> None:
        service = self.problem.services[s]
        for bounds in service.pool_bounds:
            for _ in range(bounds.minimum):
                self._add_best(s, [v for v in self.looked_at[s] if service.variants[v].pool == bounds.pool])
        while sum(self.replicas[s]) < service.replicas_min and self._add_best(s, self.looked_at[s]):
            pass

    def serve(self, s: int) -> None:
        while any(part > _SERVED for part in self.unserved[s]):
            if not self._add_best(s, self.looked_at[s], useful=True):
                return

    def spread(self, s: int) -> None:
        """Add cheap replicas elsewhere while a pool has too large a share, or remove its own where none may be."""
        service, mix = self.problem.services[s], self.replicas[s]
        more = sum(service.useful)
        while broken := [row for row in service.rows if row.constraint in _SHARES and not row.holds(mix)]:
            elsewhere = [v for v in self.looked_at[s] if all(row.weights[v] < 0 for row in broken)]
            elsewhere = [v for v in elsewhere if more > 0 and self._allowed(s, v)]
            if elsewhere:
                more -= 1
                mix[min(elsewhere, key=lambda v: (service.prices[v], v))] += 1
            else:
                mix[max(v for v, count in enumerate(mix) if count > 0 and broken[0].weights[v] > 0)] -= 1

    def _add_best(self, s: int, variants: Sequence[int], *, useful: bool = False) -> bool:
        """Add the replica with the most worth per dollar; False where none is allowed, or none serves anything."""
        service = self.problem.services[s]
        fills = {
            v: _fill(service, v, self.replicas[s][v], self.unserved[s], self.worth[s])
            for v in variants
            if self._allowed(s, v)
        }
        if useful:
            fills = {v: fill for v, fill in fills.items() if fill}
        if not fills:
            return False
        worth = {v: sum(self.worth[s][b] * part for b, part in fill.items()) for v, fill in fills.items()}
        best = min(fills, key=lambda v: (-worth[v] / max(service.prices[v], 1e-9), service.prices[v], v))
        count = self._at_once(s, best, fills[best]) if useful else 1
        self.replicas[s][best] += count
        for b, part in fills[best].items():
            self.unserved[s][b] -= count * part
        return True

    def _at_once(self, s: int, v: int, fill: Mapping[int, float]) -> int:
        """How many replicas to add in one go: half of those that would take the same parts one after the other."""
        count = max(1, int(min(self.unserved[s][b] / part for b, part in fill.items())) // 2)
        while count > 1 and not self._allowed(s, v, count):
            count //= 2
        return count

    def _allowed(self, s: int, v: int, count: int = 1) -> bool:
        service = self.problem.services[s]
        more = [here + (count if other == v else 0) for other, here in enumerate(self.replicas[s])]
        if not all(row.holds(more) for row in service.rows if _limits(row)):
            return False
        mixes = [more if other == s else mix for other, mix in enumerate(self.replicas)]
        return all(
            sum(limit.used_by(*pair) for pair in zip(self.problem.services, mixes, strict=True))
            <= limit.most + LOAD_TOLERANCE
            for limit in self.problem.shared
            if limit.weights(service)[v] > 0
        )


def _limits(row: CountRow) -> bool:
    """Whether adding replicas can break the row for good."""
    return row.upper is not None and row.constraint not in _SHARES


def _looked_at(service: ServiceProblem) -> tuple[int, ...]:
    rules = service.availability
    shuns = service.spot_pools if rules.spot_max_share < 1.0 or rules.survivable_share > 0.0 else ()
    return tuple(
        v for v, variant in enumerate(service.variants) if variant.role is Role.SHARED and variant.pool not in shuns
    )


def _worth(service: ServiceProblem, b: int, variants: Sequence[int]) -> float:
    return min((max(service.prices[v], 1e-9) * service.loads[b][v] for v in variants), default=math.inf)


def _fill(
    service: ServiceProblem, v: int, present: int, unserved: Sequence[float], worth: Sequence[float]
) -> dict[int, float]:
    """The parts of buckets that one more replica of v beside those present takes, by bucket."""
    order = sorted(
        (b for b, part in enumerate(unserved) if part > _SERVED and service.loads[b][v] < math.inf),
        key=lambda b: (-worth[b] / service.loads[b][v], b),
    )
    room = service.usable(v, present + 1) - service.usable(v, present)
    fill: dict[int, float] = {}
    for b in order:
        part = min(unserved[b], room / service.loads[b][v])
        if part <= 0:
            break
        fill[b] = part
        room -= part * service.loads[b][v]
    return fill
