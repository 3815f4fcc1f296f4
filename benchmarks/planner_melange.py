"""Our solve against Mélange's own formulation and solver, and the whole optimum against rounding and single types.

1. *Speed.* One service, the four GPU types and prices of the Mélange paper, request sizes of the Azure conversation
   trace, capacities by roofline, 1 to 32 requests per second. Theirs: the paper's model, a binary for each of four
   slices of each bucket, PuLP and CBC, to proven optimality; ours: the same figures to a gap of 10⁻⁶. Both are timed
   from figures to mix in the same process, each as the best of as many runs as take a second together, at most twenty;
   ours once before and once after theirs, as the machine's pace changes. CBC is
   given `CBC_LIMIT_S`; where it does not end in that, the time is the limit, and the true ratio larger.
2. *Rounding.* 1,000 drawn services on eight GPU types, each type with the number of GPUs to a replica that is cheapest
   there: the optimum against the fractional optimum with the replicas of each type rounded up, and against the best
   single type. A sample is also solved by the reference model.

Quick: three rates and 20 services, about 20 s. Otherwise about ten minutes where CBC needs its limit at every rate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
from rich.console import Console
from rich.table import Table

from medley_bench.fleets import SEED, drawn_services
from medley_bench.report import Row
from medley_planner.capacities.capacity import capacities
from medley_planner.catalogue.known_models import known_models
from medley_planner.fleet import FleetState, Objectives, PlanOptions, Service
from medley_planner.outlook import outlook
from medley_planner.programme.cheapest import solve_pruned
from medley_planner.programme.goals import Goal, Limits
from medley_planner.programme.melange import MelangeMix, Solver, melange
from medley_planner.programme.memo import Memo
from medley_planner.programme.milp import solve
from medley_planner.programme.problem import FleetProblem, ServiceProblem
from medley_planner.workload.presets import preset
from mix import MAX_CONTEXT_TOKENS, MODEL, POOLS, PRESET, RATES_RPS

SLICE_FACTOR = 4
CBC_LIMIT_S = 60.0
RUNS, RUNS_S = 20, 1.0
EXACT = Limits(time_limit_s=60.0, relative_gap=1e-6)
SERVICES = 1_000
COMPARED = 50
"""Of the drawn services, so many are also solved by the reference model."""

GOAL_RATIO = 100.0

T = TypeVar("T")


@dataclass(frozen=True)
class Compared:
    """One rate: seconds and prices of both."""

    rate_rps: float
    ours_s: float
    theirs_s: float
    ours_usd: float
    theirs_usd: float | None
    ended: bool


def rows(*, quick: bool) -> list[Row]:
    """The figures of both parts."""
    console = Console()
    found = [*_speed(RATES_RPS[:3] if quick else RATES_RPS, 5.0 if quick else CBC_LIMIT_S, console)]
    return [*found, *_rounding(20 if quick else SERVICES, 5 if quick else COMPARED, console)]


def _timed(compute: Callable[[], T], runs: int = 1) -> tuple[T, float]:
    """A result, and the least time of as many runs as take a second together, at most so many."""
    result, best, spent_s = None, math.inf, 0.0
    for _ in range(runs):
        started = time.perf_counter()
        result = compute()
        took_s = time.perf_counter() - started
        best, spent_s = min(best, took_s), spent_s + took_s
        if spent_s >= RUNS_S:
            break
    return cast("T", result), best


# -- speed -------------------------------------------------------------------------------------------------------------


def _problem(rate_rps: float) -> ServiceProblem:
    service = Service(
        name="mix",
        model=known_models()[MODEL],
        rate_rps=rate_rps,
        sizes=preset(PRESET).sizes,
        objectives=Objectives(time_per_output_token_s=0.120),
        tensor_parallel=(1,),
        max_context_tokens=MAX_CONTEXT_TOKENS,
    )
    (ready,) = outlook(FleetState((service,), POOLS), PlanOptions(), capacities, Memo()).prepared.values()
    return ready.problem


def _compare(rate_rps: float, cbc_limit_s: float) -> Compared:
    problem = _problem(rate_rps)
    alone = FleetProblem((problem,), ())
    limits = Limits(time_limit_s=cbc_limit_s, relative_gap=0.0)
    ours, before_s = _timed(lambda: solve_pruned(alone, Goal.CHEAPEST, EXACT, Memo()), RUNS)
    theirs: MelangeMix | None
    theirs, theirs_s = _timed(lambda: melange(problem, SLICE_FACTOR, limits, solver=Solver.CBC, binary=True), RUNS)
    _, after_s = _timed(lambda: solve_pruned(alone, Goal.CHEAPEST, EXACT, Memo()), RUNS)
    return Compared(
        rate_rps=rate_rps,
        ours_s=min(before_s, after_s),
        theirs_s=theirs_s,
        ours_usd=problem.cost(ours.replicas[0]),
        theirs_usd=None if theirs is None else problem.cost(theirs.replicas),
        ended=theirs is not None and theirs.optimal and theirs_s < cbc_limit_s,
    )


def _speed(rates: Sequence[float], cbc_limit_s: float, console: Console) -> list[Row]:
    table = Table(title=f"One service, 4 GPU types, {len(_problem(1.0).loads)} buckets: seconds from figures to mix")
    for column in ("req/s", "ours, s", "Mélange by CBC, s", "ratio", "ours, $/h", "Mélange, $/h"):
        table.add_column(column, justify="right")
    found = []
    compared = [_compare(rate_rps, cbc_limit_s) for rate_rps in rates]
    for rate_rps, each in zip(rates, compared, strict=True):
        theirs = "none found" if each.theirs_usd is None else f"{each.theirs_usd:.3f}"
        seconds = f"{each.theirs_s:.2f}" if each.ended else f"> {each.theirs_s:.0f} (limit)"
        ratio = each.theirs_s / each.ours_s
        table.add_row(f"{rate_rps:g}", f"{each.ours_s:.4f}", seconds, f"{ratio:.0f}×", f"{each.ours_usd:.3f}", theirs)
        name = f"solve at {rate_rps:g} req/s"
        cheaper = each.theirs_usd is None or each.ours_usd <= each.theirs_usd + 1e-6
        found += [
            Row(f"{name}: ours", each.ours_s, "s"),
            Row(
                f"{name}: Mélange's formulation, CBC{'' if each.ended else ' (at its time limit)'}", each.theirs_s, "s"
            ),
            Row(f"{name}: ratio", ratio, "×", f"≥ {GOAL_RATIO:g}", ratio >= GOAL_RATIO),
            Row(f"{name}: ours costs", each.ours_usd, "$/h", "≤ Mélange's", cheaper),
            Row(f"{name}: Mélange's costs", "none found" if each.theirs_usd is None else each.theirs_usd, "$/h"),
        ]
    together = math.fsum(each.theirs_s for each in compared) / math.fsum(each.ours_s for each in compared)
    found.append(Row("solve at all these rates: ratio", together, "×", f"≥ {GOAL_RATIO:g}", together >= GOAL_RATIO))
    console.print(table)
    return found


# -- rounding ----------------------------------------------------------------------------------------------------------


def _rounded_up(problem: ServiceProblem) -> float:
    """The price where every bucket goes where it is cheapest and each type's replicas are rounded up."""
    loads = np.array(problem.loads)
    chosen = (loads * np.array(problem.prices)).argmin(axis=1)
    used = np.bincount(chosen, weights=loads[np.arange(len(loads)), chosen], minlength=len(problem.variants))
    return problem.cost(tuple(math.ceil(each - 1e-9) for each in used.tolist()))


def _single(problem: ServiceProblem) -> float:
    """The price of the cheapest variant that serves everything alone; infinite where none does."""
    able = [v for v in range(len(problem.variants)) if all(loads[v] < math.inf for loads in problem.loads)]
    return min((problem.prices[v] * problem.fewest(v) for v in able), default=math.inf)


def _one_variant_per_type(problem: ServiceProblem) -> ServiceProblem:
    """The service with the variant of each type that serves its requests for the least, in fractions of replicas."""
    best: dict[str, tuple[int, float, int]] = {}
    for v, variant in enumerate(problem.variants):
        served = [loads[v] for loads in problem.loads if loads[v] < math.inf]
        rank = (-len(served), problem.prices[v] * math.fsum(served), v)
        best[variant.pool] = min(best.get(variant.pool, rank), rank)
    return problem.only(v for _, _, v in best.values())


def _rounding(services: int, compared: int, console: Console) -> list[Row]:
    rounded, single, differences = [], [], []
    seconds = reference_s = 0.0
    for number, drawn in enumerate(drawn_services(services)):
        problem = _one_variant_per_type(drawn)
        alone = FleetProblem((problem,), ())
        best, took = _timed(lambda alone=alone: solve_pruned(alone, Goal.CHEAPEST, EXACT, Memo()))  # type: ignore[misc]
        seconds += took
        optimum = problem.cost(best.replicas[0])
        rounded.append(_rounded_up(problem) / optimum)
        single.append(_single(problem) / optimum)
        if number < compared:
            reference, took = _timed(lambda alone=alone: solve(alone, Goal.CHEAPEST, EXACT))  # type: ignore[misc]
            reference_s += took
            differences.append(abs(best.objective - reference.objective) / reference.objective)
    possible = [each for each in single if math.isfinite(each)]
    table = Table(title=f"{services} drawn services, 8 GPU types (seed {SEED}): price over the integer optimum's")
    for column in ("", "mean", "max"):
        table.add_column(column, justify="right")
    table.add_row("each type rounded up", f"{np.mean(rounded):.3f}", f"{max(rounded):.2f}")
    table.add_row("best single type", f"{np.mean(possible):.3f}", f"{max(possible):.2f}")
    console.print(table)
    return [
        Row(f"each type rounded up over the optimum, {services} services: mean", float(np.mean(rounded)), "×"),
        Row(f"each type rounded up over the optimum, {services} services: max", max(rounded), "×"),
        Row(f"best single type over the optimum, {len(possible)} services: mean", float(np.mean(possible)), "×"),
        Row(f"best single type over the optimum, {len(possible)} services: max", max(possible), "×"),
        Row("drawn services that no single type can serve", services - len(possible), "services"),
        Row("drawn services: time to solve, mean", seconds / services, "s"),
        Row(
            f"fast solve against the reference model, {compared} services: largest difference in cost",
            max(differences),
            "relative",
            "≤ 2e-6",
            max(differences) <= 2 * EXACT.relative_gap,
        ),
        Row(f"reference model, {compared} services: time to solve, mean", reference_s / compared, "s"),
    ]
