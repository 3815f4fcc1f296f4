"""How planning a service can end, and what the plan then says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medley_planner.fleet import FleetState, PlanOptions, ReplicaBounds, Stock, Variant
from medley_planner.plan import plan
from medley_planner.result import FleetPlan, Outcome, ServicePlan, SolverStatus
from medley_planner.workload.sizes import SizeHistogram
from planner_fleets import LONG, SHORT, SMALL_AND_BIG, Rates, fleet, mix, pool, running, service, small_and_big


def planned(state: FleetState) -> FleetPlan:
    return plan(state, capacity_of=SMALL_AND_BIG)


def alone(**wishes: object) -> ServicePlan:
    pools = wishes.pop("pools_of_fleet", small_and_big())
    return planned(fleet(service(**wishes), pools)).service("chat")


def test_each_size_goes_to_the_gpu_that_is_good_at_it() -> None:
    """4 req/s of each size: 2 small ones serve the short requests, 2 big ones the long ones, at 12 $/h.

    Big ones alone take 4/8 + 4/2 = 2.5, so 3 for 15 $/h; small ones alone 2 + 40.
    """
    found = alone(rate=8.0)
    assert found.outcome is Outcome.PLANNED
    assert mix(found) == {"big": 2, "small": 2}
    assert found.cost_usd_per_hour == pytest.approx(12.0)
    assert {(s.input_tokens, str(s.variant)): s.share for s in found.shares} == pytest.approx(
        {(100, "small/tp1"): 1.0, (4000, "big/tp1"): 1.0}
    )
    assert [entry.utilisation for entry in found.mix] == pytest.approx([1.0, 1.0])


def test_replicas_share_a_bucket_so_that_none_is_busier_than_it_has_to_be() -> None:
    found = alone(rate=7.0)
    assert mix(found) == {"big": 2, "small": 1}
    assert max(entry.utilisation for entry in found.mix) < 1.0
    assert len({round(entry.utilisation, 6) for entry in found.mix}) == 1


def test_headroom_is_kept_free() -> None:
    found = alone(rate=8.0, headroom=0.2)
    assert found.cost_usd_per_hour > 12.0
    assert all(entry.utilisation <= 0.8 + 1e-9 for entry in found.mix)


def test_the_bound_and_the_gap_of_an_optimal_plan() -> None:
    found = alone(rate=8.0)
    assert found.lower_bound_usd_per_hour == pytest.approx(12.0)
    assert found.gap == pytest.approx(0.0, abs=1e-6)


def test_a_size_that_no_gpu_serves_is_named_with_its_share_and_the_limit() -> None:
    huge = SizeHistogram.of((*SHORT, 0.98), (100_000, 10, 0.02))
    found = alone(sizes=huge)
    assert found.outcome is Outcome.NO_GPU_FITS
    assert "1 request size of 2, 2 % of the requests" in found.reason
    assert "100000 input and 10 output tokens" in found.reason
    assert "is too small for (100000, 10)" in found.reason
    assert {str(each.variant): each.reason for each in found.rejected} == {
        "big/tp1": "MemoryTooSmall",
        "small/tp1": "MemoryTooSmall",
    }


def test_a_cap_that_is_too_low_keeps_what_runs_and_names_the_nearest_one() -> None:
    found = alone(rate=8.0, max_cost_usd_per_hour=10.0, running=running(big=1))
    assert found.outcome is Outcome.CAP_TOO_LOW
    assert mix(found) == {"big": 1}
    assert found.cost_usd_per_hour == pytest.approx(5.0)
    assert found.nearest_feasible_cap_usd_per_hour == pytest.approx(12.0)
    assert found.reason == (
        "Serving 8 req/s within the objectives costs at least 12.00 $/h, 2.00 $/h more than the cap of 10.00 $/h"
    )
    assert [each.constraint for each in found.binding] == ["cost_cap"]


def test_a_cap_is_kept_where_it_can_be() -> None:
    found = alone(rate=8.0, max_cost_usd_per_hour=12.0)
    assert found.outcome is Outcome.PLANNED


def test_what_runs_holds_its_stock_while_a_service_cannot_be_planned() -> None:
    capped = service("capped", 8.0, max_cost_usd_per_hour=1.0, running=running(big=2))
    other = service("other", 2.0, pools=("big",))
    found = planned(fleet([capped, other], small_and_big(big=2)))
    assert found.service("capped").outcome is Outcome.CAP_TOO_LOW
    assert found.service("other").outcome is Outcome.STOCK_SHORT
    assert dict(found.gpus_by_pool) == {"big": 2}


def test_a_cap_does_not_keep_what_has_lost_its_gpus() -> None:
    """Nothing of what runs is left to keep: within the cap, as much as possible is served on what there is."""
    found = alone(
        rate=8.0, max_cost_usd_per_hour=10.0, running=running(big=3), pools_of_fleet=small_and_big(small=3, big=1)
    )
    assert found.outcome is Outcome.STOCK_SHORT
    assert found.cost_usd_per_hour <= 10.0
    assert 0 < found.served_share < 1


def test_an_upper_bound_on_replicas_that_is_too_tight() -> None:
    found = alone(rate=8.0, replicas=ReplicaBounds(1, 2))
    assert found.outcome is Outcome.REPLICA_BOUNDS
    assert "at least 3 replicas are needed, at most 2 are allowed" in found.reason
    assert mix(found) == {}


def test_a_lower_bound_in_a_pool_where_nothing_can_serve() -> None:
    rates = Rates({("small", 1): {SHORT: 2.0, LONG: 1.0}})
    asked = service(replicas_by_pool={"big": ReplicaBounds(2)})
    found = plan(fleet(asked, small_and_big()), capacity_of=rates).service("chat")
    assert found.outcome is Outcome.REPLICA_BOUNDS
    assert "at least 2 replicas in big are asked for, where none can serve" in found.reason


def test_bounds_that_are_only_together_too_tight() -> None:
    found = alone(rate=8.0, replicas=ReplicaBounds(1, 3), replicas_by_pool={"big": ReplicaBounds(0, 1)})
    assert found.outcome is Outcome.REPLICA_BOUNDS
    assert "at most 3 in all and at most 1 in big" in found.reason


def test_a_lower_bound_on_replicas_is_kept_by_the_cheapest() -> None:
    found = alone(rate=0.01, replicas=ReplicaBounds(3))
    assert found.outcome is Outcome.PLANNED
    assert sum(mix(found).values()) == 3
    assert found.cost_usd_per_hour == pytest.approx(3.0)


def test_short_stock_serves_all_it_can_and_says_how_many_gpus_are_missing() -> None:
    found = alone(rate=8.0, pools=("big",), pools_of_fleet=small_and_big(big=2))
    assert found.outcome is Outcome.STOCK_SHORT
    assert mix(found) == {"big": 2}
    assert 0.8 < found.served_share < 1.0
    assert found.reason.endswith("stock is short: 1 more GPU of big would do")
    assert f"{100 * found.served_share:.1f} % of 8 req/s for 10.00 $/h" in found.reason


def test_short_stock_keeps_as_many_of_the_replicas_asked_for_at_least_as_there_are_gpus() -> None:
    found = alone(rate=0.1, replicas=ReplicaBounds(4), pools_of_fleet=small_and_big(small=2, big=1))
    assert found.outcome is Outcome.STOCK_SHORT
    assert sum(mix(found).values()) == 3
    assert found.served_share == 1.0
    assert "short of the 4 replicas asked for at least" in found.reason


def test_no_stock_at_all() -> None:
    found = alone(pools_of_fleet=small_and_big(small=0, big=0))
    assert found.outcome is Outcome.STOCK_SHORT
    assert found.served_share == 0.0
    assert mix(found) == {}


def test_an_exhausted_pool_offers_what_is_held_and_says_why() -> None:
    small, big = small_and_big(big=1)
    pools = (small, replace(big, exhausted="pods stayed Pending for 600 s"))
    found = planned(fleet(service(rate=8.0, pools=("big",), running=running(big=1)), pools)).service("chat")
    assert mix(found) == {"big": 1}
    assert "(exhausted: pods stayed Pending for 600 s)" in found.reason


def test_scarce_stock_goes_where_it_saves_most() -> None:
    """Both want the one big GPU; `long` needs 10 small ones in its place, `short` only 1."""
    long = service("long", 1.0, sizes=SizeHistogram.of((*LONG, 1.0)))
    short = service("short", 1.0, sizes=SizeHistogram.of((*SHORT, 1.0)))
    found = planned(fleet([short, long], small_and_big(big=1, small_price=6.0)))
    assert mix(found.service("long")) == {"big": 1}
    assert mix(found.service("short")) == {"small": 1}
    assert found.service("short").lower_bound_usd_per_hour == pytest.approx(5.0)
    assert found.service("short").gap == pytest.approx(1 / 6)
    assert found.gap == pytest.approx(0.0, abs=1e-6)


def test_services_that_go_short_together_name_each_other() -> None:
    services = [service(name, 4.0, pools=("big",)) for name in ("a", "b")]
    found = planned(fleet(services, small_and_big(big=2)))
    assert {each.outcome for each in found.services} >= {Outcome.STOCK_SHORT}
    short = next(each for each in found.services if each.outcome is Outcome.STOCK_SHORT)
    assert "(shared with " in short.reason


def test_groups_of_gpus_do_not_span_nodes() -> None:
    """Two nodes with one free GPU each hold no replica of two GPUs."""
    rates = Rates({("big", 2): {SHORT: 8.0, LONG: 2.0}})
    asked = service(tensor_parallel=(2,))
    for free, outcome in (((1, 1), Outcome.STOCK_SHORT), ((2,), Outcome.PLANNED)):
        found = plan(fleet(asked, (pool("big", 5.0, Stock.from_nodes(free)),)), capacity_of=rates)
        assert found.service("chat").outcome is outcome, free


def test_smaller_replicas_leave_no_room_for_larger_ones_beyond_the_stock() -> None:
    """One node of four: the two GPUs of `pair` leave two single ones, not three."""
    rates = Rates({("big", 1): {SHORT: 1.0, LONG: 1.0}, ("big", 2): {SHORT: 1.0, LONG: 1.0}})
    pair, singles = service("pair", 1.0, tensor_parallel=(2,)), service("singles", 3.0)
    found = plan(fleet([pair, singles], (pool("big", 1.0, Stock.of(4)),)), capacity_of=rates)
    assert sum(
        found.service(name).served_share * rate for name, rate in (("pair", 1), ("singles", 3))
    ) == pytest.approx(3)


def test_pinned_services_keep_what_they_hold_and_others_plan_around_them() -> None:
    pinned = service("pinned", 1.0, running=running(big=3), pinned=True)
    other = service("other", 8.0)
    found = planned(fleet([pinned, other], small_and_big(small=64, big=4)))
    assert found.service("pinned").outcome is Outcome.PINNED
    assert mix(found.service("pinned")) == {"big": 3}
    assert mix(found.service("other"))["big"] == 1
    assert found.service("pinned").served_share == 1.0


def test_what_runs_stays_where_a_change_would_not_pay_for_itself() -> None:
    """Two small ones for a big one save its price less 2 $/h; to load them for a minute costs 2/60 $ in the hour."""
    for big_price, expected in ((2.02, {"big": 3}), (2.05, {"big": 2, "small": 2})):
        pools = small_and_big(big_price=big_price)
        fresh = planned(fleet(service(rate=8.0), pools)).service("chat")
        moved = planned(fleet(service(rate=8.0, running=running(big=3)), pools)).service("chat")
        assert mix(fresh) == {"big": 2, "small": 2}
        assert mix(moved) == expected
        assert moved.lower_bound_usd_per_hour == pytest.approx(fresh.cost_usd_per_hour)


def test_a_horizon_of_zero_forgets_what_runs() -> None:
    options = PlanOptions(switching_horizon_s=0.0)
    state = fleet(service(rate=8.0, running=running(big=3)), small_and_big(big_price=2.02))
    assert mix(plan(state, options, capacity_of=SMALL_AND_BIG).service("chat")) == {"big": 2, "small": 2}


def test_among_equals_what_runs_stays() -> None:
    rates = Rates({("a", 1): {SHORT: 1.0, LONG: 1.0}, ("b", 1): {SHORT: 1.0, LONG: 1.0}})
    for name in ("a", "b"):
        pools = (pool("a", 1.0), pool("b", 1.0))
        found = plan(fleet(service(rate=2.0, running=running(**{name: 2})), pools), capacity_of=rates)
        assert mix(found.service("chat")) == {name: 2}


def test_what_runs_in_a_pool_that_is_gone_is_kept_without_a_price_where_nothing_is_decided() -> None:
    found = alone(rate=8.0, running={Variant("gone", 1): 2}, pinned=True)
    assert mix(found) == {"gone": 2}
    assert found.cost_usd_per_hour == 0.0
    assert found.served_share == 0.0


def test_no_requests_need_only_the_replicas_asked_for() -> None:
    assert mix(alone(rate=0.0, replicas=ReplicaBounds(0))) == {}
    assert mix(alone(rate=0.0, replicas=ReplicaBounds(2))) == {"small": 2}


def test_an_empty_fleet() -> None:
    found = planned(FleetState((), ()))
    assert found.services == ()
    assert found.cost_usd_per_hour == 0.0
    assert found.status is SolverStatus.OPTIMAL


def test_a_service_without_any_pool() -> None:
    found = planned(fleet(service(), ()))
    assert found.service("chat").outcome is Outcome.NO_GPU_FITS
