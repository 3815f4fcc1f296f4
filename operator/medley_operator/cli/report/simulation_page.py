"""A simulation as one HTML file: what was kept, latencies, replicas, and the timeline as plots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medley_operator.cli.columns import money
from medley_operator.cli.report.page import ReportError
from medley_operator.cli.report.rows import Fact
from medley_operator.cli.simulation import SimulatedFleet, shown_time
from medley_operator.version import VERSION
from medley_planner.simulator.measures import ServiceMeasures

if TYPE_CHECKING:
    from medley_operator.cli.report.drawing import Plot

_OBJECTIVES = {"timeToFirstToken": "time to first token", "timePerOutputToken": "time per output token"}

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TableOfFigures:
    """A table; the first column is text, the others are figures."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class SimulatedSection:
    """A service on the page."""

    anchor: str
    name: str
    good: bool
    told: str
    tables: tuple[TableOfFigures, ...]
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class SimulationPage:
    """All that is shown."""

    title: str
    good: bool
    shortcomings: tuple[str, ...]
    facts: tuple[Fact, ...]
    services: tuple[SimulatedSection, ...]
    notes: tuple[str, ...]


def simulation_page(simulated: SimulatedFleet) -> SimulationPage:
    """The page of a simulation."""
    measures = simulated.measures
    requests = sum(each.requests for each in measures.services)
    facts = (
        Fact("per hour", f"{money(measures.cost_usd_per_hour)} $"),
        Fact("requests", f"{requests:,}"),
        Fact("arrivals over", f"{simulated.horizon_s:,.0f} s"),
        Fact("seed", str(simulated.replay.seed)),
        Fact("router takes outputs for", simulated.replay.knowledge.value),
    )
    sections = tuple(_section(f"s{place}", each) for place, each in enumerate(measures.services))
    title = "Medley simulation"
    fit = () if simulated.fitted is None else (f"fit: {simulated.fitted}",)
    return SimulationPage(title, simulated.attained, simulated.shortcomings, facts, sections, (*simulated.notes, *fit))


def _section(anchor: str, service: ServiceMeasures) -> SimulatedSection:
    told = (
        f"{service.served:,} of {service.requests:,} requests served, {service.rejected:,} refused, "
        f"{service.lost:,} lost, {service.preemptions:,} preemptions; {money(service.cost_usd_per_hour)} $/h"
    )
    tables = (_objectives(service), _latencies(service), _variants(service))
    return SimulatedSection(anchor, service.name, service.attained, told, tables, _plots(anchor, service))


def _objectives(service: ServiceMeasures) -> TableOfFigures:
    rows = tuple(
        (
            _OBJECTIVES[each.objective],
            "mean" if each.percentile is None else f"p{each.percentile:g}",
            shown_time(each.limit_s),
            shown_time(each.measured_s),
            f"{each.within_percent:.2f} %",
            "yes" if each.attained else "no",
        )
        for each in service.objectives
    )
    return TableOfFigures("Objectives", ("objective", "of", "limit", "simulated", "within the limit", "kept"), rows)


def _latencies(service: ServiceMeasures) -> TableOfFigures:
    rows = tuple(
        (name, *(shown_time(time_s) for time_s in (d.mean_s, d.p50_s, d.p90_s, d.p95_s, d.p99_s, d.max_s)))
        for name, d in (
            ("wait in a queue", service.wait),
            ("time to first token", service.time_to_first_token),
            ("time per output token", service.time_per_output_token),
            ("whole answer", service.end_to_end),
        )
    )
    return TableOfFigures("Latencies", ("", "mean", "p50", "p90", "p95", "p99", "longest"), rows)


def _variants(service: ServiceMeasures) -> TableOfFigures:
    rows = tuple(
        (
            str(each.variant),
            f"{each.replicas:,}",
            f"{each.requests:,}",
            f"{100 * each.busy_share:.0f} %",
            f"{each.running_requests:.1f}",
            f"{100 * each.cache_share:.0f} %",
            f"{100 * each.cache_peak_share:.0f} %",
            f"{each.preemptions:,}",
            shown_time(each.time_to_first_token.p95_s),
            shown_time(each.time_per_output_token.p95_s),
        )
        for each in service.variants
    )
    head = (
        "variant",
        "replicas",
        "requests",
        "busy",
        "at once",
        "cache",
        "most",
        "preemptions",
        "TTFT p95",
        "TPOT p95",
    )
    return TableOfFigures("Replicas", head, rows)


def _plots(anchor: str, service: ServiceMeasures) -> tuple[Plot, ...]:
    line = service.timeline
    minutes = (line.begins_s + line.bin_s / 2) / 60
    limit_s = next((each.limit_s for each in service.objectives if each.objective == "timeToFirstToken"), None)
    return (
        _lines(
            f"{anchor}-rate", "Requests", "per second", minutes, {"arrive": line.arrivals_rps, "end": line.finished_rps}
        ),
        _lines(
            f"{anchor}-waiting",
            "Requests in the service",
            "requests",
            minutes,
            {"all": line.in_system, "in a queue": line.waiting},
        ),
        _lines(
            f"{anchor}-ttft",
            "Time to first token, 95th percentile",
            "seconds",
            minutes,
            {"simulated": line.first_token_p95_s}
            | ({} if limit_s is None else {"objective": np.full_like(minutes, limit_s)}),
        ),
        _lines(
            f"{anchor}-busy",
            "Replicas",
            "per cent",
            minutes,
            {"busy": 100 * line.busy_share, "cache in use": 100 * line.cache_share},
        ),
    )


def _lines(name: str, title: str, unit: str, minutes: FloatArray, series: dict[str, FloatArray]) -> Plot:
    from matplotlib.axes import Axes  # noqa: PLC0415 - the extra may not be installed

    from medley_operator.cli.report.drawing import Plot, colour_of, dashes_of, drawn  # noqa: PLC0415

    def draw(axes: Axes) -> None:
        for place, (label, values) in enumerate(series.items()):
            axes.plot(minutes, values, color=colour_of(place), linestyle=dashes_of(place), label=label, linewidth=1.5)
        axes.set_xlabel("minutes")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, axis="y")
        axes.legend()

    most = "; ".join(f"{label}: at most {np.nanmax(values):.3g}" for label, values in series.items() if _any(values))
    svg = drawn(name, title, f"{title} in {unit} over time. {most}.", draw, width_in=6.4, height_in=3.2)
    rows = tuple(
        (f"{minute:.1f}", *(f"{values[place]:.4g}" for values in series.values()))
        for place, minute in enumerate(minutes.tolist())
    )
    return Plot(name, title, f"{title} over time", svg, ("minute", *series), rows)


def _any(values: FloatArray) -> bool:
    return bool(np.isfinite(values).any())


def simulation_html(page: SimulationPage) -> str:
    """The page's HTML."""
    from medley_operator.cli.report.page import page_environment  # noqa: PLC0415

    return str(page_environment().get_template("simulation.html.j2").render(page=page, version=VERSION))


def write_simulation_page(path: Path, page: SimulationPage) -> None:
    """Write the page to a file.

    Raises:
        ReportError: The file cannot be written.
    """
    try:
        path.write_text(simulation_html(page), encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{path}: cannot be written: {error.strerror or error}") from None
