"""From plans to decisions: which services change their mix now, which wait, and why the others keep what they have.

Deciding takes two plans. The first says what would be best for all. The second keeps the services that do not change
as they are, so that the mixes of those that do fit beside them. Where that leaves a service that must change without
the GPUs that the first plan found for it, those that can serve as much on other GPUs make room; nobody is made to
serve less than it does.

New replicas serve before old ones drain, so a change for price alone also has to find room for both at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from medley_planner.capacities.capacity import capacities
from medley_planner.capacities.variants import CapacityFunction
from medley_planner.checking.check import DECIDED, check_mix
from medley_planner.explaining.explain import explained
from medley_planner.fleet import FleetState, PlanOptions, Pool, Variant
from medley_planner.outlook import outlook
from medley_planner.plan import DEFAULT_OPTIONS, plan_ready
from medley_planner.programme.held import crowded_pools
from medley_planner.programme.lower_bound import gap
from medley_planner.programme.memo import Memo
from medley_planner.result import FleetPlan, MixEntry, Outcome, ServicePlan, SolverStatus
from medley_planner.verdicts import (
    Case,
    Choice,
    Standing,
    Verdict,
    counts,
    first_verdict,
    from_to,
    given_up,
    may_make_room,
    same_mix,
)
from medley_planner.wording import listed, mix_text, money, rate

__all__ = ["Choice", "Decision", "FleetDecision", "Standing", "plan_and_decide"]


@dataclass(frozen=True)
class Decision:
    """What to do with one service, and why.

    Args:
        service: Its name.
        choice: What to do.
        reason: One searchable word: `FirstPlan`, `SpecChanged`, `StockLost`, `PoolNotAllowed`, `DemandNotServed`,
            `BoundsViolated`, `CostCapExceeded`, `MakesRoom`,
            `CheaperMix`, `SavingTooSmall`, `Stabilizing`, `NoRoomToSurge`, `RecommendOnly`, `StockShort`, `Infeasible`,
            `SolverTimeLimit`, `Pinned`, `Unchanged`.
        message: One sentence for people, with figures.
        target: Replicas by variant that should be asked for from now on, sorted, none zero. What runs, unless
            `choice` is CHANGE.
        plan: The plan of `target`: what to report as the service's plan.
        candidate: The plan that would be carried out if nothing held it back, where it differs from `plan`.
        candidate_since_s: To be remembered in `Standing` for the next decision.
        wake_at_s: When to decide again at the latest, though nothing else happens; None is never.
    """

    service: str
    choice: Choice
    reason: str
    message: str
    target: tuple[tuple[Variant, int], ...]
    plan: ServicePlan
    candidate: ServicePlan | None = None
    candidate_since_s: float | None = None
    wake_at_s: float | None = None


@dataclass(frozen=True)
class FleetDecision:
    """The decisions for all services of a fleet, sorted by service, and the fleet's plan with the keepers kept."""

    plan: FleetPlan
    decisions: tuple[Decision, ...]

    def of(self, service: str) -> Decision:
        """The decision for this service; KeyError where there is none."""
        for decision in self.decisions:
            if decision.service == service:
                return decision
        raise KeyError(service)


def plan_and_decide(
    state: FleetState,
    standings: Mapping[str, Standing],
    *,
    now_s: float,
    options: PlanOptions = DEFAULT_OPTIONS,
    memo: Memo | None = None,
    capacity_of: CapacityFunction = capacities,
) -> FleetDecision:
    """Plan the fleet, decide which services change now, and plan again with the others kept as they are.

    `Service.running` is the mix asked for now (the target of a transition that is under way).

    Args:
        state: The fleet.
        standings: By service name; a service without one is new.
        now_s: The time, on the clock of `candidate_since_s`.
        options: How to plan.
        memo: What earlier calls worked out.
        capacity_of: What one replica sustains.

    Raises:
        InvalidFleetError: A value of the fleet makes no sense; names the field.
        UnsoundPlanError: The planner made a mistake that its own check found: hold.
    """
    memo = Memo() if memo is None else memo
    ready = outlook(state, options, capacity_of, memo)

    def plan_with(keepers: Collection[str]) -> FleetPlan:
        return plan_ready(ready.pinning(keepers), memo)

    best = plan_with(())
    as_is = plan_with([service.name for service in state.services])
    cases = [
        Case(
            service=service,
            standing=standings.get(service.name, Standing(planned=False)),
            now=as_is.service(service.name),
            candidate=best.service(service.name),
            wrong=check_mix(state, as_is, service.name),
        )
        for service in sorted(state.services, key=lambda service: service.name)
    ]
    verdicts = {case.service.name: first_verdict(case, now_s) for case in cases}
    verdicts |= _without_room(cases, verdicts, state.pools)
    final, verdicts = _settle(cases, verdicts, plan_with)
    reported = _reported(best, final, cases, verdicts)
    if options.explain:
        reported = explained(ready, reported, memo)
    decisions = tuple(
        _decision(case, verdicts[case.service.name], reported.service(case.service.name)) for case in cases
    )
    return FleetDecision(reported, decisions)


def _settle(
    cases: Sequence[Case], verdicts: dict[str, Verdict], plan_with: Callable[[Collection[str]], FleetPlan]
) -> tuple[FleetPlan, dict[str, Verdict]]:
    """Plan with the keepers kept, until the plan and the verdicts agree.

    A change that has become pointless beside the keepers is given up. One that the keepers leave no room for, though
    there is a plan for all, makes them change too. Each service is turned at most once in either direction, so this
    ends.
    """
    gave_up: set[str] = set()
    while True:
        keepers = [name for name, each in verdicts.items() if each.choice is not Choice.CHANGE]
        final = plan_with(keepers)
        pointless = {
            case.service.name: verdict
            for case in cases
            if verdicts[case.service.name].choice is Choice.CHANGE
            and (verdict := given_up(case, final.service(case.service.name), verdicts[case.service.name]))
        }
        crowded_out = any(
            final.service(case.service.name).served_share < case.candidate.served_share
            for case in cases
            if verdicts[case.service.name].choice is Choice.CHANGE
        )
        making_room = {
            case.service.name: Verdict(
                Choice.CHANGE, "MakesRoom", f"{from_to(case)}, so that the GPUs serve another service as well"
            )
            for case in cases
            if crowded_out and case.service.name not in gave_up and may_make_room(case, verdicts[case.service.name])
        }
        if making_room:
            verdicts = verdicts | making_room
        elif pointless:
            verdicts = verdicts | pointless
            gave_up |= set(pointless)
        else:
            return final, verdicts


def _without_room(cases: Sequence[Case], verdicts: Mapping[str, Verdict], pools: Iterable[Pool]) -> dict[str, Verdict]:
    """Changes for price alone whose new replicas find no room beside all that runs and all that is about to change.

    The one that saves most comes first. A change that is due anyway is not held back: it takes what room there is.
    """
    stock = {pool.name: pool.stock for pool in pools}
    room: dict[str, Mapping[Variant, int]] = {case.service.name: case.service.running for case in cases}
    changing = [case for case in cases if verdicts[case.service.name].choice is Choice.CHANGE]
    for_price = [case for case in changing if verdicts[case.service.name].reason == "CheaperMix"]
    room |= {case.service.name: _both(case) for case in changing if case not in for_price}
    refused: dict[str, Verdict] = {}
    for case in sorted(for_price, key=lambda each: (-each.saved_usd_per_hour, each.service.name)):
        beside = {**room, case.service.name: _both(case)}
        grows = {entry.variant.pool for entry in case.candidate.mix if _added(case, entry) > 0}
        crowded = sorted(grows & crowded_pools(stock, beside.values()))
        if not crowded:
            room = beside
            continue
        message = (
            f"{from_to(case)} would save {money(case.saved_usd_per_hour)}, "
            f"but {listed(crowded)} has no room for the new replicas beside the old ones"
        )
        verdict = verdicts[case.service.name]
        refused[case.service.name] = replace(verdict, choice=Choice.WAIT, reason="NoRoomToSurge", message=message)
    return refused


def _added(case: Case, entry: MixEntry) -> int:
    return entry.replicas - case.service.running.get(entry.variant, 0)


def _both(case: Case) -> dict[Variant, int]:
    """What runs and what the candidate adds to it: both are there until the new replicas serve."""
    added = {entry.variant: max(0, _added(case, entry)) for entry in case.candidate.mix}
    variants = sorted({*case.service.running, *added})
    return {variant: case.service.running.get(variant, 0) + added.get(variant, 0) for variant in variants}


def _reported(best: FleetPlan, final: FleetPlan, cases: Iterable[Case], verdicts: Mapping[str, Verdict]) -> FleetPlan:
    """The plan with the keepers kept, in which each says how it stands and not only that it was kept.

    The bound is that of the plan in which all were free.
    """
    plans = tuple(_as_reported(case, verdicts[case.service.name], final.service(case.service.name)) for case in cases)
    bound = min(best.lower_bound_usd_per_hour, final.expected_usd_per_hour)
    return replace(
        final,
        services=plans,
        lower_bound_usd_per_hour=bound,
        gap=gap(final.expected_usd_per_hour, bound),
        status=best.status if final.status is SolverStatus.OPTIMAL else final.status,
    )


def _as_reported(case: Case, verdict: Verdict, final: ServicePlan) -> ServicePlan:
    if verdict.choice is Choice.CHANGE or case.service.pinned:
        return final
    if case.candidate.outcome not in DECIDED or same_mix(case.now, case.candidate):
        return case.candidate
    if verdict.choice is Choice.HOLD and final.outcome not in DECIDED and final.outcome is not Outcome.PINNED:
        return final
    if verdict.reason == "StockShort":
        share = min(case.now.served_share, case.candidate.served_share)
        return replace(final, outcome=Outcome.STOCK_SHORT, reason=case.candidate.reason, served_share=share)
    if case.wrong:
        return replace(final, reason=verdict.message)
    sentence = f"{mix_text(final.mix)} serves {rate(case.service.rate_rps)} for {money(final.cost_usd_per_hour)}"
    return replace(final, outcome=Outcome.PLANNED, reason=sentence)


def _decision(case: Case, verdict: Verdict, reported: ServicePlan) -> Decision:
    changes = verdict.choice is Choice.CHANGE
    running = tuple((variant, count) for variant, count in sorted(case.service.running.items()) if count > 0)
    return Decision(
        service=case.service.name,
        choice=verdict.choice,
        reason=verdict.reason,
        message=verdict.message,
        target=counts(reported) if changes else running,
        plan=reported,
        candidate=None if same_mix(reported, case.candidate) else case.candidate,
        candidate_since_s=None if changes else verdict.candidate_since_s,
        wake_at_s=verdict.wake_at_s,
    )
