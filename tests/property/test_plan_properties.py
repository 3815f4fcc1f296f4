"""What holds for the plan of every fleet, on random ones."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from medley_planner.check import check
from medley_planner.fleet import FleetState, PlanOptions, ReplicaBounds, Stock
from medley_planner.memo import Memo
from medley_planner.plan import plan
from medley_planner.result import FleetPlan, Outcome
from planner_fleets import Rates, random_fleet

FLEETS = 40
SEED = int(os.environ.get("MEDLEY_SEED", "20240614"))
QUICK = PlanOptions(explain=False)


def fleets(name: str) -> Iterator[tuple[str, random.Random, FleetState, Rates]]:
    for number in range(FLEETS):
        rng = random.Random(f"{name}/{SEED}/{number}")
        yield f"seed {SEED}, fleet {number}", rng, *random_fleet(rng)


def all_planned(fleet_plan: FleetPlan) -> bool:
    return all(each.outcome is Outcome.PLANNED for each in fleet_plan.services)


def without_caps(state: FleetState) -> FleetState:
    """Caps and bounds decide who is planned at all, which would hide what a change does to the price."""
    loose = {"max_cost_usd_per_hour": None, "replicas": ReplicaBounds(1), "replicas_by_pool": {}}
    return replace(state, services=tuple(replace(each, **loose) for each in state.services))


def test_every_plan_passes_the_check_and_costs_no_less_than_its_bound() -> None:
    for told, _, state, rates in fleets("sound"):
        found = plan(state, QUICK, capacity_of=rates)
        assert check(state, found, rates) == (), told
        assert found.lower_bound_usd_per_hour <= found.cost_usd_per_hour + 1e-9, told
        for each in found.services:
            if each.outcome is Outcome.PLANNED:
                assert 0 <= each.lower_bound_usd_per_hour <= each.cost_usd_per_hour + 1e-9, told
                assert each.served_share == 1.0, told


def test_the_order_of_services_and_pools_does_not_matter() -> None:
    for told, rng, state, rates in fleets("order"):
        services, pools = list(state.services), list(state.pools)
        rng.shuffle(services)
        rng.shuffle(pools)
        shuffled = FleetState(tuple(services), tuple(pools))
        assert plan(shuffled, capacity_of=rates) == plan(state, capacity_of=rates), told


def test_a_memo_changes_nothing_but_the_time() -> None:
    memo = Memo()
    for told, _, state, rates in fleets("memo"):
        fresh = plan(state, capacity_of=rates)
        assert plan(state, capacity_of=rates, memo=memo) == fresh, told
        assert plan(state, capacity_of=rates, memo=memo) == fresh, told
    assert memo.hits > 0


def test_planning_again_with_the_plan_running_changes_nothing() -> None:
    for told, _, state, rates in fleets("again"):
        found = plan(state, QUICK, capacity_of=rates)
        mixes = {each.name: {entry.variant: entry.replicas for entry in each.mix} for each in found.services}
        running = FleetState(tuple(replace(s, running=mixes[s.name]) for s in state.services), state.pools)
        again = plan(running, QUICK, capacity_of=rates)
        assert {each.name: each.mix for each in again.services} == {each.name: each.mix for each in found.services}, (
            told
        )


@pytest.mark.parametrize("raised", [1.1, 2.0])
def test_a_higher_price_never_makes_a_fleet_cheaper(raised: float) -> None:
    compared = 0
    for told, rng, state, rates in fleets("price"):
        loose = without_caps(state)
        dearer = rng.choice(loose.pools).name
        pools = tuple(
            replace(p, price_usd_per_gpu_hour=p.price_usd_per_gpu_hour * (raised if p.name == dearer else 1))
            for p in loose.pools
        )
        before, after = (
            plan(loose, QUICK, capacity_of=rates),
            plan(FleetState(loose.services, pools), QUICK, capacity_of=rates),
        )
        if all_planned(before):
            compared += 1
            assert all_planned(after), told
            assert after.cost_usd_per_hour >= before.cost_usd_per_hour - 2e-3, told
    assert compared >= 10


def test_more_requests_never_cost_less() -> None:
    compared = 0
    for told, rng, state, rates in fleets("rate"):
        loose = without_caps(state)
        busier = rng.choice(loose.services).name
        services = tuple(replace(s, rate_rps=s.rate_rps * (1.5 if s.name == busier else 1)) for s in loose.services)
        before, after = (
            plan(loose, QUICK, capacity_of=rates),
            plan(FleetState(services, loose.pools), QUICK, capacity_of=rates),
        )
        if all_planned(after):
            compared += 1
            assert all_planned(before), told
            assert after.cost_usd_per_hour >= before.cost_usd_per_hour - 2e-3, told
    assert compared >= 10


def test_more_stock_never_costs_more_and_never_serves_less() -> None:
    compared = 0
    for told, rng, state, rates in fleets("stock"):
        loose = without_caps(state)
        more = rng.choice(loose.pools).name
        pools = tuple(
            replace(
                p,
                stock=Stock({k: n + 4 * (k <= 4) for k, n in p.stock.gpus_in_groups_of.items()})
                if p.name == more
                else p.stock,
            )
            for p in loose.pools
        )
        before, after = (
            plan(loose, QUICK, capacity_of=rates),
            plan(FleetState(loose.services, pools), QUICK, capacity_of=rates),
        )
        decided = [s for s in loose.services if before.service(s.name).outcome is not Outcome.NO_GPU_FITS]
        served = [sum(s.rate_rps * each.service(s.name).served_share for s in decided) for each in (before, after)]
        assert served[1] >= served[0] - 1e-6, told
        if all_planned(before):
            compared += 1
            assert after.cost_usd_per_hour <= before.cost_usd_per_hour + 2e-3, told
    assert compared >= 10


def test_the_nearest_cap_is_the_lowest_that_will_do() -> None:
    compared = 0
    for told, _, state, rates in fleets("cap"):
        loose = without_caps(state)
        for service in loose.services:
            alone = FleetState((replace(service, max_cost_usd_per_hour=0.01),), state.pools)
            refused = plan(alone, QUICK, capacity_of=rates).services[0]
            if refused.outcome is not Outcome.CAP_TOO_LOW:
                continue
            compared += 1
            cap = refused.nearest_feasible_cap_usd_per_hour
            assert cap is not None, told
            for tried, outcome in ((cap, Outcome.PLANNED), (cap - 0.005, Outcome.CAP_TOO_LOW)):
                capped = FleetState((replace(service, max_cost_usd_per_hour=tried),), state.pools)
                assert plan(capped, QUICK, capacity_of=rates).services[0].outcome is outcome, f"{told}, cap {tried}"
    assert compared >= 10
