"""Lists of mixes against all mixes there are, one after the other; and what is proven where lists grow too long."""

from __future__ import annotations

import itertools
import os
import random
import sys
from dataclasses import replace

import numpy as np
import pytest

from medley_planner.fleet import PlanOptions
from medley_planner.outlook import outlook
from medley_planner.programme.by_cuts import solve_by_cuts, stepped
from medley_planner.programme.enumeration import Enumeration, enumerated
from medley_planner.programme.goals import Ending, Goal, Limits
from medley_planner.programme.lattice import Lattice
from medley_planner.programme.memo import Memo
from medley_planner.programme.milp import solve
from medley_planner.programme.problem import FleetProblem, ServiceProblem, stock_limits
from medley_planner.programme.serving import Serving
from planner_fleets import SMALL_AND_BIG, fleet, random_fleet, random_spread_fleet, service, small_and_big

FLEETS = int(os.environ.get("MEDLEY_LATTICE_FLEETS", "40"))
SEED = int(os.environ.get("MEDLEY_SEED", "20240501"))
MOST_MIXES = 5_000
LIMITS = Limits(time_limit_s=30.0, relative_gap=1e-6)


def alone(problem: ServiceProblem, rng: random.Random, stock) -> FleetProblem:
    """One service, some of its replicas running, which others cost something to join."""
    runs = tuple(rng.choice((0, 0, 1, 2)) for _ in problem.variants)
    changed = replace(problem, running=runs, switching=tuple(0.4 * price for price in problem.prices))
    return FleetProblem((changed,), stock_limits((changed,), stock))


def listed_one_by_one(problem: FleetProblem, unit_costs, cuts, most: float, *, loading: bool) -> set[tuple[int, ...]]:
    (service,) = problem.services
    found = set()
    for mix in itertools.product(*(range(useful + 1) for useful in service.useful)):
        price = sum(cost * count for cost, count in zip(unit_costs, mix, strict=True))
        if loading:
            each = zip(mix, service.running, service.switching, strict=True)
            price += sum(weight * max(0, count - runs) for count, runs, weight in each if runs)
        within = all(limit.used_by(service, mix) <= limit.most + 1e-6 for limit in problem.shared)
        if price < most and within and service.keeps_rows(mix) and np.all(cuts @ stepped(service, mix) >= 1.0 - 1e-9):
            found.add(mix)
    return found


@pytest.mark.parametrize("make", [random_fleet, random_spread_fleet], ids=["stock", "spread"])
def test_a_list_has_every_mix_below_a_price_that_keeps_rows_and_cuts(make, capsys: pytest.CaptureFixture[str]) -> None:
    compared = mixes = 0
    for number in range(FLEETS):
        rng = random.Random(f"lattice/{SEED}/{number}")
        ready = outlook(*_with_options(make(rng)), Memo())
        for each in ready.prepared.values():
            problem = alone(each.problem, rng, ready.stock)
            (one,) = problem.services
            if not one.variants or not Serving(one).possible or np.prod([u + 1 for u in one.useful]) > MOST_MIXES:
                continue
            unit_costs = np.array([rng.uniform(0.5, 2.0) * price for price in one.prices])
            prices = [np.array([rng.uniform(0.2, 2.0) * price for price in one.prices]) for _ in range(3)]
            cuts = np.array([cut.weights / cut.least for price in prices for cut in Serving(one).at_prices(price)])
            cuts = cuts.reshape(-1, len(one.variants))
            most = float(rng.uniform(1.0, 3.0) * unit_costs.sum())
            loading = rng.random() < 0.5
            below = Lattice(problem, loading=loading).below(unit_costs, cuts, most, rows=10**6)
            told = f"seed {SEED}, fleet {number}"
            assert below is not None, told
            found = {tuple(mix) for mix in below.mixes.tolist()}
            assert found == listed_one_by_one(problem, unit_costs, cuts, most, loading=loading), told
            compared, mixes = compared + 1, mixes + len(found)
    with capsys.disabled():
        sys.stdout.write(f"\nseed {SEED}: {compared} services, {mixes} mixes\n")
    assert compared >= FLEETS // 2
    assert mixes > compared


def _with_options(made):
    state, rates = made
    return state, PlanOptions(explain=False), rates


def small_and_big_service(rate: float = 30.0) -> FleetProblem:
    ready = outlook(*_with_options((fleet(service(rate=rate), small_and_big()), SMALL_AND_BIG)), Memo())
    return FleetProblem(tuple(each.problem for each in ready.prepared.values()), ())


def test_where_the_list_grows_too_long_the_bound_is_proven_all_the_same() -> None:
    problem = small_and_big_service()
    (one,) = problem.services
    serving, unit_costs = Serving(one), np.array(one.prices)
    least = solve(problem, Goal.CHEAPEST, LIMITS).objective
    search = Enumeration(problem, serving, loading=True)
    bounds = [search.search(unit_costs, serving.at_prices(unit_costs), np.inf, rows=rows) for rows in (1, 8, 64, 4096)]
    assert bounds[0].mix is None
    assert all(0.9 * least < each.bound <= least + 1e-6 for each in bounds)
    assert bounds[-1].mix is not None
    assert one.cost(bounds[-1].mix) == pytest.approx(least, abs=1e-2)


def test_no_list_is_made_where_some_demand_can_never_be_served() -> None:
    problem = small_and_big_service()
    (one,) = problem.services
    unservable = replace(one, loads=((float("inf"),) * len(one.variants), *one.loads[1:]))
    assert enumerated(replace(problem, services=(unservable,))) is None


def test_the_least_bill_does_not_count_what_loading_costs() -> None:
    problem = small_and_big_service(rate=8.0)
    (one,) = problem.services
    cheapest = solve(problem, Goal.LEAST_BILL, LIMITS)
    runs = tuple(int(variant.pool == "small") for variant in one.variants)
    dear = replace(one, running=runs, switching=tuple(10.0 * price for price in one.prices))
    found = solve_by_cuts(replace(problem, services=(dear,)), Goal.LEAST_BILL, LIMITS)
    assert found.ending is Ending.OPTIMAL
    assert found.objective == pytest.approx(cheapest.objective, rel=1e-5)
