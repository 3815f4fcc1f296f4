"""Services that compete for stock, planned one at a time at prices of what they share; short stock by priority."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

import medley_planner.sharing.coalitions as coalitions_module
from medley_planner.checking.check import check
from medley_planner.fleet import FleetState, Method, PlanOptions, ReplicaBounds
from medley_planner.outlook import outlook
from medley_planner.plan import plan
from medley_planner.programme.by_cuts import MixSearch, solve_by_cuts
from medley_planner.programme.goals import Ending, Goal, Limits
from medley_planner.programme.memo import Memo
from medley_planner.programme.problem import FleetProblem, ServiceProblem, StockLimit, stock_limits
from medley_planner.programme.serving import Serving
from medley_planner.programme.split import serves_all
from medley_planner.result import Outcome, SolverStatus
from medley_planner.sharing.decompose import decomposed, needed_limits
from medley_planner.sharing.relaxed_prices import relaxed_prices, wanted_beyond
from medley_planner.workload.sizes import SizeHistogram
from planner_fleets import LONG, SHORT, SMALL_AND_BIG, fleet, mix, service, small_and_big

GAP = 0.01
TIES = 0.01
"""More than what orders mixes of equal price by their GPUs adds to any price here."""
SEED = 7


def competing(services: int, *, big: int, small: int = 400, seed: int = SEED) -> FleetState:
    """Services of many rates, of which most would like big GPUs best, and there are few."""
    rng = random.Random(seed)
    asked = [
        service(
            f"s{k:02}", rng.uniform(2.0, 9.0), sizes=SizeHistogram.of((*SHORT, 1.0), (*LONG, rng.uniform(0.2, 2.0)))
        )
        for k in range(services)
    ]
    return fleet(asked, small_and_big(small=small, big=big))


def problem_of(state: FleetState) -> FleetProblem:
    ready = outlook(state, PlanOptions(), SMALL_AND_BIG, Memo())
    services = tuple(each.problem for each in ready.prepared.values())
    return FleetProblem(services, stock_limits(services, ready.stock))


def names(state: FleetState) -> list[str]:
    return sorted(each.name for each in state.services)


@pytest.fixture
def every_coalition_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalitions_module, "_LARGE_SHARES", 0)


# -- prices and bounds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("big", [4, 12, 25])
def test_a_decomposed_coalition_is_within_its_gap_of_the_joint_optimum(big: int) -> None:
    state = competing(10, big=big)
    problem = problem_of(state)
    best = solve_by_cuts(problem, Goal.CHEAPEST, Limits(60.0, 1e-6))
    found = decomposed(problem, names(state), Limits(60.0, GAP), Memo()).solution
    assert found.ending is Ending.OPTIMAL
    assert found.bound <= best.objective + 1e-3
    assert best.objective - TIES <= found.objective
    assert found.objective - found.bound <= GAP * found.objective + 1e-9
    for limit in problem.shared:
        used = sum(limit.used_by(*pair) for pair in zip(problem.services, found.replicas, strict=True))
        assert used <= limit.most
    for each, counts in zip(problem.services, found.replicas, strict=True):
        assert each.keeps_rows(counts)
        assert serves_all(each, counts, Memo())


def test_the_bound_holds_even_where_the_gap_cannot_be_reached() -> None:
    state = competing(3, big=5)
    problem = problem_of(state)
    best = solve_by_cuts(problem, Goal.CHEAPEST, Limits(60.0, 1e-6))
    found = decomposed(problem, names(state), Limits(60.0, 1e-9), Memo()).solution
    assert found.bound <= best.objective + 1e-3 <= found.objective + 2e-3


def test_scarce_gpus_have_a_price_and_ample_ones_none() -> None:
    state = competing(10, big=8)
    found = decomposed(problem_of(state), names(state), Limits(60.0, GAP), Memo())
    prices = {limit.pool: price for limit, price in found.prices}
    assert prices["big"] > 0.1
    assert prices.get("small", 0.0) == pytest.approx(0.0, abs=1e-6)


def test_relaxed_prices_make_relaxed_services_want_what_there_is() -> None:
    problem = problem_of(competing(20, big=10))
    assert [limit.pool for limit in wanted_beyond(problem.services, problem.stock)] == ["big"]
    prices = relaxed_prices(problem.services, problem.stock, np.full(len(problem.stock), 100.0))
    assert prices.max() > 0
    (place,) = [k for k, limit in enumerate(problem.stock) if limit.pool == "big"]
    for times, short in ((0.9, True), (1.1, False)):
        dearer = [at_price(each, "big", times * prices[place]) for each in problem.services]
        assert ("big" in {limit.pool for limit in wanted_beyond(dearer, problem.stock)}) is short


def at_price(each: ServiceProblem, pool: str, more: float) -> ServiceProblem:
    pairs = zip(each.variants, each.prices, strict=True)
    return replace(each, prices=tuple(price + more * (variant.pool == pool) for variant, price in pairs))


def test_limits_of_larger_groups_that_hold_anyway_are_left_out() -> None:
    of = [StockLimit("a", 1, 8), StockLimit("a", 2, 8), StockLimit("a", 4, 4), StockLimit("b", 2, 8)]
    assert needed_limits(of) == (of[0], of[2], of[3])


def test_a_service_that_cannot_be_served_alone_makes_the_coalition_infeasible() -> None:
    state = competing(4, big=8)
    impossible = service("z", 5.0, replicas=ReplicaBounds(1, 1))
    state = replace(state, services=(*state.services, impossible))
    assert decomposed(problem_of(state), names(state), Limits(60.0, GAP), Memo()).solution.ending is Ending.INFEASIBLE


# -- plans -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("every_coalition_is_large")
def test_a_plan_of_many_services_is_sound_and_says_what_more_gpus_are_worth() -> None:
    state = competing(12, big=10)
    found = plan(state, PlanOptions(explain=False, shared_gap=GAP), capacity_of=SMALL_AND_BIG)
    assert check(state, found, SMALL_AND_BIG) == ()
    assert found.status is SolverStatus.OPTIMAL
    assert found.gap <= GAP
    assert all(each.outcome is Outcome.PLANNED for each in found.services)
    assert [price.pool for price in found.shadow_prices] == ["big"]
    reference = plan(state, PlanOptions(explain=False, method=Method.REFERENCE), capacity_of=SMALL_AND_BIG)
    assert found.lower_bound_usd_per_hour <= reference.cost_usd_per_hour + 1e-6
    assert reference.lower_bound_usd_per_hour <= found.cost_usd_per_hour + 1e-6


@pytest.mark.usefixtures("every_coalition_is_large")
def test_the_order_of_many_services_does_not_matter() -> None:
    state = competing(12, big=10)
    shuffled = list(state.services)
    random.Random(SEED).shuffle(shuffled)
    other = FleetState(tuple(shuffled), tuple(reversed(state.pools)))
    options = PlanOptions(explain=False, shared_gap=GAP)
    assert plan(other, options, capacity_of=SMALL_AND_BIG) == plan(state, options, capacity_of=SMALL_AND_BIG)


@pytest.mark.usefixtures("every_coalition_is_large")
def test_an_unchanged_fleet_keeps_its_plan_and_one_that_runs_it_changes_nothing() -> None:
    state, memo, options = competing(12, big=10), Memo(), PlanOptions(explain=False, shared_gap=GAP)
    found = plan(state, options, memo=memo, capacity_of=SMALL_AND_BIG)
    assert plan(state, options, memo=memo, capacity_of=SMALL_AND_BIG) == found
    its = {each.name: {entry.variant: entry.replicas for entry in each.mix} for each in found.services}
    runs = replace(state, services=tuple(replace(each, running=its[each.name]) for each in state.services))
    for kept in (memo, Memo()):
        again = plan(runs, options, memo=kept, capacity_of=SMALL_AND_BIG)
        assert [each.mix for each in again.services] == [each.mix for each in found.services]


@pytest.mark.usefixtures("every_coalition_is_large")
def test_when_one_rate_grows_the_others_stay_where_they_are_within_the_gap() -> None:
    state, memo, options = competing(12, big=10), Memo(), PlanOptions(explain=False, shared_gap=GAP)
    found = plan(state, options, memo=memo, capacity_of=SMALL_AND_BIG)
    its = {each.name: {entry.variant: entry.replicas for entry in each.mix} for each in found.services}
    busier = tuple(
        replace(each, running=its[each.name], rate_rps=each.rate_rps * (1.1 if each.name == "s05" else 1.0))
        for each in state.services
    )
    changed = replace(state, services=busier)
    warm = plan(changed, options, memo=memo, capacity_of=SMALL_AND_BIG)
    cold = plan(changed, options, capacity_of=SMALL_AND_BIG)
    assert check(changed, warm, SMALL_AND_BIG) == ()
    assert warm.gap <= GAP
    assert warm.lower_bound_usd_per_hour <= cold.cost_usd_per_hour + 1e-6
    assert cold.lower_bound_usd_per_hour <= warm.cost_usd_per_hour + 1e-6
    assert all(warm.service(name).mix == found.service(name).mix for name in its if name != "s05")


@pytest.mark.usefixtures("every_coalition_is_large")
def test_stock_that_cannot_serve_many_services_is_still_shared_out() -> None:
    state = competing(6, big=3, small=10)
    found = plan(state, PlanOptions(explain=False, shared_gap=GAP), capacity_of=SMALL_AND_BIG)
    assert check(state, found, SMALL_AND_BIG) == ()
    assert any(each.outcome is Outcome.STOCK_SHORT for each in found.services)
    assert sum(gpus for _, gpus in found.gpus_by_pool) == 13


# -- priorities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", list(Method))
def test_short_stock_goes_to_the_highest_priority_first(method: Method) -> None:
    long_only = SizeHistogram.of((*LONG, 1.0))
    asked = [service(name, 4.0, sizes=long_only, pools=("big",), priority=p) for name, p in (("low", 0), ("top", 9))]
    found = plan(fleet(asked, small_and_big(big=3)), PlanOptions(method=method), capacity_of=SMALL_AND_BIG)
    assert (mix(found.service("top")), mix(found.service("low"))) == ({"big": 2}, {"big": 1})
    assert found.service("top").outcome is Outcome.PLANNED
    assert found.service("low").outcome is Outcome.STOCK_SHORT
    assert found.service("low").served_share == pytest.approx(0.5)


def test_a_smaller_service_of_higher_priority_goes_before_a_larger_one() -> None:
    long_only = SizeHistogram.of((*LONG, 1.0))
    asked = [
        service("huge", 40.0, sizes=long_only, pools=("big",)),
        service("tiny", 0.5, sizes=long_only, pools=("big",), priority=1),
    ]
    found = plan(fleet(asked, small_and_big(big=3)), capacity_of=SMALL_AND_BIG)
    assert found.service("tiny").served_share == 1.0
    assert mix(found.service("huge")) == {"big": 2}
    (worth,) = [price for price in found.shadow_prices if price.pool == "big"]
    assert worth.served_rps == pytest.approx(2.0)
    assert "would serve 2 req/s more" in worth.detail


def test_one_more_gpu_of_a_full_pool_is_worth_what_planning_with_it_saves() -> None:
    asked = service("chat", 4.0, sizes=SizeHistogram.of((*LONG, 1.0)))
    found = plan(fleet(asked, small_and_big(big=1)), capacity_of=SMALL_AND_BIG)
    assert mix(found.service("chat")) == {"big": 1, "small": 20}
    (worth,) = found.shadow_prices
    assert (worth.pool, worth.served_rps) == ("big", 0.0)
    assert worth.usd_per_gpu_hour == pytest.approx(25.0 - 10.0)


# -- cuts --------------------------------------------------------------------------------------------------------------


def test_no_cut_excludes_replicas_that_can_serve_and_some_cut_excludes_those_that_cannot() -> None:
    (asked,) = problem_of(fleet(service(rate=5.0), small_and_big())).services
    serving = Serving(asked)
    rng = np.random.default_rng(SEED)
    cuts = [cut for _ in range(50) for cut in serving.at_prices(rng.uniform(0.01, 5.0, len(asked.variants)))]
    for small in range(30):
        for big in range(5):
            counts = tuple(big if variant.pool == "big" else small for variant in asked.variants)
            usable = np.array(counts, dtype=np.float64)
            if serves_all(asked, counts, Memo()):
                assert serving.broken(usable) == []
                assert all(cut.missing(usable) <= 1e-6 for cut in cuts)
            else:
                assert all(cut.missing(usable) > 0 for cut in serving.broken(usable))
                assert serving.broken(usable)


def test_a_search_at_other_prices_finds_what_a_new_one_finds() -> None:
    problem = replace(problem_of(competing(1, big=50)), stock=())
    search = MixSearch(problem, Goal.CHEAPEST)
    for surcharge in (0.0, 1.0, 4.0, 0.5, 20.0, 0.0):
        extra = np.array([surcharge if v.pool == "big" else 0.0 for v in problem.services[0].variants])
        old = search.solve(Limits(30.0, 1e-9), [extra])
        new = MixSearch(problem, Goal.CHEAPEST).solve(Limits(30.0, 1e-9), [extra])
        assert old.objective == pytest.approx(new.objective)
        assert old.bound == pytest.approx(old.objective)


# -- memory ------------------------------------------------------------------------------------------------------------


def test_a_memo_keeps_no_more_than_it_is_allowed() -> None:
    memo = Memo(megabytes=0.05)
    for number in range(100):
        memo.recall(number, lambda number=number: tuple(float(number + k) for k in range(100)))
    assert memo.recall(99, tuple) != ()
    assert memo.recall(0, tuple) == ()
    with pytest.raises(ValueError, match="megabytes"):
        Memo(megabytes=0.0)
