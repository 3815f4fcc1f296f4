"""The plan of a whole fleet: services, pools and what runs today in; an integer mix per service with its reasons out.

    validate → candidates and their capacities → who cannot be planned and keeps what runs → all others together under
    the stock that is left → an independent check → what other fleets would cost

The plan is a function of its arguments: the same fleet, in any order, gives the same plan
(as long as the solver ends before its time limit; where it does not, the plan's status says so).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from medley_planner.assemble import Prepared, Shortage, from_split, kept, planned
from medley_planner.capacities.capacity import capacities
from medley_planner.capacities.variants import CapacityFunction
from medley_planner.checking.check import Violation, check, check_unshared
from medley_planner.checking.validation import InvalidFleetError
from medley_planner.explaining.explain import explained
from medley_planner.fleet import FleetState, Formulation, PlanOptions, Role, Stock
from medley_planner.infeasible.budget import cost_limit, over_budget
from medley_planner.infeasible.diagnosis import Trouble, diagnose, nothing_fits
from medley_planner.infeasible.shortage import shortage
from medley_planner.outlook import Outlook, outlook
from medley_planner.programme.cheapest import within_bounds
from medley_planner.programme.goals import Lent
from medley_planner.programme.greedy import greedy
from medley_planner.programme.held import remaining_stock
from medley_planner.programme.lower_bound import fractional_bound, gap
from medley_planner.programme.melange import melange
from medley_planner.programme.memo import Memo
from medley_planner.programme.milp import Ending, Limits
from medley_planner.programme.problem import CostLimit, FleetProblem, ServiceProblem, stock_limits
from medley_planner.programme.split import serves_all
from medley_planner.result import FleetPlan, Outcome, ServicePlan, SolverStatus
from medley_planner.sharing.coalitions import Coalition, Sharing, alone_bound, share
from medley_planner.sharing.shadow import by_planning_again, from_prices

__all__ = ["DEFAULT_OPTIONS", "InvalidFleetError", "UnsoundPlanError", "explain_plan", "plan"]

DEFAULT_OPTIONS = PlanOptions()

ShareStock = Callable[[Mapping[str, ServiceProblem], Mapping[str, Stock], Limits, Memo, CostLimit | None], Sharing]


class UnsoundPlanError(RuntimeError):
    """Neither the solver's plan nor the greedy one passed the check: a mistake in the planner, and a reason to hold."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(f"{each.constraint} ({each.subject}): {each.detail}" for each in violations))
        self.violations = tuple(violations)


def plan(
    state: FleetState,
    options: PlanOptions = DEFAULT_OPTIONS,
    *,
    memo: Memo | None = None,
    capacity_of: CapacityFunction = capacities,
    helpers: Lent | None = None,
) -> FleetPlan:
    """Plan all services of a fleet together.

    Args:
        state: The fleet. The order of services and pools does not matter.
        options: How to plan.
        memo: What earlier calls worked out; only makes the same plan faster.
        capacity_of: What one replica sustains; by default, measurements and the roofline.
        helpers: Lends processes that search beside this one where many services compete for stock; only makes the
            same plan faster.

    Raises:
        InvalidFleetError: A value makes no sense; names the field.
        UnsoundPlanError: The planner made a mistake that its own check found.
    """
    memo = Memo() if memo is None else memo
    ready = outlook(state, options, capacity_of, memo, helpers)
    if options.formulation is Formulation.MELANGE:
        return _melange_plan(ready, options, memo)
    fleet_plan = plan_ready(ready, memo)
    if not options.explain:
        return fleet_plan
    if not fleet_plan.shadow_prices:
        worth = by_planning_again(ready, fleet_plan, lambda other: plan_ready(other, memo))
        fleet_plan = replace(fleet_plan, shadow_prices=worth)
    return explained(ready, fleet_plan, memo)


def explain_plan(
    state: FleetState,
    fleet_plan: FleetPlan,
    options: PlanOptions = DEFAULT_OPTIONS,
    *,
    only: Collection[str] | None = None,
    memo: Memo | None = None,
    capacity_of: CapacityFunction = capacities,
) -> FleetPlan:
    """A plan made with `explain=False`, with its explanation: what `plan` gives otherwise.

    Args:
        state: The fleet that was planned.
        fleet_plan: Its plan.
        options: How it was planned.
        only: Names of the services to explain; None is all.
        memo: What earlier calls worked out.
        capacity_of: What one replica sustains.

    Raises:
        InvalidFleetError: A value makes no sense; names the field.
    """
    memo = Memo() if memo is None else memo
    return explained(outlook(state, options, capacity_of, memo), fleet_plan, memo, only=only)


def plan_ready(ready: Outlook, memo: Memo) -> FleetPlan:
    """The plan of a fleet that was made ready, not explained: the solver's if it passes the check, else the greedy one.

    Raises:
        UnsoundPlanError: Neither passes.
    """
    fleet_plan = _decide(ready, share, memo)
    if not check(ready.state, fleet_plan, ready.capacity_of):
        return fleet_plan
    fallback = _decide(ready, _share_greedily, memo)
    violations = check(ready.state, fallback, ready.capacity_of)
    if violations:
        raise UnsoundPlanError(violations)
    return fallback


def _decide(ready: Outlook, share_stock: ShareStock, memo: Memo) -> FleetPlan:
    """Set aside who keeps what runs, until all others can share the stock that is left."""
    troubles = _set_aside(ready)
    while True:
        held = [ready.prepared[name].service.running for name in troubles]
        left = remaining_stock(ready.stock, held)
        deciding = {name: each for name, each in ready.prepared.items() if name not in troubles}
        found = {
            name: diagnose(each.service, each.problem, left, ready.limits, memo) for name, each in deciding.items()
        }
        new = {name: trouble for name, trouble in found.items() if trouble is not None}
        if not new:
            problems = {name: each.problem for name, each in deciding.items()}
            kept_services = [ready.prepared[name].service for name in troubles]
            money_left = cost_limit(ready.state.max_cost_usd_per_hour, kept_services, ready.pools)
            sharing = share_stock(problems, left, ready.limits, memo, money_left)
            new = _left_without_a_plan(ready, sharing, memo)
        if not new:
            return _assemble(ready, sharing, troubles, _Left(left, money_left), memo)
        troubles |= new


def _set_aside(ready: Outlook) -> dict[str, Trouble]:
    """Services of which nothing is to be decided, or of which some size fits nowhere."""
    troubles: dict[str, Trouble] = {}
    for name, each in ready.prepared.items():
        trouble = Trouble(Outcome.PINNED, "") if each.service.pinned else nothing_fits(each.service, each.candidates)
        if trouble is not None:
            troubles[name] = trouble
    return troubles


def _left_without_a_plan(ready: Outlook, sharing: Sharing, memo: Memo) -> dict[str, Trouble]:
    """Services for which the solver's time was too short, and the greedy plan does not serve everything."""
    message = f"The solver found no plan within {ready.limits.time_limit_s:g} s"
    return {
        name: Trouble(Outcome.TIME_LIMIT, message)
        for coalition in sharing.coalitions
        if coalition.ending is Ending.NOTHING_FOUND and not coalition.short
        for name, mix in zip(coalition.members, coalition.replicas, strict=True)
        if not serves_all(ready.prepared[name].problem, mix, memo)
        or not within_bounds(ready.prepared[name].problem, mix)
    }


def _share_greedily(
    services: Mapping[str, ServiceProblem],
    stock: Mapping[str, Stock],
    limits: Limits,
    memo: Memo,
    money_left: CostLimit | None = None,
) -> Sharing:
    """All services in one coalition, without a solver."""
    members = tuple(sorted(services))
    problems = tuple(services[name] for name in members)
    mixes = greedy(FleetProblem(problems, stock_limits(problems, stock), money_left))
    return Sharing((Coalition(members, mixes, bound=0.0, short=False, ending=Ending.NOTHING_FOUND),))


@dataclass(frozen=True)
class _Left:
    """What is left to share beside what is kept."""

    stock: Mapping[str, Stock]
    money: CostLimit | None


def _assemble(ready: Outlook, sharing: Sharing, troubles: Mapping[str, Trouble], left: _Left, memo: Memo) -> FleetPlan:
    plans: dict[str, ServicePlan] = {}
    bounds: list[float] = []
    nearest_cap: float | None = None
    for coalition in sharing.coalitions:
        members = [ready.prepared[name] for name in coalition.members]
        missing, nearest = _missing(ready, members, coalition, left, memo)
        nearest_cap = nearest_cap if nearest is None else nearest
        alone = _alone_bounds(members, coalition, ready, memo)
        for each, mix, bound in zip(members, coalition.replicas, alone, strict=True):
            plans[each.service.name] = planned(each, mix, bound, missing.get(each.service.name), memo)
        bounds.append(0.0 if coalition.short else max(coalition.bound, math.fsum(alone)))
    for name, trouble in troubles.items():
        each = ready.prepared[name]
        plans[name] = kept(each, trouble, ready.pools, _lower_bound(each, ready, memo), memo)
        bounds.append(plans[name].expected_usd_per_hour)
    found = _fleet_plan([plans[name] for name in sorted(plans)], math.fsum(bounds), _status(sharing))
    prices = [price for coalition in sharing.coalitions for price in coalition.prices]
    return replace(found, nearest_feasible_cap_usd_per_hour=nearest_cap, shadow_prices=from_prices(prices))


def _missing(
    ready: Outlook, members: Sequence[Prepared], coalition: Coalition, left: _Left, memo: Memo
) -> tuple[Mapping[str, Shortage], float | None]:
    """What keeps members of a coalition from being served, by name; and the fleet's cap that would do."""
    if not coalition.short:
        return {}, None
    cap = ready.state.max_cost_usd_per_hour
    if cap is not None and left.money is not None:
        over = over_budget(
            members,
            coalition,
            left.stock,
            cap_usd_per_hour=cap,
            left=left.money,
            limits=ready.limits,
            memo=memo,
        )
        if over is not None:
            return over.shortages, over.nearest_cap_usd_per_hour
    short = shortage(members, coalition, left.stock, pools=ready.pools, limits=ready.limits, memo=memo)
    return {name: Shortage(Outcome.STOCK_SHORT, message) for name, message in short.items()}, None


def _alone_bounds(members: Sequence[Prepared], coalition: Coalition, ready: Outlook, memo: Memo) -> list[float]:
    """Of each member: proven, alone with all stock, serving everything costs no less."""
    if not coalition.alone:
        return [_lower_bound(each, ready, memo) for each in members]
    return list(coalition.alone)


def _lower_bound(each: Prepared, ready: Outlook, memo: Memo) -> float:
    """Proven: alone with all stock, serving everything costs no less; −∞ where that is not possible."""
    fractional = fractional_bound(each.problem)
    if math.isinf(fractional):
        return -math.inf
    return max(fractional, alone_bound(each.problem, ready.stock, ready.limits, memo))


def _status(sharing: Sharing) -> SolverStatus:
    endings = {coalition.ending for coalition in sharing.coalitions}
    if Ending.NOTHING_FOUND in endings:
        return SolverStatus.HEURISTIC
    return SolverStatus.TIME_LIMIT if Ending.TIME_LIMIT in endings else SolverStatus.OPTIMAL


def _fleet_plan(plans: Sequence[ServicePlan], lower_bound: float, status: SolverStatus) -> FleetPlan:
    cost = math.fsum(each.cost_usd_per_hour for each in plans)
    risk = math.fsum(each.risk_usd_per_hour for each in plans)
    bound = max(0.0, min(lower_bound, cost + risk))
    gpus: dict[str, int] = {}
    for each in plans:
        for entry in each.mix:
            gpus[entry.variant.pool] = gpus.get(entry.variant.pool, 0) + entry.gpus
    return FleetPlan(
        services=tuple(plans),
        cost_usd_per_hour=cost,
        lower_bound_usd_per_hour=bound,
        gap=gap(cost + risk, bound),
        status=status,
        gpus_by_pool=tuple(sorted(gpus.items())),
        reserved_usd_per_hour=math.fsum(each.reserved_usd_per_hour for each in plans),
        risk_usd_per_hour=risk,
    )


def _melange_plan(ready: Outlook, options: PlanOptions, memo: Memo) -> FleetPlan:
    """Each service alone by Mélange's programme, at list prices; stock, caps, bounds and spread are not looked at."""
    plans, bounds, optimal = [], [], True
    for name, prepared in ready.prepared.items():
        each = _as_melange_has_it(prepared)
        trouble = _set_aside(replace(ready, prepared={name: each})).get(name)
        listed = tuple(candidate.price_usd_per_hour for candidate in each.candidates.usable)
        priced = replace(each.problem, prices=listed)
        mix = None if trouble else melange(priced, options.slice_factor, ready.limits)
        if mix is None:
            trouble = trouble or Trouble(
                Outcome.TIME_LIMIT, f"The solver found no plan within {options.time_limit_s:g} s"
            )
            plans.append(kept(each, trouble, ready.pools, -math.inf, memo))
            bounds.append(plans[-1].expected_usd_per_hour)
            continue
        optimal = optimal and mix.optimal
        plans.append(from_split(each, mix.replicas, mix.split, fractional_bound(each.problem), None))
        bounds.append(mix.bound)
    status = SolverStatus.OPTIMAL if optimal else SolverStatus.TIME_LIMIT
    fleet_plan = _fleet_plan(plans, math.fsum(bounds), status)
    violations = check_unshared(ready.state, fleet_plan, ready.capacity_of)
    if violations:
        raise UnsoundPlanError(violations)
    return fleet_plan


def _as_melange_has_it(prepared: Prepared) -> Prepared:
    """The service without replicas that compute only a part of a request."""
    shared = [v for v, variant in enumerate(prepared.problem.variants) if variant.role is Role.SHARED]
    usable = tuple(prepared.candidates.usable[v] for v in shared)
    return replace(
        prepared,
        candidates=replace(prepared.candidates, usable=usable),
        problem=prepared.problem.only(shared),
    )
