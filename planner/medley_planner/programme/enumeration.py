"""The cheapest mix of one service where there are few mixes to choose from: all of them in one array.

A service that one variant alone can serve costs no more than that. With a handful of variants and replicas, the mixes
that cost less are some hundred or thousand, and the cuts of `serving.py` leave few of them:

1. drop those that break a bound, a share, a cap, a shared limit or a known cut;
2. ask whether the cheapest that is left, of equals the one with the fewest replicas, can serve: if so, it is the
   optimum, since all cheaper ones are proven not to;
3. else that gives a cut, which drops it and others; again, until none are left, and the single variant is the optimum.

No search tree is needed, and the answer is exact. Where there are more mixes, the programme is solved.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from medley_planner.programme.by_cuts import stepped
from medley_planner.programme.dominance import one_variant_suffices
from medley_planner.programme.goals import Ending, Solution
from medley_planner.programme.problem import LOAD_TOLERANCE, TIE_USD_PER_GPU_HOUR, FleetProblem, ServiceProblem
from medley_planner.programme.serving import Serving
from medley_planner.programme.sparse import Array

_MOST_MIXES = 20_000
_MOST_ASKED = 200
_EQUAL, _DIGITS = 1e-9, 9

Mixes = npt.NDArray[np.int64]


def enumerated(problem: FleetProblem) -> Solution | None:
    """The cheapest mix of the only service, change included; None where there are too many to look at, or no single
    variant can serve.

    Args:
        problem: One service, and what limits it.
    """
    (service,) = problem.services
    costs = _Costs(service)
    alone = of_one_variant(problem)
    if not len(alone):
        return None
    first = alone[np.argmin(np.round(costs.of(alone), _DIGITS))]
    most = costs.of(first[None])[0]
    mixes = _cheaper(service, costs, most)
    if mixes is None:
        return None
    mixes = mixes[_allowed(problem, mixes)]
    prices = costs.of(mixes)
    order = np.lexsort((mixes.sum(axis=1), np.round(prices, _DIGITS)))
    order = order[prices[order] < most - _EQUAL]
    return _first_that_serves(service, mixes[order], prices[order], costs, first)


def _first_that_serves(
    service: ServiceProblem, mixes: Mixes, prices: Array, costs: _Costs, otherwise: Mixes
) -> Solution | None:
    """The first of these mixes that can serve, else the one that is known to; None where that takes too many tries."""
    serving = Serving(service)
    near = np.maximum(costs.each, _EQUAL)
    usable = _usable(service, mixes)
    cuts = serving.at_prices(near)
    for _ in range(_MOST_ASKED):
        for cut in cuts:
            kept = usable @ cut.weights >= cut.least * (1.0 - _EQUAL)
            mixes, prices, usable = mixes[kept], prices[kept], usable[kept]
        if not len(mixes):
            return _solution(otherwise, float(costs.of(otherwise[None])[0]))
        cuts = serving.broken(usable[0], near=near)
        if not cuts:
            return _solution(mixes[0], float(prices[0]))
    return None


def _solution(mix: Mixes, price: float) -> Solution:
    return Solution(Ending.OPTIMAL, (tuple(int(count) for count in mix),), objective=price, bound=price)


class _Costs:
    """What mixes cost: prices, the tie-break of GPUs, and the change from what runs."""

    def __init__(self, service: ServiceProblem) -> None:
        self.each = np.array(service.prices) + TIE_USD_PER_GPU_HOUR * np.array(service.gpus)
        self._running = np.array(service.running)
        self._switching = np.array(service.switching)

    def of(self, mixes: Mixes) -> Array:
        """USD per hour of each mix."""
        return np.asarray(mixes @ self.each + np.maximum(mixes - self._running, 0) @ self._switching)


def of_one_variant(problem: FleetProblem) -> Mixes:
    """The mixes of a single variant that serve everything within all limits, one in a row; there may be none."""
    (service,) = problem.services
    needed = [one_variant_suffices(service.only((v,)), 0) for v in range(len(service.variants))]
    mixes = np.diag(np.array([count or 0 for count in needed], dtype=np.int64))
    serves = np.array([count is not None for count in needed], dtype=bool)
    return np.asarray(mixes[serves & _allowed(problem, mixes)])


def _cheaper(service: ServiceProblem, costs: _Costs, most: float) -> Mixes | None:
    """Mixes that cost no more, in lexicographic order; None where there are too many."""
    bounds = [
        useful if each <= 0.0 else min(useful, math.floor(most / each + _EQUAL))
        for useful, each in zip(service.useful, costs.each.tolist(), strict=True)
    ]
    if math.prod(bound + 1 for bound in bounds) > _MOST_MIXES:
        return None
    grid = np.indices([bound + 1 for bound in bounds]).reshape(len(bounds), -1).T
    return np.asarray(grid[grid @ costs.each <= most])


def _allowed(problem: FleetProblem, mixes: Mixes) -> npt.NDArray[np.bool_]:
    """Which mixes keep the rows of the service and what limits it from outside."""
    (service,) = problem.services
    allowed = np.ones(len(mixes), dtype=bool)
    for row in service.rows:
        value = mixes @ np.array(row.weights)
        if row.lower is not None:
            allowed &= value >= row.lower - LOAD_TOLERANCE
        if row.upper is not None:
            allowed &= value <= row.upper + LOAD_TOLERANCE
    for limit in problem.shared:
        allowed &= mixes @ np.array(limit.weights(service)) <= limit.most + LOAD_TOLERANCE
    return allowed


def _usable(service: ServiceProblem, mixes: Mixes) -> Array:
    """What the replicas of each mix can be loaded with, by variant."""
    if not service.queues or not len(mixes):
        return mixes.astype(np.float64)
    counts = range(int(mixes.max()) + 1)
    columns = []
    for v in range(len(service.variants)):
        alone = service.only((v,))
        table = np.array([stepped(alone, (count,))[0] for count in counts])
        columns.append(table[mixes[:, v]])
    return np.stack(columns, axis=1)
