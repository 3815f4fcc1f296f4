"""Which services change their mix now, which wait, and why: `plan_and_decide`, with capacities by table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medley_planner.fleet import (
    Availability,
    CapacityType,
    FleetState,
    PlanOptions,
    Pool,
    ReplicaBounds,
    Service,
    Stock,
    Variant,
)
from medley_planner.policy import Choice, Decision, FleetDecision, Standing, plan_and_decide
from medley_planner.result import Outcome
from medley_planner.workload.sizes import SizeHistogram
from planner_fleets import LONG, SHORT, SMALL_AND_BIG, fleet, mix, running, service, small_and_big

SETTLED = {"chat": Standing()}


def decide_all(
    state: FleetState, standings: dict[str, Standing] | None = None, *, now_s: float = 1000.0, explain: bool = False
) -> FleetDecision:
    options = PlanOptions(explain=explain)
    standings = SETTLED if standings is None else standings
    return plan_and_decide(state, standings, now_s=now_s, options=options, capacity_of=SMALL_AND_BIG)


def decide(
    asked: Service,
    pools: tuple[Pool, ...] = small_and_big(),
    standing: Standing | None = None,
    *,
    now_s: float = 1000.0,
) -> Decision:
    return decide_all(fleet(asked, pools), {"chat": standing or Standing()}, now_s=now_s).of("chat")


def counts(decision: Decision) -> dict[str, int]:
    return {str(variant).removesuffix("/tp1"): count for variant, count in decision.target}


BEST = running(big=2, small=2)
"""The best mix for 8 req/s at 1 and 5 $/h."""

ONLY_BIG = running(big=3)
"""What serves 8 req/s as well, for 3 $/h (20 %) more."""


def test_a_new_service_gets_its_mix_at_once() -> None:
    decision = decide_all(fleet(service(rate=8.0), small_and_big()), {}).of("chat")
    assert (decision.choice, decision.reason) == (Choice.CHANGE, "FirstPlan")
    assert counts(decision) == {"big": 2, "small": 2}
    assert decision.plan.outcome is Outcome.PLANNED
    assert decision.candidate is None


def test_the_best_mix_is_left_alone() -> None:
    decision = decide(service(rate=8.0, running=BEST))
    assert (decision.choice, decision.reason) == (Choice.KEEP, "Unchanged")
    assert decision.target == tuple(sorted(BEST.items()))
    assert decision.plan.outcome is Outcome.PLANNED
    assert decision.wake_at_s is None


def test_a_cheaper_mix_waits_until_it_has_lasted_and_then_replaces_what_runs() -> None:
    asked = service(rate=8.0, running=ONLY_BIG)
    first = decide(asked, now_s=1000.0)
    assert (first.choice, first.reason) == (Choice.WAIT, "Stabilizing")
    assert first.message == "3×big → 2×big + 2×small would save 3.00 $/h (20.0 %); it must last 60 s longer"
    assert counts(first) == {"big": 3}
    assert first.plan.outcome is Outcome.PLANNED
    assert mix(first.plan) == {"big": 3}
    assert first.plan.lower_bound_usd_per_hour == pytest.approx(12.0)
    assert mix(first.candidate) == {"big": 2, "small": 2}
    assert (first.candidate_since_s, first.wake_at_s) == (1000.0, 1060.0)

    waiting = Standing(candidate_since_s=first.candidate_since_s)
    assert decide(asked, standing=waiting, now_s=1059.0).choice is Choice.WAIT
    due = decide(asked, standing=waiting, now_s=1060.0)
    assert (due.choice, due.reason) == (Choice.CHANGE, "CheaperMix")
    assert counts(due) == {"big": 2, "small": 2}
    assert due.candidate_since_s is None


def test_a_saving_that_goes_away_starts_over() -> None:
    asked = service(rate=8.0, running=ONLY_BIG)
    gone = decide(asked, small_and_big(big_price=2.1), Standing(candidate_since_s=1000.0), now_s=1030.0)
    assert gone.candidate_since_s is None
    again = decide(asked, standing=Standing(candidate_since_s=gone.candidate_since_s), now_s=1070.0)
    assert (again.reason, again.wake_at_s) == ("Stabilizing", 1130.0)


def test_a_small_saving_changes_nothing() -> None:
    decision = decide(service(rate=8.0, running=ONLY_BIG), small_and_big(big_price=2.1))
    assert (decision.choice, decision.reason) == (Choice.KEEP, "SavingTooSmall")
    assert decision.message == (
        "3×big → 2×big + 2×small would save 0.10 $/h (1.6 %), less than the 5 % that a change must save"
    )
    assert mix(decision.plan) == {"big": 3}
    assert decision.plan.gap == pytest.approx(0.1 / 6.3)


def test_a_clock_that_went_back_does_not_hold_a_change_for_ever() -> None:
    decision = decide(service(rate=8.0, running=ONLY_BIG), standing=Standing(candidate_since_s=5000.0), now_s=1000.0)
    assert (decision.candidate_since_s, decision.wake_at_s) == (1000.0, 1060.0)


def test_a_changed_specification_is_followed_at_once() -> None:
    decision = decide(service(rate=8.0, running=ONLY_BIG), standing=Standing(spec_changed=True))
    assert (decision.choice, decision.reason) == (Choice.CHANGE, "SpecChanged")


def test_more_requests_than_what_runs_can_serve() -> None:
    decision = decide(service(rate=8.0, running=running(big=1)))
    assert (decision.choice, decision.reason) == (Choice.CHANGE, "DemandNotServed")
    assert decision.message.startswith("1×big → 2×big + 2×small, because 1×big serves only ")


def test_lost_stock_is_replaced_at_once() -> None:
    decision = decide(service(rate=1.0, running=running(big=1)), small_and_big(big=0))
    assert (decision.choice, decision.reason) == (Choice.CHANGE, "StockLost")
    assert decision.message == "1×big → 6×small, because 1 GPU of big asked for, 0 to be had"
    assert counts(decision) == {"small": 6}


def test_lost_stock_that_nothing_replaces_is_still_asked_for() -> None:
    """To ask for less would free nothing: the pods are gone with their nodes, and come back with them."""
    decision = decide(service(rate=8.0, pools=("big",), running=running(big=3)), small_and_big(big=1))
    assert (decision.choice, decision.reason) == (Choice.KEEP, "StockShort")
    assert counts(decision) == {"big": 3}
    assert decision.plan.outcome is Outcome.STOCK_SHORT
    assert decision.plan.served_share == pytest.approx(0.625)
    assert "2 more GPUs of big would do" in decision.message


@pytest.mark.parametrize(
    ("wishes", "reason"),
    [
        ({"pools": ("big",), "running": BEST}, "PoolNotAllowed"),
        ({"max_cost_usd_per_hour": 13.0, "running": ONLY_BIG}, "CostCapExceeded"),
        ({"replicas": ReplicaBounds(1, 4), "running": running(big=5)}, "BoundsViolated"),
        ({"replicas": ReplicaBounds(5), "running": BEST}, "BoundsViolated"),
        ({"replicas_by_pool": {"small": ReplicaBounds(0, 1)}, "running": BEST}, "BoundsViolated"),
        ({"replicas_by_pool": {"big": ReplicaBounds(3)}, "running": BEST}, "BoundsViolated"),
        ({"running": {**BEST, Variant("gone", 1): 1}}, "PoolNotAllowed"),
    ],
)
def test_what_is_no_longer_allowed_changes_at_once(wishes: dict[str, object], reason: str) -> None:
    decision = decide(service(rate=8.0, **wishes))
    assert (decision.choice, decision.reason) == (Choice.CHANGE, reason)


def test_an_infeasible_plan_holds_what_runs() -> None:
    decision = decide(
        service(rate=8.0, max_cost_usd_per_hour=10.0, running=ONLY_BIG), standing=Standing(spec_changed=True)
    )
    assert (decision.choice, decision.reason) == (Choice.HOLD, "Infeasible")
    assert counts(decision) == {"big": 3}
    assert decision.plan.outcome is Outcome.CAP_TOO_LOW
    assert decision.plan.nearest_feasible_cap_usd_per_hour == pytest.approx(12.0)
    assert decision.message.endswith("than the cap of 10.00 $/h; 3×big is kept")


def test_a_service_that_only_wants_advice_is_never_touched() -> None:
    asked = service(rate=8.0, running=running(big=1))
    decision = decide(asked, standing=Standing(acts=False, spec_changed=True))
    assert (decision.choice, decision.reason) == (Choice.HOLD, "RecommendOnly")
    assert counts(decision) == {"big": 1}
    assert mix(decision.candidate) == {"big": 2, "small": 2}


def test_a_pinned_service_is_kept() -> None:
    decision = decide(service(rate=8.0, running=ONLY_BIG, pinned=True))
    assert (decision.choice, decision.reason) == (Choice.KEEP, "Pinned")
    assert decision.plan.outcome is Outcome.PINNED


def swapped(small: int) -> FleetState:
    """`short` sits on the one big GPU, `long` on ten small ones; the other way round, each would cost less."""
    short = service("short", 2.0, sizes=SizeHistogram.of((*SHORT, 1.0)), running=running(big=1))
    long = service("long", 1.0, sizes=SizeHistogram.of((*LONG, 1.0)), running=running(small=10))
    return fleet([short, long], small_and_big(small=small, big=1))


DUE = {"short": Standing(candidate_since_s=0.0), "long": Standing(candidate_since_s=0.0)}


def test_a_cheaper_mix_needs_room_beside_what_it_replaces() -> None:
    decided = decide_all(swapped(small=10), DUE)
    assert {each.service: (each.choice, each.reason) for each in decided.decisions} == {
        "long": (Choice.WAIT, "NoRoomToSurge"),
        "short": (Choice.WAIT, "NoRoomToSurge"),
    }
    assert decided.of("long").message == (
        "10×small → 1×big would save 5.00 $/h, but big has no room for the new replicas beside the old ones"
    )
    assert decided.of("long").candidate_since_s == 0.0


def test_savings_that_find_no_room_together_are_taken_one_after_the_other() -> None:
    state = swapped(small=11)
    first = decide_all(state, DUE)
    assert {each.service: each.reason for each in first.decisions} == {"long": "NoRoomToSurge", "short": "CheaperMix"}
    moved = tuple(replace(each, running=dict(first.of(each.name).target)) for each in state.services)
    second = decide_all(replace(state, services=moved), DUE)
    assert {each.service: each.reason for each in second.decisions} == {"long": "CheaperMix", "short": "Unchanged"}
    assert counts(second.of("long")) == {"big": 1}


def test_keepers_keep_their_stock_and_the_others_plan_around_them() -> None:
    """A new service would like the big GPUs that a settled one holds; it gets what is left."""
    settled = service("chat", 8.0, running=ONLY_BIG)
    new = service("new", 1.0)
    decided = decide_all(fleet([settled, new], small_and_big(big=3)), {"chat": Standing(min_savings_percent=30.0)})
    assert decided.of("chat").choice is Choice.KEEP
    assert counts(decided.of("chat")) == {"big": 3}
    assert counts(decided.of("new")) == {"small": 6}
    assert decided.of("new").plan.outcome is Outcome.PLANNED


def test_a_keeper_makes_room_where_a_new_service_would_go_short_otherwise() -> None:
    settled = service("chat", 8.0, running=ONLY_BIG)
    new = service("new", 2.0, pools=("big",))
    decided = decide_all(fleet([settled, new], small_and_big(big=3)), {"chat": Standing(min_savings_percent=50.0)})
    assert (decided.of("chat").choice, decided.of("chat").reason) == (Choice.CHANGE, "MakesRoom")
    assert counts(decided.of("chat")) == {"big": 2, "small": 2}
    assert counts(decided.of("new")) == {"big": 1}
    assert decided.of("new").plan.outcome is Outcome.PLANNED


def test_a_keeper_that_cannot_do_without_its_gpus_gives_none_up() -> None:
    settled = service("chat", 4.0, pools=("big",), running=running(big=2))
    new = service("new", 8.0, pools=("big",))
    decided = decide_all(fleet([settled, new], small_and_big(big=3)))
    assert decided.of("chat").choice is Choice.KEEP
    assert counts(decided.of("chat")) == {"big": 2}
    assert decided.of("new").plan.outcome is Outcome.STOCK_SHORT
    assert counts(decided.of("new")) == {"big": 1}


def test_the_fleets_plan_is_the_sum_of_what_was_decided() -> None:
    services = [
        service("best", 8.0, running=BEST),
        service("dear", 8.0, running=ONLY_BIG),
        service("capped", 8.0, max_cost_usd_per_hour=1.0, running=running(big=1)),
        service("new", 2.0),
    ]
    decided = decide_all(
        fleet(services, small_and_big()), {name: Standing() for name in ("best", "dear", "capped")}, explain=True
    )
    for decision in decided.decisions:
        assert {str(entry.variant): entry.replicas for entry in decision.plan.mix} == {
            str(variant): count for variant, count in decision.target
        }
        assert decided.plan.service(decision.service) == decision.plan
    assert decided.plan.cost_usd_per_hour == pytest.approx(
        sum(each.plan.cost_usd_per_hour for each in decided.decisions)
    )
    assert decided.plan.lower_bound_usd_per_hour <= decided.plan.cost_usd_per_hour
    assert {each.service: each.plan.outcome for each in decided.decisions} == {
        "best": Outcome.PLANNED,
        "dear": Outcome.PLANNED,
        "capped": Outcome.CAP_TOO_LOW,
        "new": Outcome.PLANNED,
    }
    assert all(decided.of(name).plan.alternatives for name in ("best", "dear", "new"))


def test_acting_on_a_decision_settles_the_fleet() -> None:
    """What was decided is unchanged when decided again, whatever was running before."""
    state = fleet([service("a", 8.0), service("b", 3.0, running=running(big=3))], small_and_big(small=6, big=4))
    decided = decide_all(state, {})
    acted = tuple(replace(each, running=dict(decided.of(each.name).target)) for each in state.services)
    again = decide_all(replace(state, services=acted), {"a": Standing(), "b": Standing()})
    assert {each.reason for each in again.decisions} == {"Unchanged"}


def test_exhausted_stock_is_what_is_held_so_that_pending_replicas_move_elsewhere() -> None:
    small, big = small_and_big(big=1)
    pools = (small, replace(big, exhausted="pods stayed Pending for 600 s", stock=Stock.of(1)))
    decision = decide(service(rate=8.0, running=BEST), pools)
    assert (decision.choice, decision.reason) == (Choice.CHANGE, "StockLost")
    assert counts(decision)["big"] == 1


# -- spread, and money for all -----------------------------------------------------------------------------------------


def test_replicas_that_are_not_spread_as_asked_are_moved_at_once() -> None:
    small, big = small_and_big()
    pools = (replace(small, capacity_type=CapacityType.SPOT), big)
    rules = Availability(spot_max_share=0.4)
    decision = decide(service(rate=8.0, running=BEST, availability=rules), pools)
    assert (decision.choice, decision.reason) == (Choice.CHANGE, "AvailabilityLost")
    assert decision.message == "2×big + 2×small → 3×big, because 2 of 4 replicas are spot, at most 40 % may be"


def test_a_loss_that_would_not_be_survived_is_mended_at_once() -> None:
    small, big = small_and_big()
    pools = (replace(small, capacity_type=CapacityType.SPOT), big)
    rules = Availability(survivable_share=0.9)
    decision = decide(service(rate=8.0, running=BEST, availability=rules), pools)
    assert (decision.choice, decision.reason) == (Choice.CHANGE, "AvailabilityLost")
    assert "of the demand is served without small, 90 % must be" in decision.message
    assert counts(decision) == {"big": 3}


def test_a_fleet_that_costs_more_than_its_cap_shrinks_and_then_stays() -> None:
    def capped(**mixes: dict[Variant, int]) -> FleetDecision:
        services = [service(name, 8.0, running=mixes[name]) for name in sorted(mixes)]
        state = replace(fleet(services, small_and_big()), max_cost_usd_per_hour=17.0)
        return decide_all(state, {name: Standing() for name in mixes})

    first = capped(one=BEST, two=BEST)
    assert {each.reason for each in first.decisions if each.choice is Choice.CHANGE} == {"CostCapExceeded"}
    assert first.plan.cost_usd_per_hour <= 17.0
    assert first.plan.nearest_feasible_cap_usd_per_hour == pytest.approx(24.0)
    assert Outcome.FLEET_CAP_TOO_LOW in {each.outcome for each in first.plan.services}
    then = {each.service: dict(each.target) for each in first.decisions}
    second = capped(**then)
    assert all(each.choice is Choice.KEEP for each in second.decisions)
    assert {each.reason for each in second.decisions} <= {"FleetCostCapTooLow", "Unchanged"}
