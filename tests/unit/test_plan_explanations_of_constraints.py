"""Explanations of spread, losses, queues, headroom, caps, reserved capacity, interruptions and roles."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from medley_planner.fleet import Availability, CapacityType, Role
from medley_planner.plan import plan
from medley_planner.result import FleetPlan, Outcome, ServicePlan
from medley_planner.workload.sizes import SizeHistogram
from planner_fleets import LONG, SHORT, Rates, fleet, mix, pool, random_spread_fleet, service

ONE_SIZE = SizeHistogram.of((*SHORT, 1.0))
EACH_ONE = Rates({(name, 1): {SHORT: 1.0} for name in ("firm", "spot", "tide", "kept")})
"""Every GPU of every pool serves one request per second."""

SEED = 20261122


def pools(*, spot: float = 1.0, firm: float = 3.0, interruptions: float = 0.0):
    """A firm pool, and two spot pools of which the second is a little dearer."""
    taken = {"capacity_type": CapacityType.SPOT, "interruptions_per_hour": interruptions, "load_time_s": 360.0}
    return (pool("firm", firm), pool("spot", spot, **taken), pool("tide", spot + 0.5, **taken))


def explained(given=None, *, rate: float = 3.6, **wishes: object) -> ServicePlan:
    state = fleet(service(rate=rate, sizes=ONE_SIZE, **wishes), given or pools())
    return plan(state, capacity_of=EACH_ONE).service("chat")


def bindings(found: ServicePlan) -> dict[str, tuple[str, str, float | None]]:
    return {each.constraint: (each.subject, each.detail, each.saves_usd_per_hour) for each in found.binding}


def test_a_bound_on_spot_costs_what_spot_would_have_saved() -> None:
    found = explained(availability=Availability(spot_max_share=0.5))
    assert mix(found) == {"firm": 2, "spot": 2}
    subject, detail, saves = bindings(found)["spot_share"]
    assert subject == "spot.maxShare"
    assert detail == (
        "at most 50.0 % of the replicas spot: without this bound, 4×spot would do for 4.00 $/h, 4.00 $/h less"
    )
    assert saves == pytest.approx(4.0)


def test_a_bound_on_the_share_of_a_pool() -> None:
    found = explained(availability=Availability(pool_max_share=0.5))
    assert mix(found) == {"spot": 2, "tide": 2}
    subject, detail, saves = bindings(found)["pool_share"]
    assert subject == "maxSharePerPool"
    assert detail == (
        "at most 50.0 % of the replicas in one pool: without this bound, 4×spot would do for 4.00 $/h, 1.00 $/h less"
    )
    assert saves == pytest.approx(1.0)


def test_what_it_costs_to_survive_a_loss() -> None:
    found = explained(availability=Availability(survivable_share=0.5))
    assert mix(found) == {"spot": 2, "tide": 2}
    subject, detail, _ = bindings(found)["survivable"]
    assert subject == "spot.survivableShare"
    assert detail == (
        "50.0 % of the demand served after the loss of a spot pool: without this bound, 4×spot would do for 4.00 $/h, "
        "1.00 $/h less"
    )


def test_what_headroom_costs() -> None:
    found = explained(headroom=0.2)
    assert mix(found) == {"spot": 5}
    assert bindings(found)["headroom"] == (
        "headroom",
        "20.0 % of every replica kept free: without this bound, 4×spot would do for 4.00 $/h, 1.00 $/h less",
        pytest.approx(1.0),
    )


def test_headroom_that_whole_replicas_have_anyway_costs_nothing() -> None:
    assert set(bindings(explained(rate=3.1, headroom=0.2))) == {"demand"}


def test_what_it_costs_that_few_requests_wait() -> None:
    found = explained(rate=3.0, queueing_quantile=0.9)
    subject, detail, saves = bindings(found)["queueing"]
    assert subject == "queueing"
    more = mix(found)["spot"] - 3
    assert more > 0
    assert saves == pytest.approx(more)
    assert detail.startswith("no waiting for 90.0 % of the requests: without this bound, 3×spot would do for 3.00 $/h")


def test_a_cap_that_keeps_interruptions_from_being_avoided() -> None:
    """Interrupted six times an hour for six minutes, spot is expected to cost 1.6 times its price, firm GPUs less than
    that; the cap does not pay for them."""
    found = explained(pools(spot=2.0, interruptions=6.0), max_cost_usd_per_hour=9.0)
    assert mix(found) == {"firm": 1, "spot": 3}
    assert found.reason.startswith("1×firm + 3×spot serves 3.6 req/s for 9.00 $/h; interruptions are expected to cost ")
    subject, detail, _ = bindings(found)["cost_cap"]
    assert subject == "maxCostPerHour"
    assert detail.startswith("at most 9.00 $/h: without this bound, 4×firm would do for 12.00 $/h, ")


def test_the_fleets_cap_that_the_others_leave() -> None:
    services = [service(name, 1.9, sizes=ONE_SIZE) for name in ("chat", "other")]
    state = replace(fleet(services, pools(spot=2.0, interruptions=6.0)), max_cost_usd_per_hour=10.0)
    found = plan(state, capacity_of=EACH_ONE)
    assert found.cost_usd_per_hour <= 10.0
    bound = [each for plan_of in found.services for each in plan_of.binding if each.constraint == "fleet_cost_cap"]
    assert bound
    assert "of the fleet's cap are left: with more, " in bound[0].detail
    assert bound[0].saves_usd_per_hour > 0


def test_alternatives_that_the_fleets_cap_does_not_pay_for() -> None:
    state = replace(fleet(service(rate=3.6, sizes=ONE_SIZE), pools()), max_cost_usd_per_hour=5.0)
    found = plan(state, capacity_of=EACH_ONE).service("chat")
    told = {each.name: (each.cost_usd_per_hour, each.detail) for each in found.alternatives}
    assert told["only firm"] == (None, "12.00 $/h, more than the 5.00 $/h left of the fleet's cap")
    assert told["only tide"] == (None, "6.00 $/h, more than the 5.00 $/h left of the fleet's cap")


def test_alternatives_that_the_spread_excludes() -> None:
    found = explained(availability=Availability(pool_max_share=0.5))
    told = {each.name: each.detail for each in found.alternatives}
    assert told["only firm"] == "how replicas must be spread excludes it"


def test_what_is_reserved_is_told_apart_from_the_bill() -> None:
    kept = pool("kept", 7.0, 2, capacity_type=CapacityType.RESERVED)
    found = explained((*pools(), kept))
    assert mix(found) == {"kept": 2, "spot": 2}
    assert found.reason.startswith("2×kept + 2×spot serves 3.6 req/s for 2.00 $/h; its reserved GPUs, 14.00 $/h, are ")
    told = {each.name: each for each in found.alternatives}
    assert told["without kept"].extra_usd_per_hour == pytest.approx(2.0)
    (entry,) = told["without kept"].mix
    assert (entry.cost_usd_per_hour, entry.reserved_usd_per_hour) == (4.0, 0.0)


def test_the_best_without_any_spot() -> None:
    found = explained(availability=Availability(pool_max_share=0.5))
    told = {each.name: each for each in found.alternatives}
    assert told["without spot"].cost_usd_per_hour is None
    found = explained(availability=Availability(survivable_share=0.5))
    told = {each.name: each for each in found.alternatives}
    assert (mix(told["without spot"]), told["without spot"].extra_usd_per_hour) == ({"firm": 4}, pytest.approx(7.0))


IN_PARTS = Rates(
    {
        ("small", 1): {SHORT: 0.8, LONG: 0.4},
        ("big", 1): {SHORT: 2.0, LONG: 1.0},
        ("big", 1, Role.PREFILL): {SHORT: 20.0, LONG: 10.0},
        ("small", 1, Role.DECODE): {SHORT: 8.0, LONG: 4.0},
        ("big", 1, Role.DECODE): {SHORT: 4.0, LONG: 2.0},
    }
)


def in_parts(**wishes: object) -> FleetPlan:
    given = (pool("small", 1.0), pool("big", 5.0))
    return plan(fleet(service(rate=6.0, disaggregated=True, **wishes), given), capacity_of=IN_PARTS)


def test_requests_served_in_parts_are_compared_with_whole_ones() -> None:
    found = in_parts().service("chat")
    assert {entry.variant.role for entry in found.mix} == {Role.PREFILL, Role.DECODE}
    told = {each.name: each for each in found.alternatives}
    assert {entry.variant.role for entry in told["served whole"].mix} == {Role.SHARED}
    assert told["served whole"].extra_usd_per_hour > 0
    reasons = {str(each.variant): each.detail for each in found.rejected}
    assert "on big/tp1/prefill and small/tp1/decode" in reasons["small/tp1"]
    assert "(with big/tp1/prefill)" in reasons["big/tp1/decode"]


def test_whole_requests_are_compared_with_those_served_in_parts() -> None:
    table = {key: rates for key, rates in IN_PARTS.table.items() if key != ("small", 1, Role.DECODE)}
    state = fleet(service(rate=6.0, disaggregated=True), (pool("small", 1.0), pool("big", 5.0)))
    found = plan(state, capacity_of=Rates(table)).service("chat")
    assert {entry.variant.role for entry in found.mix} == {Role.SHARED}
    told = {each.name: each for each in found.alternatives}
    assert {entry.variant.role for entry in told["served in parts"].mix} == {Role.PREFILL, Role.DECODE}


def test_on_random_fleets_every_figure_of_an_explanation_adds_up() -> None:
    bound = compared = 0
    for number in range(20):
        state, rates = random_spread_fleet(random.Random(f"explained/{SEED}/{number}"))
        told = f"seed {SEED}, fleet {number}"
        for found in plan(state, capacity_of=rates).services:
            for each in found.binding:
                if each.saves_usd_per_hour is not None:
                    bound += 1
                    assert 0.005 < each.saves_usd_per_hour <= found.expected_usd_per_hour + 1e-9, (told, each)
            for other in found.alternatives:
                assert (other.cost_usd_per_hour is None) == (other.mix == ()), told
                if other.cost_usd_per_hour is not None:
                    compared += 1
                    parts = math.fsum(entry.cost_usd_per_hour for entry in other.mix)
                    assert other.cost_usd_per_hour == pytest.approx(parts), told
                    difference = other.cost_usd_per_hour - found.cost_usd_per_hour
                    assert other.extra_usd_per_hour == pytest.approx(difference), told
                    risk = math.fsum(entry.risk_usd_per_hour for entry in other.mix)
                    nothing_runs = not any(s.running for s in state.services)
                    if found.outcome is Outcome.PLANNED and nothing_runs and len(state.services) == 1:
                        assert parts + risk >= found.expected_usd_per_hour - 2e-3, (told, other)
            in_mix = {entry.variant for entry in found.mix}
            assert in_mix.isdisjoint(each.variant for each in found.rejected), told
    assert bound >= 2
    assert compared >= 5
