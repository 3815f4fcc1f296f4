"""Parts of the planner whose mistakes a sound plan could hide: greedy plan, dominance, bounds, split, memo."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

import medley_planner.programme.cheapest as cheapest_module
import medley_planner.sharing.coalitions as coalitions_module
from medley_planner.capacities.variants import candidates
from medley_planner.fleet import FleetState, Method, PlanOptions, ReplicaBounds, Variant
from medley_planner.plan import plan
from medley_planner.programme.cheapest import within_bounds
from medley_planner.programme.dominance import undominated
from medley_planner.programme.figures import service_problem
from medley_planner.programme.goals import Ending, Goal, Limits, Solution, Unserved
from medley_planner.programme.greedy import greedy
from medley_planner.programme.lower_bound import fractional_bound, gap
from medley_planner.programme.memo import Memo
from medley_planner.programme.milp import solve
from medley_planner.programme.problem import FleetProblem, ServiceProblem, stock_limits
from medley_planner.programme.serving import TOLERANCE, Serving
from medley_planner.programme.split import split
from medley_planner.result import Outcome, SolverStatus
from medley_planner.workload.sizes import SizeHistogram
from planner_fleets import (
    LONG,
    SHORT,
    SMALL_AND_BIG,
    Rates,
    fleet,
    mix,
    pool,
    random_fleet,
    running,
    service,
    small_and_big,
)

LIMITS = Limits(time_limit_s=30.0, relative_gap=1e-6)
PAIRS = Rates({("a", 1): {SHORT: 1.0, LONG: 1.0}, ("a", 2): {SHORT: 1.9, LONG: 1.9}, ("b", 1): {SHORT: 1.1, LONG: 1.1}})


def figures(state: FleetState, rates: Rates) -> FleetProblem:
    pools = sorted(state.pools, key=lambda each: each.name)
    by_name = {each.name: each for each in pools}
    problems = tuple(
        service_problem(each, candidates(each, pools, rates, Memo()), by_name, switching_horizon_s=3600.0)
        for each in state.services
    )
    return FleetProblem(problems, stock_limits(problems, {each.name: each.stock for each in pools}))


def only(state: FleetState, rates: Rates) -> ServiceProblem:
    return figures(state, rates).services[0]


# -- the greedy plan ---------------------------------------------------------------------------------------------------


def test_the_greedy_plan_keeps_stock_caps_and_upper_bounds_and_never_beats_the_optimum() -> None:
    whole = 0
    for number in range(60):
        state, rates = random_fleet(random.Random(f"greedy/{number}"))
        problem = figures(state, rates)
        mixes = greedy(problem)
        for limit in problem.stock:
            used = sum(limit.used_by(each, mix_) for each, mix_ in zip(problem.services, mixes, strict=True))
            assert used <= limit.gpus, f"fleet {number}"
        for each, counts in zip(problem.services, mixes, strict=True):
            bounds = tuple(replace(b, minimum=0) for b in each.pool_bounds)
            assert within_bounds(replace(each, replicas_min=0, pool_bounds=bounds), counts), f"fleet {number}"
        best = solve(problem, Goal.CHEAPEST, LIMITS)
        serves = all(
            split(each, counts, Memo()).serves_all and within_bounds(each, counts)
            for each, counts in zip(problem.services, mixes, strict=True)
        )
        if serves:
            whole += 1
            assert best.found, f"fleet {number}"
            cost = sum(each.cost(counts) for each, counts in zip(problem.services, mixes, strict=True))
            optimum = sum(each.cost(counts) for each, counts in zip(problem.services, best.replicas, strict=True))
            assert cost >= optimum - 1e-3, f"fleet {number}"
    assert whole >= 15


def test_the_greedy_plan_of_a_million_requests_per_second_looks_at_few_replicas() -> None:
    """One look for each of its 10⁶ replicas would take minutes; a bound on looks, since time is the machine's."""
    state = fleet(service(rate=1e6), (pool("a", 1.0, 2_000_000), pool("b", 3.0, 4)))
    problem = figures(state, PAIRS)
    looks = 0

    class Counting(ServiceProblem):
        def usable(self, v: int, replicas: int) -> float:
            nonlocal looks
            looks += 1
            return super().usable(v, replicas)

    (alone,) = problem.services
    counting = Counting(**{name: getattr(alone, name) for name in alone.__dataclass_fields__})
    (counts,) = greedy(replace(problem, services=(counting,)))
    assert looks < 1000
    assert split(alone, counts, Memo()).serves_all
    assert alone.cost(counts) <= 1.001 * fractional_bound(alone)


def without_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    for way in ("solve", "solve_by_cuts"):
        monkeypatch.setattr(cheapest_module, way, lambda *_, **__: Solution(Ending.NOTHING_FOUND))
    monkeypatch.setattr(cheapest_module, "enumerated", lambda _: None)


def test_where_the_solver_finds_nothing_in_time_the_greedy_plan_is_used_and_said_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_solver(monkeypatch)
    found = plan(fleet(service(rate=8.0), small_and_big()), PlanOptions(explain=False), capacity_of=SMALL_AND_BIG)
    assert found.status is SolverStatus.HEURISTIC
    assert found.service("chat").outcome is Outcome.PLANNED
    assert mix(found.service("chat")) == {"big": 2, "small": 2}
    assert found.service("chat").lower_bound_usd_per_hour == pytest.approx(12.0)


def test_where_the_greedy_plan_falls_short_too_what_runs_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    without_solver(monkeypatch)
    asked = service(rate=8.0, running=running(big=2))
    found = plan(fleet(asked, small_and_big(small=0, big=2)), PlanOptions(explain=False), capacity_of=SMALL_AND_BIG)
    assert found.service("chat").outcome is Outcome.TIME_LIMIT
    assert mix(found.service("chat")) == {"big": 2}
    assert found.service("chat").reason == "The solver found no plan within 30 s"


def test_a_time_limit_too_short_for_anything_still_gives_a_sound_plan() -> None:
    state = fleet([service(f"s{k}", 3.0 + k) for k in range(4)], small_and_big(small=20, big=6))
    found = plan(state, PlanOptions(time_limit_s=1e-6, explain=False), capacity_of=SMALL_AND_BIG)
    assert all(each.outcome in (Outcome.PLANNED, Outcome.STOCK_SHORT, Outcome.TIME_LIMIT) for each in found.services)


# -- one by one --------------------------------------------------------------------------------------------------------


BY_REFERENCE = PlanOptions(explain=False, method=Method.REFERENCE)


def without_joint_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every coalition counts as large, and the solver never ends on more than one service."""
    monkeypatch.setattr(coalitions_module, "_LARGE_SHARES", 0)

    def alone_only(problem: FleetProblem, goal: Goal, limits: Limits, *, unserved: Unserved = ()) -> Solution:
        if len(problem.services) > 1:
            return Solution(Ending.NOTHING_FOUND)
        return solve(problem, goal, limits, unserved=unserved)

    monkeypatch.setattr(cheapest_module, "solve", alone_only)


def test_services_planned_one_by_one_keep_the_stock_and_never_beat_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = optimal = 0
    for number in range(80):
        state, rates = random_fleet(random.Random(f"one by one/{number}"), services=3)
        exact = plan(state, PlanOptions(explain=False), capacity_of=rates)
        with monkeypatch.context() as patched:
            without_joint_solver(patched)
            found = plan(state, BY_REFERENCE, capacity_of=rates)
        if found.status is not SolverStatus.HEURISTIC or exact.cost_usd_per_hour == 0:
            continue
        if all(each.outcome is Outcome.PLANNED for each in (*found.services, *exact.services)):
            whole += 1
            assert found.cost_usd_per_hour >= exact.cost_usd_per_hour - 1e-3, f"fleet {number}"
            optimal += found.cost_usd_per_hour <= exact.cost_usd_per_hour + 1e-3
    assert whole >= 5
    assert optimal >= whole // 2


def test_the_service_with_most_to_lose_chooses_first(monkeypatch: pytest.MonkeyPatch) -> None:
    without_joint_solver(monkeypatch)
    cheap = service("a-cheap", 1.0, sizes=SizeHistogram.of((*SHORT, 1.0)))
    needy = service("b-needy", 1.0, sizes=SizeHistogram.of((*LONG, 1.0)))
    found = plan(fleet([cheap, needy], small_and_big(big=1, small_price=6.0)), BY_REFERENCE, capacity_of=SMALL_AND_BIG)
    assert (mix(found.service("a-cheap")), mix(found.service("b-needy"))) == ({"small": 1}, {"big": 1})
    assert found.status is SolverStatus.HEURISTIC


def test_a_service_that_finds_no_room_serves_what_it_can_and_says_that_nothing_is_proven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_joint_solver(monkeypatch)
    services = [service(name, 4.0, pools=("big",)) for name in ("a", "b")]
    found = plan(fleet(services, small_and_big(big=3)), BY_REFERENCE, capacity_of=SMALL_AND_BIG)
    assert dict(found.gpus_by_pool) == {"big": 3}
    (short,) = [each for each in found.services if each.outcome is Outcome.STOCK_SHORT]
    assert short.reason.endswith("the solver's time ended before it found a plan for all")


# -- dominance ---------------------------------------------------------------------------------------------------------


def test_larger_replicas_that_do_no_more_than_smaller_ones_are_left_out() -> None:
    state = fleet(service(tensor_parallel=(1, 2)), (pool("a", 1.0, 4),))
    problem = only(state, PAIRS)
    assert [str(problem.variants[v]) for v in undominated(problem, figures(state, PAIRS).stock)] == ["a/tp1"]


@pytest.mark.parametrize(
    "wishes",
    [
        {"replicas": ReplicaBounds(1, 5)},
        {"replicas_by_pool": {"a": ReplicaBounds(0, 5)}},
        {"running": {Variant("a", 2): 1}},
    ],
)
def test_larger_replicas_stay_where_counts_are_bounded_or_they_run(wishes: dict[str, object]) -> None:
    problem = only(fleet(service(tensor_parallel=(1, 2), **wishes), (pool("a", 1.0),)), PAIRS)
    assert len(undominated(problem, ())) == 2


def test_a_pool_that_is_dearer_and_no_better_is_left_out_where_stock_is_ample() -> None:
    problem = only(fleet(service(), (pool("a", 1.2), pool("b", 1.0))), PAIRS)
    assert [problem.variants[v].pool for v in undominated(problem, ())] == ["b"]
    scarce = figures(fleet(service(rate=9.0), (pool("a", 1.2), pool("b", 1.0, 2))), PAIRS)
    assert len(undominated(scarce.services[0], scarce.stock)) == 2


def test_leaving_dominated_variants_out_changes_no_optimum() -> None:
    pruned = 0
    for number in range(60):
        state, rates = random_fleet(random.Random(f"dominance/{number}"))
        problem = figures(state, rates)
        kept = [undominated(each, problem.stock) for each in problem.services]
        small = FleetProblem(tuple(e.only(k) for e, k in zip(problem.services, kept, strict=True)), problem.stock)
        if small == problem:
            continue
        pruned += 1
        with_all, without = solve(problem, Goal.CHEAPEST, LIMITS), solve(small, Goal.CHEAPEST, LIMITS)
        assert with_all.ending is without.ending, f"fleet {number}"
        if with_all.found:
            assert without.objective == pytest.approx(with_all.objective, abs=1e-3), f"fleet {number}"
    assert pruned >= 15


# -- bounds, split and memo --------------------------------------------------------------------------------------------


def test_the_fractional_bound_gives_every_size_to_its_cheapest_variant() -> None:
    """4 req/s of each size: short ones cost 1/2 $ per req/s on small GPUs, long ones 5/2 $ on big ones."""
    problem = only(fleet(service(rate=8.0), small_and_big()), SMALL_AND_BIG)
    assert fractional_bound(problem) == pytest.approx(4 * 0.5 + 4 * 2.5)
    assert (
        fractional_bound(only(fleet(service(rate=0.1, replicas=ReplicaBounds(3)), small_and_big()), SMALL_AND_BIG))
        == 3.0
    )
    nowhere = only(fleet(service(), small_and_big()), Rates({("small", 1): {SHORT: 1.0}}))
    assert fractional_bound(nowhere) == math.inf


def test_gap() -> None:
    assert gap(10.0, 9.0) == pytest.approx(0.1)
    assert gap(10.0, 11.0) == 0.0
    assert gap(0.0, 0.0) == 0.0


def test_too_few_replicas_serve_what_most_requests_need() -> None:
    problem = only(fleet(service(rate=8.0), small_and_big()), SMALL_AND_BIG)
    assert [str(variant) for variant in problem.variants] == ["big/tp1", "small/tp1"]
    one_small = split(problem, (0, 1), Memo())
    assert one_small.served_share == pytest.approx(2.0 / 8.0)
    assert not one_small.serves_all
    nothing = split(problem, (0, 0), Memo())
    assert (nothing.served_share, nothing.shares) == (0.0, ())


def test_a_memo_forgets_the_least_recently_used() -> None:
    memo = Memo(entries=2)
    assert [memo.recall(key, lambda key=key: key * 10) for key in (1, 2, 1, 3, 1, 2)] == [10, 20, 10, 30, 10, 20]
    assert (memo.hits, memo.misses) == (2, 4)
    with pytest.raises(ValueError, match="entries must be at least 1, not 0"):
        Memo(entries=0)


def test_a_second_plan_of_the_same_fleet_solves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    state, memo = fleet([service(f"s{k}", 3.0 + k) for k in range(3)], small_and_big(small=12, big=5)), Memo()
    first = plan(state, capacity_of=SMALL_AND_BIG, memo=memo)
    for way in ("solve", "solve_by_cuts"):
        monkeypatch.setattr(cheapest_module, way, lambda *_, **__: pytest.fail("solved again"))
    assert plan(state, capacity_of=SMALL_AND_BIG, memo=memo) == first


def test_services_that_need_the_same_are_solved_once() -> None:
    memo = Memo()
    twins = fleet([service(f"s{k}", 8.0) for k in range(5)], small_and_big())
    plan(fleet(service("s0", 8.0), small_and_big()), PlanOptions(explain=False), capacity_of=SMALL_AND_BIG, memo=memo)
    alone = memo.misses
    plan(twins, PlanOptions(explain=False), capacity_of=SMALL_AND_BIG, memo=memo)
    assert memo.misses == alone


def test_the_split_serves_whatever_the_cuts_let_pass() -> None:
    """Loads a little beyond what one replica takes, while the others could take more or less of the rest."""
    pools = [pool("a", 1.0), pool("b", 1.0), pool("c", 1.0)]
    sizes = {SHORT: 1.0, LONG: 1.0}
    three = only(fleet(service(), pools), Rates({(name, 1): sizes for name in "abc"}))
    beyond = 1.0 + 0.9 * TOLERANCE
    problem = replace(three, loads=((beyond, math.inf, math.inf), (12.0, 12.0, 12.0)))
    replicas = (1, 8, 8)
    assert not Serving(problem).broken(np.array(replicas, dtype=np.float64))
    assert split(problem, replicas, Memo()).serves_all
