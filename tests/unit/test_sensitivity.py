"""How far a plan holds: turns of prices and rates, curves of cost, and the map of request sizes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from medley_planner.explaining.curves import Axis
from medley_planner.explaining.sensitivity import TURNS_ONLY, Effort, Sensitivity, sensitivity
from medley_planner.explaining.turns import Change, Search, Turn, summary
from medley_planner.fleet import CapacityType, FleetState, PlanOptions
from medley_planner.plan import plan
from medley_planner.programme.memo import Memo
from medley_planner.result import Outcome
from planner_fleets import LONG, SHORT, SMALL_AND_BIG, Rates, fleet, pool, random_fleet, running, service, small_and_big

QUICK = PlanOptions(explain=False)
SEED = 20261122


def asked(state: FleetState, *, rates: Rates = SMALL_AND_BIG, effort: Effort = TURNS_ONLY, **more) -> Sensitivity:
    memo = Memo()
    return sensitivity(
        state,
        plan(state, QUICK, capacity_of=rates, memo=memo),
        QUICK,
        effort=effort,
        capacity_of=rates,
        memo=memo,
        **more,
    )


def turn(found: tuple[Turn, ...], subject: str, *, upwards: bool) -> Turn:
    (one,) = [each for each in found if each.subject == subject and each.upwards is upwards]
    return one


def test_a_price_turns_where_two_mixes_cost_the_same() -> None:
    """2×big + 2×small against 3×big: 2·b + 2·s = 3·b at b = 2; against 42×small: 2·b + 2 = 42 at b = 20."""
    found = asked(fleet(service(rate=8.0), small_and_big()))
    down, up = turn(found.prices, "big", upwards=False), turn(found.prices, "big", upwards=True)
    assert (down.holds_to, down.changes_at) == (pytest.approx(2.0, rel=2e-3), pytest.approx(2.0, rel=2e-3))
    assert down.changes == (Change("chat", "2×big + 2×small", "3×big"),)
    assert (up.holds_to, up.changes_at) == (pytest.approx(20.0, rel=2e-3), pytest.approx(20.0, rel=2e-3))
    assert up.changes == (Change("chat", "2×big + 2×small", "42×small"),)
    assert up.cost_before_usd_per_hour == pytest.approx(up.cost_after_usd_per_hour, rel=2e-3)


def test_a_rate_turns_where_the_mix_is_full() -> None:
    """Two big and two small replicas serve 8 of these requests in a second, two big and one small 7.2 of them."""
    found = asked(fleet(service(rate=7.9), small_and_big()))
    up, down = turn(found.rates, "chat", upwards=True), turn(found.rates, "chat", upwards=False)
    assert up.holds_to == pytest.approx(8.0, rel=2e-3)
    assert up.changes == (Change("chat", "2×big + 2×small", "2×big + 3×small"),)
    assert up.cost_before_usd_per_hour is None
    assert up.cost_after_usd_per_hour == pytest.approx(13.0)
    assert down.holds_to == pytest.approx(7.2, rel=2e-3)
    assert down.changes == (Change("chat", "2×big + 2×small", "2×big + 1×small"),)


def test_headroom_is_kept_when_a_rate_turns() -> None:
    found = asked(fleet(service(rate=7.1, headroom=0.1), small_and_big()))
    assert turn(found.rates, "chat", upwards=True).holds_to == pytest.approx(7.2, rel=2e-3)


def test_where_nothing_changes_it_says_how_far_was_looked() -> None:
    found = asked(fleet(service(), (pool("big", 5.0),)))
    assert [(each.changes_at, each.changes) for each in found.prices] == [(None, ()), (None, ())]
    assert [each.looked_to for each in found.prices] == [0.625, 40.0]
    assert [each.plans for each in found.prices] == [1, 1]


def test_an_unused_pool_is_only_asked_for_lower_prices() -> None:
    found = asked(fleet(service(rate=8.0), (*small_and_big(), pool("dear", 30.0))), rates=WITH_DEAR)
    (dear,) = [each for each in found.prices if each.subject == "dear"]
    assert not dear.upwards
    assert dear.changes_at is not None
    assert "dear" in dear.changes[0].after


WITH_DEAR = Rates({**SMALL_AND_BIG.table, ("dear", 1): {SHORT: 8.0, LONG: 2.0}})


def test_what_is_free_has_no_turn() -> None:
    found = asked(fleet(service(rate=8.0), (pool("small", 0.0), small_and_big()[1])))
    assert {each.subject for each in found.prices} == {"big"}


def test_what_is_paid_anyhow_has_no_turn() -> None:
    small, big = small_and_big()
    found = asked(fleet(service(rate=8.0), (small, replace(big, capacity_type=CapacityType.RESERVED))))
    assert {each.subject for each in found.prices} == {"small"}


def test_a_spot_pool_turns_where_its_price_and_its_interruptions_cost_as_much() -> None:
    """One interruption an hour, six minutes to load: spot costs 1.1 times its price, so that 5.00 $ are 4.55 $."""
    spot = pool("spot", 2.0, capacity_type=CapacityType.SPOT, interruptions_per_hour=1.0, load_time_s=360.0)
    rates = Rates({("spot", 1): {SHORT: 8.0, LONG: 2.0}, ("big", 1): {SHORT: 8.0, LONG: 2.0}})
    found = asked(fleet(service(rate=8.0), (spot, pool("big", 5.0))), rates=rates)
    up = turn(found.prices, "spot", upwards=True)
    assert up.changes_at == pytest.approx(5.0 / 1.1, rel=3e-3)
    assert up.plans <= 4
    assert up.cost_before_usd_per_hour == pytest.approx(3 * up.changes_at)


def test_a_turn_of_a_shared_pool_names_all_services_that_change() -> None:
    state = fleet([service("a", 8.0), service("b", 8.0)], small_and_big())
    found = asked(state)
    assert [each.service for each in turn(found.prices, "big", upwards=True).changes] == ["a", "b"]


def test_a_cap_that_is_too_low_turns_at_the_rate_that_it_pays_for() -> None:
    found = asked(fleet(service(rate=8.0, max_cost_usd_per_hour=6.0), small_and_big()))
    down = turn(found.rates, "chat", upwards=False)
    assert down.changes == (Change("chat", "nothing (CostCapTooLow)", "1×big + 1×small"),)
    assert turn(found.rates, "chat", upwards=True).changes_at is None


def test_what_runs_is_part_of_the_question() -> None:
    """What runs stays until a change pays for itself, so that its turn is farther away."""
    fresh = asked(fleet(service(rate=8.0), small_and_big()))
    runs = asked(fleet(service(rate=8.0, running=running(big=2, small=2)), small_and_big()))
    assert turn(runs.prices, "big", upwards=True).holds_to > turn(fresh.prices, "big", upwards=True).holds_to


def test_the_number_of_plans_is_bounded() -> None:
    effort = replace(TURNS_ONLY, search=Search(relative_tolerance=1e-9, most_plans=3))
    found = asked(fleet(service(rate=7.9), small_and_big()), effort=effort)
    assert all(each.plans <= 3 for each in (*found.prices, *found.rates))


def test_on_random_fleets_the_plan_is_the_same_before_a_turn_and_another_one_after_it() -> None:
    turned = 0
    for number in range(8):
        rng = random.Random(f"turns/{SEED}/{number}")
        state, rates = random_fleet(rng)
        told = f"seed {SEED}, fleet {number}"
        present = plan(state, QUICK, capacity_of=rates)
        for each in asked(state, rates=rates).prices:
            near = each.now + (each.holds_to - each.now) * rng.random()
            assert mixes(at_price(state, each.subject, near), rates) == mixes(state, rates), (told, each)
            if each.changes_at is None:
                continue
            turned += 1
            there = plan(at_price(state, each.subject, each.changes_at), QUICK, capacity_of=rates)
            for change in each.changes:
                assert summary(present.service(change.service)) == change.before, told
                assert summary(there.service(change.service)) == change.after != change.before, told
            assert each.cost_after_usd_per_hour == pytest.approx(there.cost_usd_per_hour), told
            if each.plans < Search().most_plans:
                assert each.changes_at == pytest.approx(each.holds_to, rel=3e-3), told
    assert turned >= 6


def at_price(state: FleetState, name: str, price: float) -> FleetState:
    pools = tuple(replace(each, price_usd_per_gpu_hour=price) if each.name == name else each for each in state.pools)
    return replace(state, pools=pools)


def mixes(state: FleetState, rates: Rates) -> list[str]:
    return [summary(each) for each in plan(state, QUICK, capacity_of=rates).services]


CURVES = Effort(turns=False, rate_points=5, objective_points=3, map_steps=0)


def test_cost_against_rate_never_falls_and_no_single_pool_is_cheaper() -> None:
    found = asked(fleet(service(rate=8.0), small_and_big()), effort=CURVES)
    (curve,) = [each for each in found.curves if each.axis is Axis.RATE]
    assert [point.value for point in curve.points] == pytest.approx([2.0, 4.0, 8.0, 16.0, 32.0])
    costs = [point.cost_usd_per_hour for point in curve.points]
    assert costs == sorted(costs)
    assert costs[2] == pytest.approx(12.0)
    assert curve.pools == ("big", "small")
    for point in curve.points:
        assert point.cost_usd_per_hour is not None
        assert point.lower_bound_usd_per_hour <= point.cost_usd_per_hour + 1e-9
        assert all(single is None or single >= point.cost_usd_per_hour - 1e-9 for single in point.single_pools)
    assert curve.points[2].single_pools == (pytest.approx(15.0), pytest.approx(42.0))
    assert curve.points[2].gpus_by_pool == (("big", 2), ("small", 2))


def test_a_curve_stops_where_stock_ends() -> None:
    found = asked(fleet(service(rate=8.0), small_and_big(4, 4)), effort=CURVES)
    (curve,) = [each for each in found.curves if each.axis is Axis.RATE]
    assert [point.outcome for point in curve.points][-1] is Outcome.STOCK_SHORT
    assert [point.cost_usd_per_hour for point in curve.points][-1] is None


def test_curves_of_one_service_leave_the_others_their_stock() -> None:
    others = service("other", 8.0, running=running(big=2, small=2), pinned=True)
    found = asked(fleet([service(rate=8.0), others], small_and_big(4, 4)), effort=CURVES)
    assert {each.service for each in found.curves} == {"chat"}
    curve = next(each for each in found.curves if each.axis is Axis.RATE)
    assert curve.points[2].gpus_by_pool == (("big", 2), ("small", 2))
    assert curve.points[3].cost_usd_per_hour is None


def maps(steps: int) -> Effort:
    return Effort(turns=False, rate_points=0, objective_points=0, map_steps=steps)


def test_the_map_names_the_least_price_per_request() -> None:
    found = asked(fleet(service(rate=8.0), small_and_big()), rates=BY_LENGTH, effort=maps(6))
    (sizes,) = found.maps
    assert len(sizes.cells) == len(sizes.input_tokens) * len(sizes.output_tokens)
    for cell in sizes.cells:
        small = 1.0 / 3600 * 1e6 / (100 / cell.input_tokens)
        big = 5.0 / 3600 * 1e6 / 2.0
        assert cell.usd_per_million_requests == pytest.approx(min(small, big))
        assert cell.variant is not None
        assert cell.variant.pool == ("small" if small <= big else "big")
        assert cell.runner_up_ratio == pytest.approx(max(small, big) / min(small, big))


class _ByLength(Rates):
    """Small GPUs are the slower the longer the input, big ones always serve two requests in a second."""

    def __call__(self, *, gpu, sizes, **_: object):
        return tuple(self._capacity(100 / size[0] if gpu.name == "small" else 2.0, gpu, size) for size in sizes)


BY_LENGTH = _ByLength({})


def test_a_size_that_nothing_serves_says_why() -> None:
    found = asked(fleet(service(rate=8.0), small_and_big()), rates=Rates({}), effort=maps(2))
    assert {(cell.variant, cell.reason) for cell in found.maps[0].cells} == {(None, "MemoryTooSmall")}


def test_the_caller_may_end_it_and_is_told_what_was_not_asked() -> None:
    told: list[tuple[int, int, str]] = []

    def twice(done: int, of: int, words: str) -> bool:
        told.append((done, of, words))
        return done < 2

    found = asked(fleet(service(rate=8.0), small_and_big()), progress=twice)
    assert [done for done, _, _ in told] == [0, 1, 2]
    assert len(found.prices) == 2
    assert len(found.unanswered) == told[0][1] - 2
    assert found.unanswered[0] == told[-1][2]


def test_asking_again_gives_the_same() -> None:
    state = fleet([service("a", 8.0), service("b", 3.0)], small_and_big(6, 6))
    assert asked(state, effort=CURVES) == asked(state, effort=CURVES)
