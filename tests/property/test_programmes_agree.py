"""The fast programme over replicas alone against the readable reference model, on random fleets of every kind.

Both end alike, with objectives within the gap, for every goal; and the fast one's replicas serve what they should.
"""

from __future__ import annotations

import collections
import os
import random
import sys
from dataclasses import replace

import pytest

from medley_planner.fleet import FleetState, PlanOptions
from medley_planner.outlook import outlook
from medley_planner.programme.by_cuts import solve_by_cuts
from medley_planner.programme.enumeration import enumerated
from medley_planner.programme.goals import Ending, Goal, Limits, Unserved
from medley_planner.programme.memo import Memo
from medley_planner.programme.milp import solve
from medley_planner.programme.problem import CostLimit, FleetProblem, stock_limits
from medley_planner.programme.split import serves_all
from planner_fleets import Rates, random_fleet, random_spread_fleet

FLEETS = int(os.environ.get("MEDLEY_AGREE_FLEETS", "40"))
SEED = int(os.environ.get("MEDLEY_SEED", "20240429"))
LIMITS = Limits(time_limit_s=30.0, relative_gap=1e-6)
LEAST_UNSERVED = 0.3
SWITCHING = 0.4
"""What loading a replica costs, of its price."""


def problem_of(state: FleetState, rates: Rates, rng: random.Random) -> FleetProblem | None:
    """All services of a fleet together, some of their replicas running; None where some size fits nowhere, which is not
    asked of a programme."""
    ready = outlook(state, PlanOptions(explain=False), rates, Memo())
    if any(each.candidates.unserved for each in ready.prepared.values()):
        return None
    services = tuple(
        replace(
            each.problem,
            priority=number % 2,
            running=tuple(rng.choice((0, 0, 1, 2)) for _ in each.problem.variants),
            switching=tuple(SWITCHING * price for price in each.problem.prices),
        )
        for number, each in enumerate(ready.prepared.values())
    )
    cap = state.max_cost_usd_per_hour
    return FleetProblem(services, stock_limits(services, ready.stock), None if cap is None else CostLimit(cap))


def partly(problem: FleetProblem) -> Unserved:
    """How much may stay unserved, by priority."""
    return tuple((priority, LEAST_UNSERVED) for priority in sorted({each.priority for each in problem.services}))


@pytest.mark.parametrize("alone", [False, True], ids=["together", "alone"])
@pytest.mark.parametrize("make", [random_fleet, random_spread_fleet], ids=["stock", "spread"])
def test_both_programmes_agree(make, alone: bool, capsys: pytest.CaptureFixture[str]) -> None:
    endings: collections.Counter[str] = collections.Counter()
    for number in range(FLEETS):
        rng = random.Random(f"agree/{SEED}/{number}")
        problem = problem_of(*make(rng), rng)
        if problem is None:
            continue
        if alone:
            problem = replace(problem, services=(problem.services[number % len(problem.services)],))
        for goal in Goal:
            told = f"seed {SEED}, fleet {number}, {goal.value}"
            unserved = partly(problem) if goal is Goal.CHEAPEST_OF_MOST_SERVED else ()
            reference = solve(problem, goal, LIMITS, unserved=unserved)
            fast = solve_by_cuts(problem, goal, LIMITS, unserved=unserved)
            endings[f"{goal.value} {reference.ending.value}"] += 1
            assert fast.ending is reference.ending, told
            if not reference.found:
                continue
            assert fast.objective == pytest.approx(reference.objective, rel=1e-5, abs=2e-4), told
            assert fast.bound <= reference.objective + 1e-5 * abs(reference.objective) + 2e-4, told
            if goal is Goal.CHEAPEST:
                pairs = list(zip(problem.services, fast.replicas, strict=True))
                assert all(service.keeps_rows(mix) and serves_all(service, mix, Memo()) for service, mix in pairs), told
                for limit in problem.shared:
                    assert sum(limit.used_by(service, mix) for service, mix in pairs) <= limit.most + 1e-6, told
    with capsys.disabled():
        sys.stdout.write(f"\nseed {SEED}: {dict(sorted(endings.items()))}\n")
    for goal in Goal:
        assert endings[f"{goal.value} {Ending.OPTIMAL.value}"] >= FLEETS // 10


@pytest.mark.parametrize("make", [random_fleet, random_spread_fleet], ids=["stock", "spread"])
def test_looking_at_all_mixes_finds_what_the_reference_finds(make, capsys: pytest.CaptureFixture[str]) -> None:
    looked = 0
    for number in range(2 * FLEETS):
        rng = random.Random(f"all mixes/{SEED}/{number}")
        problem = problem_of(*make(rng), rng)
        for service in () if problem is None else problem.services:
            told = f"seed {SEED}, fleet {number}"
            alone = replace(problem, services=(service,))
            found = enumerated(alone)
            if found is None:
                continue
            looked += 1
            reference = solve(alone, Goal.CHEAPEST, LIMITS)
            assert reference.ending is Ending.OPTIMAL, told
            assert found.objective == pytest.approx(reference.objective, rel=1e-5, abs=2e-4), told
            (mix,) = found.replicas
            assert service.keeps_rows(mix) and serves_all(service, mix, Memo()), told
            assert all(limit.used_by(service, mix) <= limit.most + 1e-6 for limit in alone.shared), told
            # the objective of the solution is what the mix costs
            assert found.objective == pytest.approx(
                service.cost(mix) + service.switching_cost(mix), abs=1e-4 * sum(service.gpus) * (1 + sum(mix))
            ), told
    with capsys.disabled():
        sys.stdout.write(f"\nseed {SEED}: {looked} services\n")
    assert looked >= FLEETS // 2
