"""What holds when replicas must be spread, queue, compute parts and share a purse: tighter is never cheaper."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

import medley_planner.plan as plan_module
from medley_planner.checking.check import Violation, check
from medley_planner.fleet import Availability, CapacityType, FleetState, PlanOptions, Service
from medley_planner.plan import plan
from medley_planner.result import FleetPlan, Outcome, SolverStatus
from planner_fleets import random_spread_fleet

FLEETS = int(os.environ.get("MEDLEY_SPREAD_FLEETS", "36"))
SEED = int(os.environ.get("MEDLEY_SEED", "20240614"))
QUICK = PlanOptions(explain=False)
USD = 2e-3


def all_planned(found: FleetPlan) -> bool:
    return all(each.outcome is Outcome.PLANNED for each in found.services)


def spread(**rules: float) -> Callable[[Service], Service]:
    return lambda service: replace(service, availability=replace(service.availability, **rules))


TIGHTER: dict[str, Callable[[Service], Service]] = {
    "less spot": spread(spot_max_share=0.3),
    "more pools": spread(pool_max_share=0.4),
    "more that survives": spread(survivable_share=0.9),
    "fewer that wait": lambda service: replace(service, queueing_quantile=0.9),
    "burstier": lambda service: replace(service, interarrival_cv=3.0),
}


def made_tighter(state: FleetState, tighten: Callable[[Service], Service]) -> FleetState:
    """Where the rule is already as tight, it stays: what is asked for is the tighter of the two."""

    def tightest(service: Service) -> Service:
        tight, rules = tighten(service), service.availability
        both = Availability(
            min(rules.spot_max_share, tight.availability.spot_max_share),
            min(rules.pool_max_share, tight.availability.pool_max_share),
            max(rules.survivable_share, tight.availability.survivable_share),
        )
        quantile = max(service.queueing_quantile, tight.queueing_quantile)
        cv = max(service.interarrival_cv, tight.interarrival_cv)
        return replace(service, availability=both, queueing_quantile=quantile, interarrival_cv=cv)

    return replace(state, services=tuple(tightest(service) for service in state.services))


@pytest.mark.parametrize("tighten", TIGHTER.values(), ids=TIGHTER)
def test_asking_for_more_is_never_cheaper(tighten: Callable[[Service], Service]) -> None:
    compared = 0
    for number in range(FLEETS):
        told = f"seed {SEED}, fleet {number}"
        state, rates = random_spread_fleet(random.Random(f"tighter/{SEED}/{number}"))
        before = plan(state, QUICK, capacity_of=rates)
        after = plan(made_tighter(state, tighten), QUICK, capacity_of=rates)
        if all_planned(after):
            compared += 1
            assert all_planned(before), told
            assert after.expected_usd_per_hour >= before.expected_usd_per_hour - USD, told
    assert compared >= FLEETS // 12


def test_more_interruptions_are_never_cheaper_and_a_higher_cap_never_dearer() -> None:
    compared = 0
    for number in range(FLEETS):
        told = f"seed {SEED}, fleet {number}"
        state, rates = random_spread_fleet(random.Random(f"money/{SEED}/{number}"))
        before = plan(state, QUICK, capacity_of=rates)
        if not all_planned(before):
            continue
        compared += 1
        shaky = tuple(
            replace(pool, interruptions_per_hour=2.0 * pool.interruptions_per_hour)
            if pool.capacity_type is CapacityType.SPOT
            else pool
            for pool in state.pools
        )
        dearer = plan(replace(state, pools=shaky), QUICK, capacity_of=rates)
        assert all_planned(dearer), told
        assert dearer.expected_usd_per_hour >= before.expected_usd_per_hour - USD, told
        free = plan(replace(state, max_cost_usd_per_hour=None), QUICK, capacity_of=rates)
        assert all_planned(free), told
        assert free.expected_usd_per_hour <= before.expected_usd_per_hour + USD, told
    assert compared >= FLEETS // 6


def test_the_nearest_cap_of_the_fleet_is_the_lowest_that_will_do() -> None:
    compared = 0
    for number in range(FLEETS):
        told = f"seed {SEED}, fleet {number}"
        state, rates = random_spread_fleet(random.Random(f"fleet cap/{SEED}/{number}"))
        refused = plan(replace(state, max_cost_usd_per_hour=0.1), QUICK, capacity_of=rates)
        nearest, outcomes = refused.nearest_feasible_cap_usd_per_hour, {each.outcome for each in refused.services}
        if nearest is None or not outcomes <= {Outcome.PLANNED, Outcome.FLEET_CAP_TOO_LOW}:
            continue
        compared += 1
        for cap, enough in ((nearest, True), (nearest - 0.005, False)):
            found = plan(replace(state, max_cost_usd_per_hour=cap), QUICK, capacity_of=rates)
            assert all_planned(found) is enough, f"{told}, cap {cap}"
            assert found.cost_usd_per_hour <= cap + 1e-4, f"{told}, cap {cap}"
    assert compared >= FLEETS // 12


def test_planning_again_with_the_plan_running_changes_nothing() -> None:
    for number in range(FLEETS):
        told = f"seed {SEED}, fleet {number}"
        state, rates = random_spread_fleet(random.Random(f"again/{SEED}/{number}"))
        found = plan(state, QUICK, capacity_of=rates)
        if not all_planned(found):
            continue
        running = tuple(
            replace(each, running={entry.variant: entry.replicas for entry in found.service(each.name).mix})
            for each in state.services
        )
        again = plan(replace(state, services=running), QUICK, capacity_of=rates)
        assert [each.mix for each in again.services] == [each.mix for each in found.services], told


def test_the_plan_without_a_solver_keeps_every_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first check is made to refuse, so that the greedy plan is used; it has to pass the second, real one."""
    for number in range(FLEETS):
        state, rates = random_spread_fleet(random.Random(f"greedy/{SEED}/{number}"))
        refusals = iter([(Violation("capacity", "made up", "made up"),)])

        def refuses_once(*given, refusals=refusals):
            return next(refusals, None) or check(*given)

        monkeypatch.setattr(plan_module, "check", refuses_once)
        found = plan(state, QUICK, capacity_of=rates)
        assert found.status is SolverStatus.HEURISTIC or not found.cost_usd_per_hour, f"seed {SEED}, fleet {number}"
