"""How far the roofline's rates are from measured ones, with and without a live correction factor.

python benchmarks/planner_estimates.py --sample FILE      the tables alone
MEDLEY_SILICON_SAMPLE=FILE make bench-planner             FILE as in medley_bench/silicon.py

Methodology. Each measured row is a closed loop: n requests of one size are in the replica at all times. Its rate
follows by Little's law, n over the time that one is inside. The estimate is the roofline's rate with the same n inside;
the error is |estimate / measured − 1|. Engines on these GPUs compute up to 8,192 tokens in a step by default, and hold
as many requests as the measurement sent.

- *Used for choosing*: rows of models with experts, with at most 8 requests inside or with data parallel ranks. Three
  constants (what a layer of experts, of latent attention and of a constant state takes more) and the rule that ranks do
  not wait for each other were chosen on these. All others are *not used*: for dense models no constant was.
- *Corrected*: per group (model, GPU, precision, parallelism, engine, version) three points are drawn, the factor is the
  median of measured over estimated, and the error is that of the group's other points; the figures are medians over
  draws.
- *Within objectives*: points of a group and size form a curve; where it crosses TPOT 50 ms or TTFT 2 s, its rate there
  is compared with the roofline's largest rate within both. The measured time to the first token contains waits of
  requests that were all sent at once, which a mean of a steady state has not.
- *Ranking*: for each two GPUs measured with the same model, precision, parallelism, engine, version, size and n,
  whether the estimate puts the faster one first. Pairs that the estimate calls equal (B200 and B300 differ in memory
  alone) say nothing and are counted apart.

Takes about 20 s; `quick` looks at every tenth group, and takes 3 s.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from medley_bench.report import Row
from medley_bench.silicon import Group, Point, groups_of, points, sample_path
from medley_planner.capacities.load_curve import LoadCurve
from medley_planner.capacities.steady_state import MAX_SEQUENCES, SteadyState, rho_within
from medley_planner.capacities.step_time import StepTime
from medley_planner.catalogue.models import ThroughputPoint
from medley_planner.fleet import Objectives

OBJECTIVES = Objectives(0.05, 2.0)
SEED = 20261122
DRAWS = 20
POINTS_FOR_A_FACTOR = 3
SMALLEST_GROUP = 2 * POINTS_FOR_A_FACTOR
STEP_TOKENS = 8192
EQUAL = 1e-3
"""Estimates that differ by less are the same."""


@dataclass(frozen=True)
class Judged:
    """A measured point and what the estimate says, as a multiple of the measured rate."""

    point: Point
    ratio: float

    @property
    def chosen_on(self) -> bool:
        """Whether a constant was chosen on rows like this one."""
        small = self.point.concurrency <= 8 or self.point.group.parallelism.data > 1
        return not self.point.is_dense and small


def rows(*, quick: bool, sample: Path | None = None) -> list[Row]:
    """Print the tables and return the figures; a single row that says why where the measured file is not there."""
    console = Console()
    path = sample_path(sample)
    if path is None:
        return [Row("estimates: skipped, aiconfigurator-core 0.12.0 is not installed and no file was given", "—", "")]
    measured, left_out = points(path)
    groups = groups_of(measured)
    if quick:
        groups = {group: groups[group] for group in list(groups)[::10]}
    judged = {group: [Judged(point, estimate_ratio(point)) for point in of] for group, of in groups.items()}
    everything = list(itertools.chain.from_iterable(judged.values()))
    console.print(
        f"{sum(left_out.values()) + len(measured)} rows; {len(everything)} judged; left out: {dict(left_out)}"
    )
    console.print(_by_kind(everything))
    console.print(_by_model(everything))
    return [
        *_errors(everything),
        *_within_objectives(groups),
        *_corrected(judged, console),
        *_ranking(everything, console),
    ]


def estimate_ratio(point: Point) -> float:
    """The roofline's rate with as many requests inside, over the measured one."""
    times = StepTime(point.model, point.gpu, point.group.parallelism)
    largest = max(MAX_SEQUENCES, point.concurrency)
    state = SteadyState.of(times, [point.size], step_tokens=STEP_TOKENS, max_sequences=largest)
    return float(state.rates_at(np.array([float(point.concurrency)]))[0]) / point.requests_per_second


def _within_objectives(groups: Mapping[Group, Sequence[Point]]) -> list[Row]:
    """Errors of the largest rate within objectives, for curves that cross one: their maximum is known."""
    ratios: dict[bool, list[float]] = {True: [], False: []}
    for of in groups.values():
        for size in sorted({point.size for point in of}):
            points_of_size = [point for point in of if point.size == size]
            curve = LoadCurve.of([_as_measured(point) for point in points_of_size])
            measured_rps = curve.rate_within(OBJECTIVES)
            if 0 < measured_rps < curve.rates_rps[-1]:
                one = points_of_size[0]
                times = StepTime(one.model, one.gpu, one.group.parallelism)
                largest = max(MAX_SEQUENCES, *(point.concurrency for point in points_of_size))
                state = SteadyState.of(times, [size], step_tokens=STEP_TOKENS, max_sequences=largest)
                ratios[one.is_dense].append(rate_within(state, OBJECTIVES) / measured_rps)
    found: list[Row] = []
    for dense, kind in ((True, "dense"), (False, "experts")):
        if ratios[dense]:
            median, high = spread(ratios[dense])
            name = f"estimates: {kind}, rate within TPOT 50 ms and TTFT 2 s ({len(ratios[dense])} curves)"
            found.append(Row(f"{name}: median error", 100 * median, "%"))
            found.append(Row(f"{name}: 90th percentile", 100 * high, "%"))
    return found


def rate_within(state: SteadyState, objectives: Objectives) -> float:
    """The largest rate of a replica within both mean objectives, for its first size."""
    rho = state.limit
    for latency_s, objective_s in (
        (state.step_s, objectives.time_per_output_token_s),
        (state.first_token_s, objectives.time_to_first_token_s),
    ):
        if objective_s is not None:
            rho = np.minimum(rho, rho_within(latency_s, objective_s))
    return float(state.largest_rates(rho)[0][0]) * state.units


def _as_measured(point: Point) -> ThroughputPoint:
    return ThroughputPoint(
        gpu=point.gpu.name,
        tensor_parallel=point.group.parallelism.tensor,
        pipeline_parallel=point.group.parallelism.pipeline,
        data_parallel=point.group.parallelism.data,
        input_tokens=point.size[0],
        output_tokens=point.size[1],
        requests_per_second=point.requests_per_second,
        time_per_output_token_s=point.time_per_output_token_s,
        time_to_first_token_s=point.time_to_first_token_s,
    )


def spread(ratios: Iterable[float]) -> tuple[float, float]:
    """Median and 90th percentile of the error."""
    errors = np.abs(np.fromiter(ratios, dtype=np.float64) - 1)
    return float(np.median(errors)), float(np.quantile(errors, 0.9))


def _errors(everything: Sequence[Judged]) -> list[Row]:
    found: list[Row] = []
    for kind, dense in (("dense", True), ("experts", False)):
        for used, what in ((True, "rows used for choosing constants"), (False, "rows not used")):
            chosen = [one.ratio for one in everything if one.point.is_dense == dense and one.chosen_on == used]
            if chosen:
                median, high = spread(chosen)
                found.append(Row(f"estimates: {kind}, {what} ({len(chosen)}): median error", 100 * median, "%"))
                found.append(Row(f"estimates: {kind}, {what} ({len(chosen)}): 90th percentile", 100 * high, "%"))
    return found


def _corrected(judged: Mapping[Group, Sequence[Judged]], console: Console) -> list[Row]:
    """Errors after one factor for each group, from three of its points."""
    rng = np.random.default_rng(SEED)
    console.print(f"seed {SEED}, {DRAWS} draws of {POINTS_FOR_A_FACTOR} points in groups of {SMALLEST_GROUP} or more")
    draws: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    counts: dict[bool, int] = {}
    for _ in range(DRAWS):
        rest: dict[bool, list[float]] = {True: [], False: []}
        for of in judged.values():
            if len(of) >= SMALLEST_GROUP:
                order = [of[index] for index in rng.permutation(len(of)).tolist()]
                factor = statistics.median(1 / one.ratio for one in order[:POINTS_FOR_A_FACTOR])
                rest[of[0].point.is_dense] += [one.ratio * factor for one in order[POINTS_FOR_A_FACTOR:]]
        for dense, ratios in rest.items():
            if ratios:
                draws[dense].append(spread(ratios))
                counts[dense] = len(ratios)
    found: list[Row] = []
    for dense, kind, goals in ((True, "dense", (10.0, 30.0)), (False, "experts", (None, None))):
        for place, what in ((0, "median error"), (1, "90th percentile")):
            if not draws[dense]:
                continue
            value = 100 * statistics.median(draw[place] for draw in draws[dense])
            name = f"estimates: {kind}, one factor per group from 3 points ({counts[dense]} others): {what}"
            goal = goals[place]
            found.append(Row(name, value, "%", "" if goal is None else f"≤ {goal:g} %", _met(value, goal)))
    return found


def _met(value: float, goal: float | None) -> bool | None:
    return None if goal is None else value <= goal


def _ranking(everything: Sequence[Judged], console: Console) -> list[Row]:
    """Which share of GPU pairs is put in the measured order."""
    alike: dict[tuple[object, ...], dict[str, list[Judged]]] = {}
    for one in everything:
        group, point = one.point.group, one.point
        key = (group.model, group.precision, group.parallelism, group.engine, group.version)
        alike.setdefault((*key, point.size, point.concurrency), {}).setdefault(group.system, []).append(one)
    right = wrong = equal = 0
    for by_system in alike.values():
        for one, other in itertools.combinations(sorted(by_system), 2):
            (measured, estimated), (measured_other, estimated_other) = (
                _rates(by_system[name]) for name in (one, other)
            )
            if abs(estimated / estimated_other - 1) < EQUAL:
                equal += 1
            elif (measured > measured_other) == (estimated > estimated_other):
                right += 1
            else:
                wrong += 1
    console.print(f"pairs of GPUs: {right} in the measured order, {wrong} not, {equal} that the estimate calls equal")
    if not right + wrong:
        return []
    share = 100 * right / (right + wrong)
    return [Row(f"estimates: GPU pairs in the measured order ({right + wrong})", share, "%", "≥ 98 %", share >= 98)]


def _rates(of: Sequence[Judged]) -> tuple[float, float]:
    """Medians of the measured and the estimated rates."""
    return (
        statistics.median(one.point.requests_per_second for one in of),
        statistics.median(one.point.requests_per_second * one.ratio for one in of),
    )


def _by_kind(everything: Sequence[Judged]) -> Table:
    table = Table(title="error of the rate, no correction", title_justify="left")
    for heading in ("models", "engine", "rows", "median %", "p90 %", "estimate / measured"):
        table.add_column(heading, justify="left" if heading in {"models", "engine"} else "right")
    for dense, engine in itertools.product((True, False), sorted({one.point.group.engine for one in everything})):
        chosen = [one.ratio for one in everything if one.point.is_dense == dense and one.point.group.engine == engine]
        if chosen:
            median, high = spread(chosen)
            figures = (f"{len(chosen)}", f"{100 * median:.0f}", f"{100 * high:.0f}", f"{statistics.median(chosen):.2f}")
            table.add_row("dense" if dense else "experts", engine, *figures)
    return table


def _by_model(everything: Sequence[Judged]) -> Table:
    table = Table(title="by model and GPU", title_justify="left")
    for heading in ("model", "GPU", "rows", "median %", "p90 %", "estimate / measured"):
        table.add_column(heading, justify="left" if heading in {"model", "GPU"} else "right")
    found: dict[tuple[str, str], list[float]] = {}
    for one in everything:
        found.setdefault((one.point.group.model, one.point.group.system), []).append(one.ratio)
    for (model, system), ratios in sorted(found.items()):
        median, high = spread(ratios)
        figures = (f"{len(ratios)}", f"{100 * median:.0f}", f"{100 * high:.0f}", f"{statistics.median(ratios):.2f}")
        table.add_row(model, system, *figures)
    return table


def main() -> None:
    """Print the tables and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, help="silicon_sample.csv of aiconfigurator-core 0.12.0")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    for row in rows(quick=asked.quick, sample=asked.sample):
        print(row)


if __name__ == "__main__":
    main()
