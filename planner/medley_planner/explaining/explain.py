"""Why this mix: what binds it, what other fleets would cost, and what keeps every other variant out.

All of it holds with the stock, and the part of the fleet's price cap, that the other services leave.
The answers are small programmes of one service each.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from medley_planner.explaining.alternatives import alternatives
from medley_planner.explaining.binding import View, binding
from medley_planner.explaining.rejections import not_chosen
from medley_planner.fleet import Variant
from medley_planner.outlook import Outlook
from medley_planner.programme.held import remaining_stock
from medley_planner.programme.memo import Memo
from medley_planner.programme.problem import CostLimit
from medley_planner.result import FleetPlan, Outcome, ServicePlan
from medley_planner.wording import mix_text, money, percent

_WORTH_TELLING_USD = 0.005


def explained(ready: Outlook, fleet_plan: FleetPlan, memo: Memo, *, only: Collection[str] | None = None) -> FleetPlan:
    """The plan with the explanation of these services, or of all."""
    return replace(
        fleet_plan,
        services=tuple(
            explain(ready, fleet_plan, each.name, memo) if only is None or each.name in only else each
            for each in fleet_plan.services
        ),
    )


def explain(ready: Outlook, fleet_plan: FleetPlan, name: str, memo: Memo) -> ServicePlan:
    """The plan of one service with its binding constraints, alternatives and rejections, and its sentence completed."""
    its_plan = fleet_plan.service(name)
    others = [other for other in fleet_plan.services if other.name != name]
    held: list[Mapping[Variant, int]] = [{entry.variant: entry.replicas for entry in other.mix} for other in others]
    cap = ready.state.max_cost_usd_per_hour
    view = View(
        prepared=ready.prepared[name],
        plan=its_plan,
        pools=ready.pools,
        stock=remaining_stock(ready.stock, held),
        money=None
        if cap is None
        else CostLimit(max(0.0, cap - math.fsum(other.cost_usd_per_hour for other in others))),
        limits=ready.limits,
        memo=memo,
    )
    explained_plan = replace(
        its_plan,
        binding=its_plan.binding or (tuple(binding(view)) if its_plan.outcome is Outcome.PLANNED else ()),
        alternatives=alternatives(view) if its_plan.outcome is not Outcome.NO_GPU_FITS else (),
        rejected=tuple(sorted((*its_plan.rejected, *not_chosen(view)), key=lambda each: each.variant)),
    )
    return replace(
        explained_plan, reason=its_plan.reason + _beside_the_bill(its_plan) + _against_single(explained_plan)
    )


def _beside_the_bill(plan: ServicePlan) -> str:
    """What decides, or is paid, but is not what the mix adds to the bill."""
    parts = ""
    if plan.reserved_usd_per_hour > _WORTH_TELLING_USD:
        parts += f"; its reserved GPUs, {money(plan.reserved_usd_per_hour)}, are paid for anyhow"
    if plan.risk_usd_per_hour > _WORTH_TELLING_USD:
        parts += f"; interruptions are expected to cost {money(plan.risk_usd_per_hour)} more"
    return parts


def _against_single(plan: ServicePlan) -> str:
    """How the mix compares with the best pool alone; empty where the mix is that pool."""
    if plan.outcome is not Outcome.PLANNED or len({entry.variant.pool for entry in plan.mix}) < 2:
        return ""
    single = [each for each in plan.alternatives if each.name.startswith("only ") and each.cost_usd_per_hour]
    if not single:
        return "; no pool alone could serve it"
    best = single[0]
    cost = best.cost_usd_per_hour or 0.0
    saved = (cost - plan.cost_usd_per_hour) / cost
    compared = f"; the best single pool, {mix_text(best.mix)}, would cost {money(cost)}"
    return f"{compared}: {percent(saved)} saved" if saved >= 0 else compared
