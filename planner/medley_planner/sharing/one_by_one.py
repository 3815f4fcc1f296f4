"""A good plan of many services under shared stock, from programmes of one service each.

Where the joint programme is large, its solver may need longer than it is given. This plan is there before, and the
joint one has to beat it. It proves nothing.

- Pools of which the services want more than there is, each planned for itself, are *crowded*.
- A service's regret is what it would pay more without them; infinite where it cannot do without.
- Services are planned one by one, the highest priority first and within it the largest regret, each with the stock that
  is left.
- Then each is planned again with what the others leave, until none finds anything cheaper, or `_ROUNDS` are over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from medley_planner.fleet import Stock, Variant
from medley_planner.programme.cheapest import cheapest, least_price, solve_pruned
from medley_planner.programme.held import crowded_pools, remaining_stock
from medley_planner.programme.memo import Memo
from medley_planner.programme.milp import Goal, Limits
from medley_planner.programme.problem import FleetProblem, ServiceProblem, stock_limits

_ROUNDS = 3

Mix = tuple[int, ...]


def one_by_one(
    services: Sequence[ServiceProblem], stock: Mapping[str, Stock], limits: Limits, memo: Memo
) -> tuple[Mix, ...]:
    """Mixes within the stock; a service that finds no room serves what it can with what is left.

    Args:
        services: Services that share the stock.
        stock: What they share.
        limits: Gap and time of each small programme.
        memo: Keeps solutions by problem.
    """
    order = _by_regret(services, stock, limits, memo)
    mixes: list[Mix | None] = [None] * len(services)
    for _ in range(_ROUNDS):
        before = list(mixes)
        for s in order:
            solution = cheapest(_beside(services, stock, mixes, s), limits, memo)
            mixes[s] = solution.replicas[0] if solution.found else mixes[s]
        if mixes == before:
            break
    for s in order:
        if mixes[s] is None:
            partly = solve_pruned(_beside(services, stock, mixes, s), Goal.MOST_SERVED, limits, memo)
            mixes[s] = partly.replicas[0] if partly.found else None
    return tuple(mix or (0,) * len(service.variants) for mix, service in zip(mixes, services, strict=True))


def _by_regret(services: Sequence[ServiceProblem], stock: Mapping[str, Stock], limits: Limits, memo: Memo) -> list[int]:
    """Services of the highest priority first, then those with the most to lose; between equals, in their own order."""
    alone = [cheapest(FleetProblem((each,), stock_limits((each,), stock)), limits, memo) for each in services]
    held = [_held(each, found.replicas[0]) for each, found in zip(services, alone, strict=True) if found.found]
    crowded = crowded_pools(stock, held)
    regrets = []
    for s, (service, found) in enumerate(zip(services, alone, strict=True)):
        elsewhere = service.only(v for v, variant in enumerate(service.variants) if variant.pool not in crowded)
        without = math.inf
        if elsewhere.variants:
            without = least_price(FleetProblem((elsewhere,), stock_limits((elsewhere,), stock)), limits, memo).objective
        regret = without - found.objective if found.found else 0.0
        regrets.append((-service.priority, -regret, s))
    return [s for _, _, s in sorted(regrets)]


def _beside(
    services: Sequence[ServiceProblem], stock: Mapping[str, Stock], mixes: Sequence[Mix | None], s: int
) -> FleetProblem:
    """The problem of one service with the stock that the others leave."""
    others = [
        _held(service, mix)
        for other, (service, mix) in enumerate(zip(services, mixes, strict=True))
        if other != s and mix is not None
    ]
    return FleetProblem((services[s],), stock_limits((services[s],), remaining_stock(stock, others)))


def _held(service: ServiceProblem, mix: Mix) -> dict[Variant, int]:
    return dict(zip(service.variants, mix, strict=True))
