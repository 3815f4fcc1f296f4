"""What keeps replicas apart, what they cost and how much room they leave: one constraint at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medley_planner.fleet import (
    Availability,
    CapacityType,
    FleetState,
    Formulation,
    PlanOptions,
    ReplicaBounds,
    Role,
    Variant,
)
from medley_planner.plan import plan
from medley_planner.result import FleetPlan, Outcome, ServicePlan
from medley_planner.workload.sizes import SizeHistogram
from planner_fleets import SHORT, Rates, fleet, mix, pool, service

QUICK = PlanOptions(explain=False)
SPOT, RESERVED = CapacityType.SPOT, CapacityType.RESERVED
ONE_SIZE = SizeHistogram.of((*SHORT, 1.0))
ALIKE = Rates({(name, 1): {SHORT: 1.0} for name in ("a", "b", "c")})
"""Every replica serves one request per second."""


def asking(rate: float = 4.0, **wishes: object):
    return service("chat", rate, sizes=ONE_SIZE, **wishes)


def planned(state: FleetState, rates: Rates = ALIKE) -> FleetPlan:
    return plan(state, QUICK, capacity_of=rates)


def chat(state: FleetState, rates: Rates = ALIKE) -> ServicePlan:
    return planned(state, rates).service("chat")


# -- what decides and what is paid -------------------------------------------------------------------------------------


def test_interruptions_decide_but_are_no_part_of_the_price() -> None:
    """An hour of loading, twice an hour: a spot replica of 1 $/h is expected to cost 3."""
    spot = pool("a", 1.0, capacity_type=SPOT, interruptions_per_hour=2.0, load_time_s=3600.0)
    at_3_1 = chat(fleet(asking(), (spot, pool("b", 3.1))))
    assert mix(at_3_1) == {"a": 4}
    assert (at_3_1.cost_usd_per_hour, at_3_1.risk_usd_per_hour) == pytest.approx((4.0, 8.0))
    assert at_3_1.lower_bound_usd_per_hour == pytest.approx(12.0) and at_3_1.gap == pytest.approx(0.0, abs=1e-6)
    assert mix(chat(fleet(asking(), (spot, pool("b", 2.9))))) == {"b": 4}


def test_spot_that_is_never_interrupted_or_loads_at_once_costs_its_price() -> None:
    for more in ({"interruptions_per_hour": 0.0, "load_time_s": 600.0}, {"interruptions_per_hour": 3.0}):
        assert chat(fleet(asking(), (pool("a", 1.0, capacity_type=SPOT, **more),))).risk_usd_per_hour == 0


def test_reserved_capacity_is_used_first_and_adds_nothing() -> None:
    state = fleet(asking(), (pool("a", 9.0, 3, capacity_type=RESERVED), pool("b", 1.0)))
    found = planned(state)
    assert mix(found.service("chat")) == {"a": 3, "b": 1}
    assert (found.cost_usd_per_hour, found.reserved_usd_per_hour) == pytest.approx((1.0, 27.0))
    by_pool = {entry.variant.pool: entry for entry in found.service("chat").mix}
    assert (by_pool["a"].cost_usd_per_hour, by_pool["a"].reserved_usd_per_hour) == pytest.approx((0.0, 27.0))
    assert found.lower_bound_usd_per_hour == pytest.approx(1.0)


def test_among_reserved_mixes_the_smaller_one() -> None:
    rates = Rates({("a", 1): {SHORT: 1.0}, ("b", 1): {SHORT: 4.0}})
    pools = (pool("a", 1.0, capacity_type=RESERVED), pool("b", 9.0, capacity_type=RESERVED))
    assert mix(chat(fleet(asking(), pools), rates)) == {"b": 1}


def test_a_cap_is_on_what_is_added() -> None:
    pools = (pool("a", 9.0, 3, capacity_type=RESERVED), pool("b", 1.0))
    assert chat(fleet(asking(max_cost_usd_per_hour=1.0), pools)).outcome is Outcome.PLANNED
    refused = chat(fleet(asking(max_cost_usd_per_hour=0.5), pools))
    assert refused.outcome is Outcome.CAP_TOO_LOW
    assert refused.nearest_feasible_cap_usd_per_hour == pytest.approx(1.0)


def test_the_nearest_cap_is_on_the_bill_though_interruptions_decide() -> None:
    spot = pool("a", 1.0, capacity_type=SPOT, interruptions_per_hour=2.0, load_time_s=3600.0)
    pools = (spot, pool("b", 2.5))
    assert chat(fleet(asking(max_cost_usd_per_hour=10.0), pools)).cost_usd_per_hour == pytest.approx(10.0)
    assert mix(chat(fleet(asking(max_cost_usd_per_hour=6.0), pools))) == {"a": 3, "b": 1}
    assert chat(fleet(asking(max_cost_usd_per_hour=3.0), pools)).nearest_feasible_cap_usd_per_hour == pytest.approx(4.0)


# -- spread ------------------------------------------------------------------------------------------------------------

SPOT_AND_OTHERS = (pool("a", 1.0, capacity_type=SPOT), pool("b", 2.0), pool("c", 3.0))


@pytest.mark.parametrize(
    ("share", "expected"),
    [(1.0, {"a": 4}), (0.75, {"a": 3, "b": 1}), (0.5, {"a": 2, "b": 2}), (0.4, {"a": 1, "b": 3}), (0.0, {"b": 4})],
)
def test_a_share_of_spot(share: float, expected: dict[str, int]) -> None:
    assert mix(chat(fleet(asking(availability=Availability(spot_max_share=share)), SPOT_AND_OTHERS))) == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [(1.0, {"a": 4}), (0.5, {"a": 2, "b": 2}), (0.4, {"a": 2, "b": 2, "c": 1}), (0.34, {"a": 2, "b": 2, "c": 2})],
)
def test_a_share_of_every_pool(share: float, expected: dict[str, int]) -> None:
    assert mix(chat(fleet(asking(availability=Availability(pool_max_share=share)), SPOT_AND_OTHERS))) == expected


def test_more_replicas_than_the_demand_needs_where_shares_make_them_pay() -> None:
    """One big spot replica would do, and half of the replicas must not be spot: the cheapest other joins it."""
    rates = Rates({("a", 1): {SHORT: 4.0}, ("b", 1): {SHORT: 0.1}, ("c", 1): {SHORT: 4.0}})
    pools = (pool("a", 1.0, capacity_type=SPOT), pool("b", 0.5), pool("c", 3.0))
    assert mix(chat(fleet(asking(availability=Availability(spot_max_share=0.5)), pools), rates)) == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, {"a": 4}), (0.25, {"a": 3, "b": 1}), (0.5, {"a": 2, "b": 2}), (0.6, {"a": 1, "b": 3}), (1.0, {"b": 4})],
)
def test_what_must_survive_the_loss_of_the_spot_pool(share: float, expected: dict[str, int]) -> None:
    found = chat(fleet(asking(availability=Availability(survivable_share=share)), SPOT_AND_OTHERS))
    assert mix(found) == expected
    assert [fallback.pool for fallback in found.fallbacks] == (["a"] if 0 < share < 1 else [])
    for fallback in found.fallbacks:
        assert fallback.served_share == share
        assert [(each.variant.pool, each.share) for each in fallback.shares] == [("b", pytest.approx(share))]


def test_two_spot_pools_stand_in_for_each_other() -> None:
    """Only one of them is lost at a time, and the other is what survives: cheaper than replicas that are not spot."""
    pools = (pool("a", 1.0, capacity_type=SPOT), pool("b", 1.1, capacity_type=SPOT), pool("c", 9.0))
    found = chat(fleet(asking(availability=Availability(survivable_share=0.5)), pools))
    assert mix(found) == {"a": 2, "b": 2}
    assert [fallback.pool for fallback in found.fallbacks] == ["a", "b"]


# -- what cannot be kept -----------------------------------------------------------------------------------------------


def test_a_spot_share_that_no_mix_keeps() -> None:
    """The cap pays for one of four that is not spot."""
    wishes = {"availability": Availability(spot_max_share=0.5), "replicas": ReplicaBounds(0, 4)}
    only_spot = Rates({("a", 1): {SHORT: 1.0}, ("b", 1): {SHORT: 1.0}})
    found = chat(fleet(asking(replicas_by_pool={"b": ReplicaBounds(0, 1)}, **wishes), SPOT_AND_OTHERS[:2]), only_spot)
    assert (found.outcome, found.nearest_feasible_share) == (Outcome.SPOT_SHARE_TOO_LOW, 0.75)
    assert found.reason == "At most 50 % of the replicas may be spot, which no mix keeps: 75 % would do"
    assert [(each.constraint, each.subject) for each in found.binding] == [("spot_share", "spot.maxShare")]


def test_a_pool_share_that_no_mix_keeps() -> None:
    found = chat(fleet(asking(availability=Availability(pool_max_share=0.3)), SPOT_AND_OTHERS))
    assert (found.outcome, found.nearest_feasible_share) == (Outcome.POOL_SHARE_TOO_LOW, 0.34)
    assert found.reason == "At most 30 % of the replicas may be in one pool, which no mix keeps: 34 % would do"


def test_a_loss_that_no_mix_survives() -> None:
    rules = {"availability": Availability(survivable_share=0.9), "replicas_by_pool": {"b": ReplicaBounds(0, 3)}}
    found = chat(fleet(asking(replicas=ReplicaBounds(1, 5), **rules), SPOT_AND_OTHERS[:2]))
    assert (found.outcome, found.nearest_feasible_share) == (Outcome.SURVIVABLE_SHARE_TOO_HIGH, 0.75)
    assert found.reason == (
        "At least 90 % of the demand must be served after the loss of a spot pool, which no mix keeps: 75 % can be had"
    )


def test_rules_that_more_stock_would_keep_leave_stock_short() -> None:
    pools = (pool("a", 1.0, capacity_type=SPOT), pool("b", 2.0, 1))
    found = chat(fleet(asking(availability=Availability(spot_max_share=0.5)), pools))
    assert found.outcome is Outcome.STOCK_SHORT
    assert mix(found) == {"a": 1, "b": 1} and found.served_share == pytest.approx(0.5)
    assert found.reason.endswith("1 more GPU of b would do")


# -- the fleet's cap ---------------------------------------------------------------------------------------------------


def two(cap: float | None) -> FleetPlan:
    services = (service("x", 4.0, sizes=ONE_SIZE), service("y", 4.0, sizes=ONE_SIZE))
    spot = pool("a", 1.0, capacity_type=SPOT, interruptions_per_hour=2.0, load_time_s=3600.0)
    return planned(replace(fleet(services, (spot, pool("b", 2.5))), max_cost_usd_per_hour=cap))


def test_the_fleets_cap_is_shared() -> None:
    """Spot is cheaper to pay and dearer to have: the cap decides how much of it is taken."""
    assert two(None).cost_usd_per_hour == pytest.approx(20.0)
    assert two(17.0).cost_usd_per_hour == pytest.approx(17.0)
    assert two(17.0).risk_usd_per_hour == pytest.approx(4.0)
    assert all(each.outcome is Outcome.PLANNED for each in two(8.0).services)


def test_a_fleet_cap_that_does_not_pay_for_all() -> None:
    found = two(6.0)
    short = [each for each in found.services if each.outcome is Outcome.FLEET_CAP_TOO_LOW]
    assert short and found.nearest_feasible_cap_usd_per_hour == pytest.approx(8.0)
    assert found.cost_usd_per_hour <= 6.0
    assert sum(each.served_share for each in found.services) == pytest.approx(1.5)
    assert short[0].reason.endswith("the fleet's price cap of 6.00 $/h is too low: 8.00 $/h would do")


def test_what_is_kept_is_paid_first() -> None:
    kept = service("kept", 1.0, sizes=ONE_SIZE, running={Variant("b", 1): 2}, pinned=True)
    state = replace(fleet((kept, asking(2.0)), (pool("b", 2.5),)), max_cost_usd_per_hour=9.0)
    found = planned(state)
    assert found.service("chat").outcome is Outcome.FLEET_CAP_TOO_LOW
    assert mix(found.service("chat")) == {"b": 1}
    assert found.nearest_feasible_cap_usd_per_hour == pytest.approx(10.0)


# -- room for queueing -------------------------------------------------------------------------------------------------


def test_room_for_queueing_shrinks_as_replicas_grow() -> None:
    """With one place a replica, half of the requests wait at half the load; with ten replicas at far more."""
    pools = (pool("a", 1.0),)
    one = chat(fleet(asking(0.5, queueing_quantile=0.5), pools))
    assert mix(one) == {"a": 1} and one.mix[0].utilisation == pytest.approx(0.5)
    assert mix(chat(fleet(asking(0.51, queueing_quantile=0.5), pools))) == {"a": 2}
    many = chat(fleet(asking(30.0, queueing_quantile=0.5), pools))
    assert 0.85 < many.mix[0].utilisation < 0.95


def test_room_for_queueing_needs_less_where_a_replica_holds_many_requests() -> None:
    pools = (pool("a", 1.0),)
    counts = [
        mix(chat(fleet(asking(8.0, queueing_quantile=0.95), pools), replace(ALIKE, places={"a": places})))["a"]
        for places in (1.0, 8.0, 200.0)
    ]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1] == 9


def test_burstier_arrivals_need_more_room() -> None:
    counts = [
        mix(chat(fleet(asking(8.0, queueing_quantile=0.9, interarrival_cv=cv), (pool("a", 1.0),))))["a"]
        for cv in (0.0, 1.0, 3.0)
    ]
    assert counts[0] == counts[1] < counts[2]


def test_headroom_and_room_for_queueing_are_both_kept() -> None:
    found = chat(fleet(asking(0.45, queueing_quantile=0.5, headroom=0.1), (pool("a", 1.0),)))
    assert mix(found) == {"a": 1} and found.mix[0].utilisation == pytest.approx(0.45)
    assert mix(chat(fleet(asking(0.46, queueing_quantile=0.5, headroom=0.1), (pool("a", 1.0),)))) == {"a": 2}


# -- parts of requests -------------------------------------------------------------------------------------------------

APART = Rates(
    {
        ("a", 1): {SHORT: 1.0},
        ("a", 1, Role.PREFILL): {SHORT: 8.0},
        ("b", 1): {SHORT: 0.5},
        ("b", 1, Role.DECODE): {SHORT: 4.0},
    }
)


def test_prompts_and_output_tokens_on_replicas_of_their_own() -> None:
    pools = (pool("a", 4.0), pool("b", 1.0))
    assert mix(chat(fleet(asking(8.0), pools), APART)) == {"b": 16}
    apart = chat(fleet(asking(8.0, disaggregated=True), pools), APART)
    assert mix(apart) == {"a/tp1/prefill": 1, "b/tp1/decode": 2}
    assert {each.part: each.share for each in apart.shares} == {
        Role.PREFILL: pytest.approx(1.0),
        Role.DECODE: pytest.approx(1.0),
    }


def test_a_bucket_split_over_both_ways() -> None:
    """A second prefill replica would hardly be used: a shared one takes what the first leaves."""
    rates = Rates({("a", 1): {SHORT: 1.0}, ("a", 1, Role.PREFILL): {SHORT: 4.0}, ("b", 1, Role.DECODE): {SHORT: 4.0}})
    found = chat(fleet(asking(5.0, disaggregated=True), (pool("a", 4.0), pool("b", 1.0))), rates)
    assert mix(found) == {"a": 1, "a/tp1/prefill": 1, "b/tp1/decode": 1}
    by_part = {each.part: each.share for each in found.shares}
    assert by_part[Role.SHARED] == pytest.approx(0.2)
    assert by_part[Role.PREFILL] == by_part[Role.DECODE] == pytest.approx(0.8)
    assert found.served_share == 1.0


def test_a_size_whose_output_nobody_computes_fits_nowhere() -> None:
    rates = Rates({("a", 1, Role.PREFILL): {SHORT: 4.0}})
    found = chat(fleet(asking(disaggregated=True), (pool("a", 4.0),)), rates)
    assert found.outcome is Outcome.NO_GPU_FITS


# -- Mélange's mode ----------------------------------------------------------------------------------------------------


def test_melanges_mode_knows_none_of_this() -> None:
    pools = (
        pool("a", 1.0, 1, capacity_type=SPOT, interruptions_per_hour=9.0, load_time_s=3600.0),
        pool("b", 1.5, capacity_type=RESERVED),
    )
    rules = Availability(spot_max_share=0.0, pool_max_share=0.5, survivable_share=1.0)
    asked = asking(availability=rules, queueing_quantile=0.9, disaggregated=True)
    state = replace(fleet(asked, pools), max_cost_usd_per_hour=0.0)
    options = PlanOptions(formulation=Formulation.MELANGE, explain=False)
    found = plan(state, options, capacity_of=ALIKE)
    assert mix(found.service("chat")) == {"a": 4}
