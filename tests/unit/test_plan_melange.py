"""Mélange's own formulation, beside ours on the same input."""

from __future__ import annotations

import random
from dataclasses import replace

import pulp
import pytest

from medley_planner.capacities.variants import candidates
from medley_planner.fleet import FleetState, Formulation, PlanOptions, Stock
from medley_planner.plan import plan
from medley_planner.programme.figures import service_problem
from medley_planner.programme.melange import Solver, melange
from medley_planner.programme.memo import Memo
from medley_planner.programme.milp import Limits
from medley_planner.programme.problem import ServiceProblem
from medley_planner.result import FleetPlan, Outcome, SolverStatus
from medley_planner.workload.sizes import SizeHistogram
from planner_fleets import LONG, SHORT, SMALL_AND_BIG, fleet, mix, random_fleet, running, service, small_and_big

MELANGE = PlanOptions(formulation=Formulation.MELANGE)
LIMITS = Limits(time_limit_s=30.0, relative_gap=1e-6)


def as_melange(state: FleetState, options: PlanOptions = MELANGE, rates=SMALL_AND_BIG) -> FleetPlan:
    return plan(state, options, capacity_of=rates)


def test_whole_slices_go_to_one_type() -> None:
    """Short requests at 4.4 req/s load small ones 2.2: in quarters, two small ones hold 3 of 4 quarters of it."""
    found = as_melange(fleet(service(rate=8.8), small_and_big())).service("chat")
    assert found.outcome is Outcome.PLANNED
    assert {share.share for share in found.shares} <= {0.25, 0.5, 0.75, 1.0}


def test_finer_slices_never_cost_more_and_ours_never_costs_more_than_slices() -> None:
    state = fleet(service(rate=7.3), small_and_big())
    costs = [
        as_melange(state, PlanOptions(formulation=Formulation.MELANGE, slice_factor=slices)).cost_usd_per_hour
        for slices in (1, 2, 4, 8)
    ]
    ours = plan(state, capacity_of=SMALL_AND_BIG).cost_usd_per_hour
    assert costs == sorted(costs, reverse=True)
    assert ours <= costs[-1] + 1e-6


def test_it_knows_neither_stock_nor_caps() -> None:
    found = as_melange(fleet(service(rate=8.0, max_cost_usd_per_hour=1.0), small_and_big(small=0, big=0)))
    assert mix(found.service("chat")) == {"big": 2, "small": 2}
    assert found.status is SolverStatus.OPTIMAL


def test_pinned_services_and_sizes_that_fit_nowhere() -> None:
    huge = service("huge", sizes=SizeHistogram.of((*SHORT, 0.5), (10**6, 1, 0.5)), running=running(big=1))
    pinned = service("pinned", running=running(small=2), pinned=True)
    found = as_melange(fleet([huge, pinned], small_and_big()))
    assert {each.name: (each.outcome, mix(each)) for each in found.services} == {
        "huge": (Outcome.NO_GPU_FITS, {"big": 1}),
        "pinned": (Outcome.PINNED, {"small": 2}),
    }


def problem(rate: float) -> ServiceProblem:
    asked = service(rate=rate, sizes=SizeHistogram.of((*SHORT, 0.5), (*LONG, 0.3)))
    pools = sorted(small_and_big(), key=lambda each: each.name)
    found = candidates(asked, pools, SMALL_AND_BIG, Memo())
    return service_problem(asked, found, {each.name: each for each in pools}, switching_horizon_s=0.0)


@pytest.mark.parametrize("rate", [0.7, 3.1, 9.4])
@pytest.mark.parametrize("solver", [Solver.HIGHS, Solver.CBC])
@pytest.mark.parametrize("binary", [False, True])
def test_adding_up_the_binaries_of_a_bucket_changes_no_cost(rate: float, solver: Solver, binary: bool) -> None:
    asked = problem(rate)
    reference = melange(asked, 4, LIMITS)
    try:
        found = melange(asked, 4, LIMITS, solver=solver, binary=binary)
    except pulp.PulpSolverError as error:
        pytest.skip(f"no CBC on this machine: {error}")
    assert reference is not None
    assert found is not None
    assert asked.cost(found.replicas) == pytest.approx(asked.cost(reference.replicas))
    assert found.optimal


def test_ours_never_costs_more_on_random_services_without_stock_limits() -> None:
    compared = 0
    for number in range(25):
        state, rates = random_fleet(random.Random(f"melange/{number}"), services=1)
        ample = fleet(
            [service("s", s.rate_rps, sizes=s.sizes, tensor_parallel=s.tensor_parallel) for s in state.services],
            [replace(each, stock=Stock.of(4096)) for each in state.pools],
        )
        theirs = as_melange(ample, rates=rates).service("s")
        ours = plan(ample, capacity_of=rates).service("s")
        if theirs.outcome is Outcome.PLANNED and ours.outcome is Outcome.PLANNED:
            compared += 1
            assert ours.cost_usd_per_hour <= theirs.cost_usd_per_hour + 1e-6, f"fleet {number}"
    assert compared >= 10
