"""Shadow prices: what one more GPU of a pool would be worth to the fleet.

Where services were planned at prices of what they share (`decompose.py`), those prices say it: to first order, one more
unit of a limit lowers the least cost by its price. Otherwise the fleet is planned once more with one more GPU in each
pool of which nothing is left, which says it exactly: money where everything is served, else requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from medley_planner.fleet import FleetState, Pool, Stock
from medley_planner.outlook import Outlook
from medley_planner.programme.held import remaining_stock
from medley_planner.programme.problem import SharedLimit, StockLimit
from medley_planner.result import FleetPlan, Outcome, ShadowPrice
from medley_planner.wording import money, plural, rate

_WORTH_USD = 5e-4
_WORTH_RPS = 1e-6


def from_prices(prices: Iterable[tuple[SharedLimit, float]]) -> tuple[ShadowPrice, ...]:
    """The shadow prices that a decomposition found, by pool: one more GPU counts in groups of every size."""
    by_pool: dict[str, float] = {}
    for limit, usd_per_hour in prices:
        if isinstance(limit, StockLimit):
            by_pool[limit.pool] = by_pool.get(limit.pool, 0.0) + usd_per_hour
    return tuple(
        ShadowPrice(pool, worth, 0.0, f"one more GPU of {pool} would save about {money(worth)}")
        for pool, worth in sorted(by_pool.items())
        if worth > _WORTH_USD
    )


def by_planning_again(
    ready: Outlook, fleet_plan: FleetPlan, plan_again: Callable[[Outlook], FleetPlan]
) -> tuple[ShadowPrice, ...]:
    """What the smallest addition that some replica can use would be worth, by pool of which nothing is left.

    Args:
        ready: The fleet.
        fleet_plan: Its plan.
        plan_again: Plans another fleet in the same way.
    """
    left = remaining_stock(
        ready.stock, [{entry.variant: entry.replicas for entry in each.mix} for each in fleet_plan.services]
    )
    rates_rps = {each.name: each.rate_rps for each in ready.state.services}
    found = []
    for name, pool in ready.pools.items():
        sizes = {
            candidate.gpus
            for each in ready.prepared.values()
            for candidate in each.candidates.usable
            if candidate.variant.pool == name
        }
        if sizes and left[name].in_groups_of(min(sizes)) < min(sizes):
            again = plan_again(_with_more(ready, pool, min(sizes)))
            worth = _worth(fleet_plan, again, rates_rps, name, min(sizes))
            found += [worth] if worth is not None else []
    return tuple(found)


def _with_more(ready: Outlook, pool: Pool, gpus: int) -> Outlook:
    more = Stock({size: held + (gpus if size <= gpus else 0) for size, held in pool.stock.gpus_in_groups_of.items()})
    pools = {**ready.pools, pool.name: replace(pool, stock=more)}
    state: FleetState = replace(ready.state, pools=tuple(pools.values()))
    return replace(ready, state=state, pools=pools)


def _worth(
    before: FleetPlan, after: FleetPlan, rates_rps: Mapping[str, float], pool: str, gpus: int
) -> ShadowPrice | None:
    saved = (before.expected_usd_per_hour - after.expected_usd_per_hour) / gpus
    served = math.fsum(
        rates_rps[each.name] * (after.service(each.name).served_share - each.served_share)
        for each in before.services
        if each.outcome is Outcome.STOCK_SHORT
    )
    more = f"{plural(gpus, 'more GPU')} of {pool}"
    if served > _WORTH_RPS:
        return ShadowPrice(pool, saved, served / gpus, f"{more} would serve {rate(served)} more")
    if saved > _WORTH_USD:
        return ShadowPrice(pool, saved, 0.0, f"{more} would save {money(saved * gpus)}")
    return None
