"""The check finds what is wrong with a plan: every constraint is broken once, and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

import medley_planner.plan as plan_module
from medley_planner.checking.check import Violation, check
from medley_planner.fleet import (
    Availability,
    CapacityType,
    FleetState,
    PlanOptions,
    ReplicaBounds,
    Role,
    Stock,
    Variant,
)
from medley_planner.plan import UnsoundPlanError, plan
from medley_planner.result import BucketShare, Fallback, FleetPlan, MixEntry, ServicePlan, SolverStatus
from medley_planner.workload.sizes import SizeHistogram
from planner_fleets import SHORT, SMALL_AND_BIG, Rates, fleet, mix, pool, running, service, small_and_big

STATE = fleet([service("chat", 8.0), service("kept", 1.0, running=running(big=1), pinned=True)], small_and_big())
PLAN = plan(STATE, PlanOptions(explain=False), capacity_of=SMALL_AND_BIG)


def found(state: FleetState = STATE, fleet_plan: FleetPlan = PLAN) -> set[tuple[str, str]]:
    return {(each.constraint, each.subject) for each in check(state, fleet_plan, SMALL_AND_BIG)}


def with_plan(change: Callable[[ServicePlan], ServicePlan], name: str = "chat") -> FleetPlan:
    services = tuple(change(each) if each.name == name else each for each in PLAN.services)
    return replace(PLAN, services=services)


def with_service(**wishes: object) -> FleetState:
    services = tuple(replace(each, **wishes) if each.name == "chat" else each for each in STATE.services)
    return replace(STATE, services=services)


def with_entries(change: Callable[[MixEntry], MixEntry]) -> FleetPlan:
    return with_plan(lambda each: replace(each, mix=tuple(change(entry) for entry in each.mix)))


def test_a_sound_plan_passes() -> None:
    assert found() == set()


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (with_service(rate_rps=9.0), "capacity"),
        (with_service(headroom=0.1), "capacity"),
        (with_service(max_cost_usd_per_hour=11.0), "cost_cap"),
        (with_service(replicas=ReplicaBounds(5)), "replicas_min"),
        (with_service(replicas=ReplicaBounds(1, 3)), "replicas_max"),
        (with_service(replicas_by_pool={"small": ReplicaBounds(3)}), "pool_replicas_min"),
        (with_service(replicas_by_pool={"small": ReplicaBounds(0, 1)}), "pool_replicas_max"),
        (with_service(pools=("big",)), "allowed"),
        (with_service(tensor_parallel=(2,)), "allowed"),
    ],
)
def test_a_fleet_that_asks_for_something_else(state: FleetState, expected: str) -> None:
    assert (expected, "chat") in found(state)


SPREAD_POOLS = (
    pool("spot", 1.0, capacity_type=CapacityType.SPOT, interruptions_per_hour=0.5, load_time_s=360.0),
    pool("held", 2.0, 1, capacity_type=CapacityType.RESERVED),
    pool("plain", 3.0),
)
SPREAD_RATES = Rates(
    {(name, 1): {SHORT: 1.0} for name in ("spot", "held", "plain")} | {("plain", 1, Role.DECODE): {SHORT: 2.0}}
)
SPREAD_RULES = Availability(spot_max_share=0.5, pool_max_share=0.5, survivable_share=0.5)


def spread_state(rate: float = 4.0, cap: float | None = None, **wishes: object) -> FleetState:
    asked = service("chat", rate, sizes=SizeHistogram.of((*SHORT, 1.0)), **{"availability": SPREAD_RULES, **wishes})
    return replace(fleet(asked, SPREAD_POOLS), max_cost_usd_per_hour=cap)


SPREAD = plan(spread_state(), PlanOptions(explain=False), capacity_of=SPREAD_RATES)


def spread_found(state: FleetState, fleet_plan: FleetPlan = SPREAD) -> set[str]:
    return {each.constraint for each in check(state, fleet_plan, SPREAD_RATES)}


def spread_plan(change: Callable[[ServicePlan], ServicePlan]) -> FleetPlan:
    return replace(SPREAD, services=tuple(change(each) for each in SPREAD.services))


def test_a_sound_plan_that_is_spread_passes() -> None:
    assert mix(SPREAD.service("chat")) == {"held": 1, "plain": 1, "spot": 2}
    assert spread_found(spread_state()) == set()


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (spread_state(availability=replace(SPREAD_RULES, spot_max_share=0.4)), {"spot_share"}),
        (spread_state(availability=replace(SPREAD_RULES, pool_max_share=0.4)), {"pool_share"}),
        (spread_state(availability=replace(SPREAD_RULES, survivable_share=0.6)), {"survivable"}),
        (spread_state(queueing_quantile=0.01), {"queueing", "survivable"}),
        (spread_state(cap=4.9), {"fleet_cost_cap"}),
        (spread_state(cap=5.0), set()),
        (spread_state(max_cost_usd_per_hour=4.9), {"cost_cap"}),
    ],
)
def test_a_fleet_that_asks_for_more_spread_room_or_thrift(state: FleetState, expected: set[str]) -> None:
    assert spread_found(state) == expected


def test_a_loss_that_the_plan_says_nothing_of() -> None:
    assert spread_found(spread_state(), spread_plan(lambda each: replace(each, fallbacks=()))) == {"survivable"}


@pytest.mark.parametrize(
    "change",
    [
        lambda fallback: replace(fallback, served_share=0.7),
        lambda fallback: replace(fallback, shares=fallback.shares[:1]),
        lambda fallback: replace(fallback, shares=(replace(fallback.shares[0], share=0.5), *fallback.shares[2:])),
        lambda fallback: replace(
            fallback, shares=tuple(replace(each, variant=Variant("spot", 1)) for each in fallback.shares)
        ),
    ],
)
def test_a_loss_after_which_less_is_served_than_the_plan_says(change: Callable[[Fallback], Fallback]) -> None:
    broken = spread_plan(lambda each: replace(each, fallbacks=tuple(map(change, each.fallbacks))))
    assert spread_found(spread_state(), broken) == {"survivable"}


@pytest.mark.parametrize("figure", ["cost_usd_per_hour", "reserved_usd_per_hour", "risk_usd_per_hour"])
def test_money_that_does_not_add_up(figure: str) -> None:
    def dearer(value: FleetPlan | ServicePlan | MixEntry) -> dict[str, float]:
        return {figure: getattr(value, figure) + 1.0}

    entry = spread_plan(lambda each: replace(each, mix=tuple(replace(e, **dearer(e)) for e in each.mix)))
    assert spread_found(spread_state(), entry) == {"accounting"}
    assert spread_found(spread_state(), spread_plan(lambda each: replace(each, **dearer(each)))) == {"accounting"}
    assert spread_found(spread_state(), replace(SPREAD, **dearer(SPREAD))) == {"accounting"}


def test_output_tokens_that_nobody_computes() -> None:
    """Decode replicas alone are not enough, nor are they allowed where parts are not asked for."""

    def decode_only(each: ServicePlan) -> ServicePlan:
        variant = Variant("plain", 1, role=Role.DECODE)
        entry = MixEntry(variant, 2, 2, 6.0, 1.0)
        share = BucketShare(*SHORT, variant, 1.0, 2.0)
        return replace(each, mix=(entry,), shares=(share,), cost_usd_per_hour=6.0)

    free = Availability()
    broken = spread_found(spread_state(disaggregated=True, availability=free), spread_plan(decode_only))
    assert "demand" in broken and "allowed" not in broken
    assert "allowed" in spread_found(spread_state(availability=free), spread_plan(decode_only))


def test_stock_counts_what_is_kept_first() -> None:
    enough = replace(STATE, pools=small_and_big(small=2, big=3))
    assert found(enough) == set()
    short = replace(STATE, pools=small_and_big(small=2, big=2))
    assert found(short) == {("stock", "big")}


def test_stock_on_nodes() -> None:
    rates = {**SMALL_AND_BIG.table, ("big", 2): SMALL_AND_BIG.table["big", 1]}
    state = fleet(service(rate=2.0, tensor_parallel=(2,)), (pool("big", 5.0, Stock.from_nodes((2,))),))
    capacity_of = replace(SMALL_AND_BIG, table=rates)
    fleet_plan = plan(state, capacity_of=capacity_of)
    assert check(state, fleet_plan, capacity_of) == ()
    apart = replace(state, pools=(replace(state.pools[0], stock=Stock.from_nodes((1, 1))),))
    assert check(apart, fleet_plan, capacity_of) == (
        Violation("stock", "big", "2 GPUs of big in groups of 2 and more asked for, 0 to be had"),
    )


def test_requests_that_nobody_serves() -> None:
    assert ("demand", "chat") in found(fleet_plan=with_plan(lambda each: replace(each, shares=each.shares[1:])))


def test_requests_that_nobody_sends() -> None:
    def add(each: ServicePlan) -> ServicePlan:
        return replace(each, shares=(*each.shares, replace(each.shares[0], input_tokens=7)))

    assert ("demand", "chat") in found(fleet_plan=with_plan(add))


def test_a_capacity_that_is_not_the_replicas() -> None:
    def boast(each: ServicePlan) -> ServicePlan:
        return replace(each, shares=tuple(replace(share, capacity_rps=99.0) for share in each.shares))

    assert ("capacity", "chat") in found(fleet_plan=with_plan(boast))


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: replace(entry, replicas=entry.replicas + 1),
        lambda entry: replace(entry, gpus=entry.gpus + 1),
        lambda entry: replace(entry, cost_usd_per_hour=entry.cost_usd_per_hour - 0.5),
        lambda entry: replace(entry, utilisation=entry.utilisation / 2),
    ],
)
def test_figures_that_do_not_add_up(change: Callable[[MixEntry], MixEntry]) -> None:
    assert ("accounting", "chat") in found(fleet_plan=with_entries(change))


def test_totals_that_do_not_add_up() -> None:
    assert found(fleet_plan=replace(PLAN, cost_usd_per_hour=1.0)) == {("accounting", "plan")}
    assert found(fleet_plan=replace(PLAN, gpus_by_pool=(("big", 1),))) == {("accounting", "plan")}
    assert found(fleet_plan=replace(PLAN, services=PLAN.services[:1])) == {("accounting", "plan")}


def test_a_bound_above_the_cost() -> None:
    assert found(fleet_plan=replace(PLAN, lower_bound_usd_per_hour=99.0)) == {("lower_bound", "plan")}
    too_high = with_plan(lambda each: replace(each, lower_bound_usd_per_hour=99.0))
    assert found(fleet_plan=too_high) == {("lower_bound", "chat")}


def test_a_kept_service_that_was_changed_after_all() -> None:
    assert ("accounting", "kept") in found(fleet_plan=with_plan(lambda each: replace(each, mix=()), "kept"))


def test_a_plan_that_fails_the_check_is_replaced_by_the_greedy_one(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = iter([(Violation("capacity", "chat", "made up"),), ()])
    monkeypatch.setattr(plan_module, "check", lambda *_: next(refused))
    fallback = plan(STATE, PlanOptions(explain=False), capacity_of=SMALL_AND_BIG)
    assert fallback.status is SolverStatus.HEURISTIC
    assert check(STATE, fallback, SMALL_AND_BIG) == ()
    assert mix(fallback.service("chat")) == {"big": 2, "small": 2}


def test_a_plan_that_never_passes_is_not_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "check", lambda *_: (Violation("capacity", "chat", "made up"),))
    with pytest.raises(UnsoundPlanError, match=r"capacity \(chat\): made up"):
        plan(STATE, capacity_of=SMALL_AND_BIG)
