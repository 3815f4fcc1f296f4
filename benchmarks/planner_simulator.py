"""The simulator: how fast it is, that it is true, and what planned fleets attain in it on public traces.

Three parts:

1. Speed: requests per minute of wall time on one core, through planned fleets of the traces.
2. Truth: mean waits of M/M/c and M/D/1 queues in the simulator's engine against their closed forms.
3. Attainment: each of the public traces at several speeds and three objective settings is planned for, by several rules
   of what to plan for, and replayed; and the cheapest fleet that attains is searched for in the simulator.

Quick: 20 s, one case of the last part. Else about 12 minutes on an idle machine, most of them in the search.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from medley_bench.attainment import (
    NAMES,
    SEED,
    TRACES,
    Case,
    Replayed,
    Search,
    cheapest_attaining,
    fitted,
    fitted_before,
    objective_settings,
    planned,
    pools,
    replayed,
    requests_of,
)
from medley_bench.queues import deterministic_wait_s, erlang_wait_s, mean_wait_s
from medley_bench.report import Row
from medley_planner.simulator.replay import planned_run
from medley_planner.simulator.requests import Requests
from medley_planner.simulator.run import RunOptions, StepBudget
from medley_planner.workload.arrivals import BUSY_WINDOW_S, busy_rate_rps

OPTIONS = RunOptions(seed=SEED, step_budget=StepBudget.ADVISED)

SPEEDS: Mapping[str, Sequence[float]] = {
    "azure-conv-2023": (1.0, 4.0),
    "azure-code-2023": (1.0, 4.0),
    "mooncake-conversation-2024": (1.0,),
}
"""Multiples of a trace's own rate; at 4, its bursts are as steep and last a quarter as long."""


NO_WAIT_SHARE = 0.9
WITHIN = 1.15
FITTED_BEFORE = "fitted to the first half, on the second"

_NOISE = 1e-9


def rows(*, quick: bool) -> list[Row]:
    """The figures of all parts."""
    console = Console()
    console.print(f"seed {SEED}")
    found = [*_speed(console, quick=quick), *_truth(console, quick=quick)]
    if not TRACES.is_dir():
        console.print(f"[yellow]no traces at {TRACES}: attainment is not measured")
        return found
    return [*found, *_attainment(console, quick=quick)]


# 1. Speed


def _speed(console: Console, *, quick: bool) -> list[Row]:
    table = Table(
        title="speed: planned fleets with Poisson arrivals of a trace's sizes, one core", title_justify="left"
    )
    for name in ("sizes of", "fleet", "requests", "s", "requests/min"):
        table.add_column(name, justify="left" if name in {"sizes of", "fleet"} else "right")
    slowest = float("inf")
    for trace in NAMES if TRACES.is_dir() else ():
        case = Case(trace, 1.0, "usual", objective_settings(trace)["usual"])
        service, service_plan = planned(case, queueing_quantile=NO_WAIT_SHARE)
        count = 4_000 if quick else 60_000
        rng = np.random.default_rng(SEED)
        requests = Requests.drawn(
            service.sizes, rate_rps=service.rate_rps, duration_s=count / service.rate_rps, rng=rng
        )
        run = planned_run(service, service_plan, pools(), requests, OPTIONS)
        began = time.perf_counter()
        run.finish()
        wall_s = time.perf_counter() - began
        per_minute = 60 * len(requests) / wall_s
        slowest = min(slowest, per_minute)
        fleet = ", ".join(f"{entry.replicas} {entry.variant}" for entry in service_plan.mix)
        table.add_row(trace, fleet, f"{len(requests):,}", f"{wall_s:.2f}", f"{per_minute:,.0f}")
    console.print(table)
    return [Row("simulated requests, slowest of three traces", slowest, "1/min", "≥ 100,000", slowest >= 100_000)]


# 2. Truth


def _truth(console: Console, *, quick: bool) -> list[Row]:
    requests = 20_000 if quick else 500_000
    seeds = range(1 if quick else 2)
    table = Table(title="mean wait in queues with closed forms, service time 1 s", title_justify="left")
    for name in ("queue", "load", "simulated s", "closed form s", "error"):
        table.add_column(name, justify="left" if name == "queue" else "right")
    worst = 0.0
    for name, servers, load, deterministic in (
        ("M/M/1", 1, 0.7, False),
        ("M/M/4", 4, 0.7, False),
        ("M/M/16", 16, 0.8, False),
        ("M/D/1", 1, 0.7, True),
    ):
        waits = [mean_wait_s(load, servers, requests, SEED + seed, deterministic=deterministic) for seed in seeds]
        wait_s = float(np.mean(waits))
        exact_s = deterministic_wait_s(load) if deterministic else erlang_wait_s(load, servers)
        error = abs(wait_s / exact_s - 1)
        worst = max(worst, error)
        table.add_row(name, f"{load:g}", f"{wait_s:.4f}", f"{exact_s:.4f}", f"{100 * error:.2f} %")
    console.print(table)
    met = None if quick else worst <= 0.02
    return [Row("simulated mean wait against M/M/c and M/D/1, worst error", 100 * worst, "%", "≤ 2", met)]


# 3. Attainment


@dataclass(frozen=True)
class Rule:
    """What a service is planned for, given its trace.

    Args:
        name: In the rows.
        words: In the table.
        settings: Of a case.
    """

    name: str
    words: str
    settings: Callable[[Case], Mapping[str, float]]


def _busy(case: Case) -> float:
    """The rate of busy times over the mean rate: what the objective's share of the requests sees at most."""
    requests = requests_of(case.trace, case.speed)
    percent = case.objectives.time_to_first_token_percentile or 50.0
    return busy_rate_rps(requests.arrivals_s, BUSY_WINDOW_S, percent) * requests.span_s / len(requests)


RULES = (
    Rule("mean rate", "mean rate, nothing kept free", lambda _: {}),
    Rule("no-wait share", "mean rate, noWaitShare 0.9", lambda _: {"queueing_quantile": NO_WAIT_SHARE}),
    Rule(
        "no-wait share with CV",
        "mean rate, noWaitShare 0.9, the trace's interarrival CV",
        lambda case: {
            "queueing_quantile": NO_WAIT_SHARE,
            "interarrival_cv": requests_of(case.trace, case.speed).interarrival_cv,
        },
    ),
    Rule(
        "busy rate",
        "busy rate (20 s), noWaitShare 0.9",
        lambda case: {"queueing_quantile": NO_WAIT_SHARE, "rate": _busy(case)},
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What came of a case: each rule's fleet, the fitted one, and the cheapest found."""

    case: Case
    by_rule: Mapping[str, Replayed]
    search: Search

    @property
    def cheapest_usd_per_hour(self) -> float:
        """Of all fleets of this case that were simulated and attained."""
        costs = [
            each.cost_usd_per_hour for name, each in self.by_rule.items() if each.attained and name != FITTED_BEFORE
        ]
        if self.search.best is not None:
            costs.append(self.search.best.cost_usd_per_hour)
        return min(costs, default=float("nan"))


def _attainment(console: Console, *, quick: bool) -> list[Row]:
    cases = [
        Case(trace, speed, setting, objectives)
        for trace, speeds in SPEEDS.items()
        for speed in speeds
        for setting, objectives in objective_settings(trace).items()
    ]
    outcomes = []
    for case in cases[:1] if quick else cases:
        began = time.perf_counter()
        outcomes.append(_outcome(case, most=2 if quick else 20))
        console.print(f"[dim]{case}: {time.perf_counter() - began:.0f} s")
    _show(console, outcomes)
    found = []
    for name in (*(rule.name for rule in RULES), "fitted", FITTED_BEFORE):
        fleets = [(each.by_rule[name], each.cheapest_usd_per_hour) for each in outcomes if name in each.by_rule]
        attained = [(fleet.cost_usd_per_hour / least) for fleet, least in fleets if fleet.attained]
        share = 100 * len(attained) / len(outcomes)
        judged = name in {"busy rate", "fitted"}
        goal, met = ("≥ 95", share >= 95) if judged and not quick else ("", None)
        found.append(Row(f"simulated cases that attain: {name}", share, "%", goal, met))
        if not attained:
            continue
        worst, median = max(attained), float(np.median(attained))
        goal, met = (f"≤ {WITHIN}", worst <= WITHIN + _NOISE) if judged and not quick else ("", None)
        found.append(Row(f"simulated cost over the cheapest that attains: {name}, median", median, "×"))
        found.append(Row(f"simulated cost over the cheapest that attains: {name}, worst", worst, "×", goal, met))
    return found


def _outcome(case: Case, *, most: int) -> Outcome:
    by_rule = {}
    for rule in RULES:
        service, service_plan = planned(case, **rule.settings(case))
        by_rule[rule.name] = replayed(case, service, service_plan, OPTIONS)
    for name, fit in (("fitted", fitted(case, OPTIONS)), (FITTED_BEFORE, fitted_before(case, OPTIONS))):
        if fit is not None:
            by_rule[name] = fit
    known = [fleet for name, fleet in by_rule.items() if name != FITTED_BEFORE]
    return Outcome(case, by_rule, cheapest_attaining(case, OPTIONS, most=most, known=known))


def _show(console: Console, outcomes: Sequence[Outcome]) -> None:
    table = Table(title="planned fleets replayed on traces, $/h; × means not attained", title_justify="left")
    table.add_column("case")
    for rule in RULES:
        table.add_column(rule.words, justify="right")
    table.add_column("fitted by simulation", justify="right")
    table.add_column("fitted to the first half, second half", justify="right")
    table.add_column("cheapest found", justify="right")
    table.add_column("which")
    table.add_column("tried", justify="right")
    for each in outcomes:
        cells = [_cell(each.by_rule.get(name)) for name in (*(rule.name for rule in RULES), "fitted", FITTED_BEFORE)]
        search = each.search
        table.add_row(
            str(each.case),
            *cells,
            f"{each.cheapest_usd_per_hour:.2f}",
            str(search.best),
            f"{search.tried}{'' if search.local else ' (stopped)'}",
        )
    console.print(table)


def _cell(fleet: Replayed | None) -> str:
    if fleet is None:
        return "none"
    return f"{fleet.cost_usd_per_hour:.2f}{'' if fleet.attained else ' ×'}"
