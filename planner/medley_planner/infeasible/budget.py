"""What a price cap of the whole fleet leaves for each service, and which cap would do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from medley_planner.assemble import Prepared, Shortage
from medley_planner.fleet import CapacityType, Pool, Service, Stock
from medley_planner.programme.cheapest import within_bounds
from medley_planner.programme.memo import Memo
from medley_planner.programme.milp import Limits
from medley_planner.programme.problem import CostLimit
from medley_planner.programme.split import serves_all
from medley_planner.result import Outcome
from medley_planner.sharing.coalitions import Coalition, share
from medley_planner.wording import money

_CAP_STEPS_PER_USD = 10_000


@dataclass(frozen=True)
class OverBudget:
    """A fleet whose price cap does not pay for all.

    Args:
        nearest_cap_usd_per_hour: The lowest cap that would do, what is kept included; rounded up to 10⁻⁴ $/h. For a
            large fleet, the bill of the best plan that was found in time, which would do as well.
        shortages: By name of each service that goes short.
    """

    nearest_cap_usd_per_hour: float
    shortages: Mapping[str, Shortage]


def cost_limit(cap_usd_per_hour: float | None, kept: Sequence[Service], pools: Mapping[str, Pool]) -> CostLimit | None:
    """What is left of the fleet's price cap beside services that keep what runs; None without a cap.

    Args:
        cap_usd_per_hour: The cap.
        kept: Services whose replicas stay as they are.
        pools: All pools by name; a pool that is gone has no price.
    """
    if cap_usd_per_hour is None:
        return None
    return CostLimit(max(0.0, cap_usd_per_hour - math.fsum(_bill(service, pools) for service in kept)))


def _bill(service: Service, pools: Mapping[str, Pool]) -> float:
    return math.fsum(
        count * variant.gpus * pools[variant.pool].price_usd_per_gpu_hour
        for variant, count in sorted(service.running.items())
        if variant.pool in pools and pools[variant.pool].capacity_type is not CapacityType.RESERVED
    )


def over_budget(
    members: Sequence[Prepared],
    coalition: Coalition,
    stock: Mapping[str, Stock],
    *,
    cap_usd_per_hour: float,
    left: CostLimit,
    limits: Limits,
    memo: Memo,
) -> OverBudget | None:
    """Why not everything is served, where it is the fleet's price cap; None where stock is short even without it.

    Args:
        members: The services that share what the cap leaves.
        coalition: What was found for them.
        stock: What they share.
        cap_usd_per_hour: The fleet's cap.
        left: What it leaves beside what is kept.
        limits: Gap and time of a solve.
        memo: Keeps solutions by problem.
    """
    by_bill = {each.service.name: replace(each.problem.fresh(), prices=each.problem.billed) for each in members}
    least = share(by_bill, stock, limits, memo)
    whole = not any(part.short for part in least.coalitions) and all(
        within_bounds(by_bill[name], mix) and serves_all(by_bill[name], mix, memo) for name, mix in least.mixes.items()
    )
    if not whole:
        return None
    bill = math.fsum(by_bill[name].bill(mix) for name, mix in least.mixes.items())
    kept = cap_usd_per_hour - left.usd_per_hour
    nearest = math.ceil((bill + kept) * _CAP_STEPS_PER_USD - 1e-3) / _CAP_STEPS_PER_USD
    message = f"the fleet's price cap of {money(cap_usd_per_hour)} is too low: {money(nearest)} would do"
    short = {
        each.service.name: Shortage(Outcome.FLEET_CAP_TOO_LOW, message)
        for each, mix in zip(members, coalition.replicas, strict=True)
        if not (within_bounds(each.problem, mix) and serves_all(each.problem, mix, memo))
    }
    return OverBudget(nearest, short)
