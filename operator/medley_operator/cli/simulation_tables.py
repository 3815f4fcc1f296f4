"""A simulation for people: what was kept, latencies, replicas, cost, and the timeline as rows of blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from medley_operator.cli.columns import columns, money
from medley_operator.cli.simulation import SimulatedFleet, shown_time
from medley_operator.cli.tables import service_headline
from medley_planner.simulator.measures import Attainment, ServiceMeasures
from medley_planner.simulator.timeline import Timeline

_BLOCKS = " ▁▂▃▄▅▆▇█"
_OBJECTIVES = {"timeToFirstToken": "time to first token", "timePerOutputToken": "time per output token"}


def simulation_tables(simulated: SimulatedFleet) -> RenderableType:
    """Everything `medley simulate` shows."""
    found = {each.name: each for each in simulated.measures.services}
    parts: list[RenderableType] = []
    for each in simulated.planned.services:
        parts.append(service_headline(each.service))
        inside: list[RenderableType] = []
        if not each.feasible:
            inside.append(Text.assemble((each.plan.outcome, "bold red"), "  ", each.plan.reason))
        if each.service.key in found:
            inside.append(_service_tables(found[each.service.key]))
        parts.append(Padding(Group(*inside), (0, 0, 1, 2), expand=False))
    if len(simulated.measures.services) > 1:
        cost = simulated.measures.cost_usd_per_hour
        parts += [Text(f"all services {money(cost)} $/h", style="bold"), Text()]
    parts += [Text(f"not kept: {sentence}", style="red") for sentence in simulated.shortcomings]
    if simulated.fitted is not None:
        parts.append(Text.assemble(("fit: ", "bold"), str(simulated.fitted)))
    parts += [Text(f"note: {note}", style="dim") for note in simulated.notes]
    seed, horizon_s = simulated.replay.seed, simulated.horizon_s
    parts.append(Text(f"simulated: {horizon_s:,.0f} s of arrivals, seed {seed}", style="dim"))
    return Group(*parts)


def _service_tables(service: ServiceMeasures) -> RenderableType:
    return Group(
        _verdict(service),
        Text(),
        _objectives_table(service.objectives),
        Text(),
        _latency_table(service),
        Text(),
        _variants_table(service),
        Text(),
        _cost_line(service),
        Text(),
        _timeline_table(service.timeline),
    )


def _verdict(service: ServiceMeasures) -> Text:
    word = ("Attained", "bold green") if service.attained else ("NotAttained", "bold red")
    told = [f"{service.served:,} of {service.requests:,} requests served"]
    if service.rejected:
        told.append(f"{service.rejected:,} refused")
    if service.lost:
        told.append(f"{service.lost:,} lost")
    if service.preemptions:
        told.append(f"{service.preemptions:,} preemptions")
    return Text.assemble(word, "  ", ", ".join(told))


def _objectives_table(objectives: Sequence[Attainment]) -> Table:
    table = columns("objective", "limit", "of")
    for name in ("simulated", "within the limit"):
        table.add_column(name, justify="right")
    table.add_column("kept")
    for each in objectives:
        table.add_row(
            _OBJECTIVES[each.objective],
            shown_time(each.limit_s),
            "mean" if each.percentile is None else f"p{each.percentile:g}",
            shown_time(each.measured_s),
            f"{each.within_percent:.2f} %",
            Text("yes", style="green") if each.attained else Text("no", style="red"),
        )
    return table


def _latency_table(service: ServiceMeasures) -> Table:
    table = columns("latency")
    for name in ("mean", "p50", "p90", "p95", "p99", "longest"):
        table.add_column(name, justify="right")
    for name, each in (
        ("wait in a queue", service.wait),
        ("time to first token", service.time_to_first_token),
        ("time per output token", service.time_per_output_token),
        ("whole answer", service.end_to_end),
    ):
        times = (each.mean_s, each.p50_s, each.p90_s, each.p95_s, each.p99_s, each.max_s)
        table.add_row(name, *(shown_time(time_s) for time_s in times))
    return table


def _variants_table(service: ServiceMeasures) -> Table:
    table = columns("pool", "a replica")
    for name in ("replicas", "requests", "busy", "at once", "cache", "most", "TTFT p95", "TPOT p95"):
        table.add_column(name, justify="right")
    for each in service.variants:
        role = "" if each.variant.role.value == "shared" else f" {each.variant.role.value}"
        table.add_row(
            each.variant.pool,
            f"{each.variant.parallelism}{role}",
            f"{each.replicas:,}",
            f"{each.requests:,}",
            f"{100 * each.busy_share:.0f} %",
            f"{each.running_requests:.1f}",
            f"{100 * each.cache_share:.0f} %",
            f"{100 * each.cache_peak_share:.0f} %",
            shown_time(each.time_to_first_token.p95_s),
            shown_time(each.time_per_output_token.p95_s),
        )
    return table


def _cost_line(service: ServiceMeasures) -> Text:
    made = Text(f"{money(service.cost_usd_per_hour)} $/h", style="bold")
    if math.isfinite(service.usd_per_million_tokens):
        rest = f"  {money(service.usd_per_million_tokens)} $ per million tokens"
        if math.isfinite(service.usd_per_million_output_tokens):
            rest += f", {money(service.usd_per_million_output_tokens)} $ per million output tokens"
        made.append(rest, style="not bold")
    return made


def _timeline_table(line: Timeline) -> Table:
    ends_s = line.begins_s[-1] + line.bin_s
    table = columns(f"over {ends_s:,.0f} s")
    table.add_column("", no_wrap=True)
    table.add_column("most", justify="right")
    for name, values, most in (
        ("requests/s", line.arrivals_rps, f"{line.arrivals_rps.max():.3g}"),
        ("in a queue", line.waiting, f"{line.waiting.max():.3g}"),
        ("in the service", line.in_system, f"{line.in_system.max():.3g}"),
        ("busy", line.busy_share, f"{100 * line.busy_share.max():.0f} %"),
        ("cache", line.cache_share, f"{100 * line.cache_share.max():.0f} %"),
        ("TTFT p95", line.first_token_p95_s, shown_time(_most(line.first_token_p95_s))),
    ):
        full = 1.0 if name in {"busy", "cache"} else None
        table.add_row(name, Text(sparkline(values.tolist(), full=full), style="cyan"), most)
    return table


def _most(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    there = values[np.isfinite(values)]
    return float(there.max()) if len(there) else math.nan


def sparkline(values: Sequence[float], *, full: float | None = None) -> str:
    """One block for each value, as high as its share of `full` (by default the largest); · where there is none."""
    there = [value for value in values if math.isfinite(value)]
    top = full if full is not None else max(there, default=0.0)
    if top <= 0:
        return "".join("▁" if math.isfinite(value) else "·" for value in values)
    steps = len(_BLOCKS) - 1
    return "".join(
        _BLOCKS[max(1, min(steps, math.ceil(steps * value / top)))] if math.isfinite(value) else "·" for value in values
    )
