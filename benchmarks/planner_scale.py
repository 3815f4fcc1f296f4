"""The plan of whole fleets that compete for stock: how time, memory and proven gap grow with the number of services.

Fleets of `medley_bench.fleets`: 24 variants and 100 buckets to a service, eight pools of which one is ample. Capacities
are worked out before (they depend on neither rate, price nor stock, and are kept from plan to plan); their time is told
apart. What is timed is `medley_planner.plan` without explanation, from fleet to checked plan, in a process of its own
for every size, with one that helps it and is started within that time, as `medley plan` does on two processors; peak
memory is that of both. Then, by the first of them alone: the same fleet again; the fleet with its plan running; and
with that, one service's rate 10 % higher: the median and the slowest of five, each another service's.

The reference model needs minutes for a single fleet of ten such services, so it is compared on fleets that it can
solve: 3 services each, with a time limit; where it does not end, its own bound is what the fast plan is held against.

Quick: 10 services and one comparison, about 20 s. Otherwise 10, 50, 200 and 1,000 services and five other fleets,
about seven minutes, most of it for capacities.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from medley_bench.fleets import SEED, crowded_fleet
from medley_bench.report import Row
from medley_planner.capacities.capacity import capacities
from medley_planner.fleet import FleetState, Method, PlanOptions
from medley_planner.outlook import outlook
from medley_planner.plan import plan
from medley_planner.programme.goals import Lent
from medley_planner.programme.memo import Memo
from medley_planner.programme.problem import stock_limits
from medley_planner.result import FleetPlan
from medley_planner.sharing.relaxed_prices import wanted_beyond

SIZES = (10, 50, 200, 1_000)
GOAL_SIZE = 200
GAP = 0.01
OPTIONS = PlanOptions(explain=False, shared_gap=GAP, time_limit_s=120.0)
CHANGES = 5
OTHERS = ((50, 12), (50, 13), (100, 15), (200, 11), (200, 14))
"""More fleets that are only planned once: services and seed."""

COMPARED = 5
COMPARED_SERVICES = 3
COMPARED_LIMIT_S = 60.0

GOAL_S, GOAL_MB, GOAL_AGAIN_S = 10.0, 2_000.0, 1.0


@dataclass(frozen=True)
class Measured:
    """One size of fleet."""

    services: int
    variants: float
    competing: int
    capacities_s: float
    plan_s: float
    gap: float
    status: str
    cost_usd: float
    unchanged_s: float
    unchanged: bool
    running_s: float
    moved: int
    changed_s: float
    slowest_s: float
    changed_gap: float
    changed_services: int
    peak_mb: float


def rows(*, quick: bool) -> list[Row]:
    """The figures of all sizes, and of the comparison with the reference."""
    console = Console()
    measured = [_in_own_process(size) for size in (SIZES[:1] if quick else SIZES)]
    _show(measured, console)
    others = [] if quick else _others(console)
    compared = _compared(1 if quick else COMPARED, console)
    return [*(row for each in measured for row in _rows(each)), *others, *compared]


def _in_own_process(services: int) -> Measured:
    with _process() as process:
        return Measured(**process.submit(_measure, services).result())


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measure(services: int) -> dict[str, Any]:
    memo = Memo(megabytes=2048.0)
    started = time.perf_counter()
    state = crowded_fleet(services, memo=memo)
    capacities_s = time.perf_counter() - started
    with _process() as helper:
        first, plan_s = _timed(state, memo, lambda: [helper])
        helper_mb = helper.submit(_peak_mb).result()
    again, unchanged_s = _timed(state, memo)
    running = _running(state, first)
    stays, running_s = _timed(running, memo)
    changes = [_timed(_busier(running, services * number // (CHANGES + 1)), memo) for number in range(1, CHANGES + 1)]
    seconds = sorted(took for _, took in changes)
    variants, competing = _scarcity(state, memo)
    return asdict(
        Measured(
            services=services,
            variants=variants,
            competing=competing,
            capacities_s=capacities_s,
            plan_s=plan_s,
            gap=first.gap,
            status=first.status.value,
            cost_usd=first.cost_usd_per_hour,
            unchanged_s=unchanged_s,
            unchanged=again == first,
            running_s=running_s,
            moved=_moved(first, stays),
            changed_s=statistics.median(seconds),
            slowest_s=seconds[-1],
            changed_gap=max(changed.gap for changed, _ in changes),
            changed_services=max(_moved(stays, changed) for changed, _ in changes),
            peak_mb=_peak_mb() + helper_mb,
        )
    )


def _timed(state: FleetState, memo: Memo, helpers: Lent | None = None) -> tuple[FleetPlan, float]:
    started = time.perf_counter()
    found = plan(state, OPTIONS, memo=memo, helpers=helpers)
    return found, time.perf_counter() - started


def _first_plan(services: int, seed: int, helped: bool) -> tuple[float, float]:
    """Seconds and gap of a fleet's first plan."""
    memo = Memo(megabytes=2048.0)
    state = crowded_fleet(services, seed=seed, memo=memo)
    if not helped:
        found, seconds = _timed(state, memo)
        return seconds, found.gap
    with _process() as helper:
        found, seconds = _timed(state, memo, lambda: [helper])
    return seconds, found.gap


def _others(console: Console) -> list[Row]:
    """The fleet of the goal planned by one process alone, and other fleets."""
    with _process() as process:
        alone_s, _ = process.submit(_first_plan, GOAL_SIZE, SEED, False).result()
    rows = [Row(f"{GOAL_SIZE} services: plan, by one process alone", alone_s, "s")]
    table = Table(title="Other fleets of the same kind")
    for column in ("services", "seed", "plan, s", "gap"):
        table.add_column(column, justify="right")
    for services, seed in OTHERS:
        with _process() as process:
            seconds, gap = process.submit(_first_plan, services, seed, True).result()
        table.add_row(f"{services}", f"{seed}", f"{seconds:.2f}", f"{100 * gap:.2f} %")
        name = f"{services} services, fleet {seed}"
        rows += [
            Row(f"{name}: plan", seconds, "s"),
            Row(f"{name}: proven gap", 100 * gap, "%", f"≤ {100 * GAP:g}", gap <= GAP),
        ]
    console.print(table)
    return rows


def _running(state: FleetState, found: FleetPlan) -> FleetState:
    """The fleet with its plan running."""
    mixes = {each.name: {entry.variant: entry.replicas for entry in each.mix} for each in found.services}
    return replace(state, services=tuple(replace(each, running=mixes[each.name]) for each in state.services))


def _busier(state: FleetState, chosen: int) -> FleetState:
    """The fleet with one service's rate a tenth higher."""
    services = (
        replace(each, rate_rps=1.1 * each.rate_rps) if number == chosen else each
        for number, each in enumerate(state.services)
    )
    return replace(state, services=tuple(services))


def _moved(before: FleetPlan, after: FleetPlan) -> int:
    """Services with another mix."""
    return sum(one.mix != other.mix for one, other in zip(before.services, after.services, strict=True))


def _scarcity(state: FleetState, memo: Memo) -> tuple[float, int]:
    """Variants of a service, on average, and services whose cheapest GPUs are on a pool that has too few for all."""
    ready = outlook(state, OPTIONS, capacities, memo)
    problems = tuple(each.problem for each in ready.prepared.values())
    crowded = {limit.pool for limit in wanted_beyond(problems, stock_limits(problems, ready.stock))}
    competing = 0
    for problem in problems:
        costs = [[price * load for price, load in zip(problem.prices, row, strict=True)] for row in problem.loads]
        wanted = {problem.variants[row.index(min(row))].pool for row in costs}
        competing += bool(wanted & crowded)
    return sum(len(problem.variants) for problem in problems) / len(problems), competing


def _show(measured: list[Measured], console: Console) -> None:
    table = Table(title=f"Fleets that compete for stock, to a gap of {100 * GAP:g} % (seed {SEED})")
    for column in (
        "services",
        "plan, s",
        "gap",
        "status",
        "unchanged, s",
        "one rate +10 %, s",
        "others moved",
        "peak MB",
    ):
        table.add_column(column, justify="right")
    for each in measured:
        table.add_row(
            f"{each.services}",
            f"{each.plan_s:.2f}",
            f"{100 * each.gap:.2f} %",
            each.status,
            f"{each.unchanged_s:.2f}",
            f"{each.changed_s:.2f}",
            f"{max(0, each.changed_services - 1)}",
            f"{each.peak_mb:.0f}",
        )
    console.print(table)


def _rows(each: Measured) -> list[Row]:
    name = f"{each.services} services"
    judged = each.services == GOAL_SIZE

    def row(what: str, value: float | str, unit: str, goal: str = "", met: bool = True) -> Row:
        if not (judged and goal):
            return Row(f"{name}: {what}", value, unit)
        return Row(f"{name}: {what}", value, unit, goal, met)

    return [
        row("variants of a service, mean", each.variants, "of 24"),
        row(
            "whose cheapest GPUs are too few for all",
            each.competing,
            "services",
            "≥ 1/3",
            3 * each.competing >= each.services,
        ),
        row("capacities, before", each.capacities_s, "s"),
        row("plan", each.plan_s, "s", f"≤ {GOAL_S:g}", each.plan_s <= GOAL_S),
        row("proven gap", 100 * each.gap, "%", f"≤ {100 * GAP:g}", each.gap <= GAP),
        row("price", each.cost_usd, "$/h"),
        row("ended", each.status, ""),
        row("peak memory", each.peak_mb, "MB", f"< {GOAL_MB:g}", each.peak_mb < GOAL_MB),
        row("unchanged, again", each.unchanged_s, "s", f"≤ {GOAL_AGAIN_S:g}", each.unchanged_s <= GOAL_AGAIN_S),
        row("unchanged: same plan", str(each.unchanged), "", "True", each.unchanged),
        row("with the plan running: time", each.running_s, "s"),
        row("with the plan running: mixes that change", each.moved, "services", "0", each.moved == 0),
        row("one rate +10 %, slowest", each.slowest_s, "s"),
        row("one rate +10 %, median", each.changed_s, "s", f"≤ {GOAL_AGAIN_S:g}", each.changed_s <= GOAL_AGAIN_S),
        row("one rate +10 %: proven gap", 100 * each.changed_gap, "%", f"≤ {100 * GAP:g}", each.changed_gap <= GAP),
        row("one rate +10 %: mixes that change", each.changed_services, "services"),
    ]


# -- against the reference ---------------------------------------------------------------------------------------------


def _compared(fleets: int, console: Console) -> list[Row]:
    """Small fleets by both methods: neither costs less than the other's bound, nor more than its own gap allows."""
    table = Table(title=f"{fleets} fleets of {COMPARED_SERVICES} services: fast against the reference model")
    for column in ("seed", "fast, $/h", "bound", "reference, $/h", "bound", "fast, s", "reference, s"):
        table.add_column(column, justify="right")
    exact = PlanOptions(explain=False, time_limit_s=COMPARED_LIMIT_S, shared_gap=GAP)
    agree, seconds = 0, [0.0, 0.0]
    for number in range(fleets):
        memo = Memo()
        state = crowded_fleet(COMPARED_SERVICES, seed=SEED + number, memo=memo)
        found = []
        for which, method in enumerate((Method.FAST, Method.REFERENCE)):
            started = time.perf_counter()
            found.append(plan(state, replace(exact, method=method), memo=memo))
            seconds[which] += time.perf_counter() - started
        fast, reference = found
        slack = 1e-6 * reference.cost_usd_per_hour
        within = (
            fast.lower_bound_usd_per_hour <= reference.cost_usd_per_hour + slack
            and reference.lower_bound_usd_per_hour <= fast.cost_usd_per_hour + slack
        )
        agree += within
        figures = (each for plan_ in found for each in (plan_.cost_usd_per_hour, plan_.lower_bound_usd_per_hour))
        table.add_row(f"{SEED + number}", *(f"{each:.3f}" for each in figures), *(f"{each:.1f}" for each in seconds))
    console.print(table)
    return [
        Row(
            "fast plans whose cost agrees with the reference within the gaps",
            agree,
            f"of {fleets}",
            "all",
            agree == fleets,
        ),
        Row(f"{COMPARED_SERVICES} services: fast, mean", seconds[0] / fleets, "s"),
        Row(f"{COMPARED_SERVICES} services: reference, mean", seconds[1] / fleets, "s"),
    ]
