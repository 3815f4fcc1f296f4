"""A workload as tables for people: figures of its trace or of the fit, how bursty it is, and the largest buckets."""

from __future__ import annotations

import json

from rich.console import Group, RenderableType
from rich.text import Text

from medley_operator.cli.columns import rows_table
from medley_operator.cli.workload import FoundWorkload, trace_statistics
from medley_planner.workload.arrivals import Arrivals
from medley_planner.workload.marginals import FittedSizes
from medley_planner.workload.sizes import SizeHistogram
from medley_planner.workload.traces import Trace

MAX_SHOWN_BUCKETS = 24


def workload_tables(workload: FoundWorkload) -> RenderableType:
    """The workload for people: figures, and the largest buckets."""
    parts: list[RenderableType] = []
    if workload.trace is not None:
        parts += _trace_tables(workload.trace)
    if workload.fitted is not None:
        parts.append(_fit_text(workload.fitted, workload.sizes))
    largest = sorted(workload.sizes.buckets, key=lambda bucket: (-bucket.weight, bucket))
    shown = largest[:MAX_SHOWN_BUCKETS]
    buckets = [
        (
            f"{bucket.input_tokens:,}",
            f"{bucket.output_tokens:,}",
            f"{100 * bucket.weight:.1f} %",
            _bar(bucket.weight, shown[0].weight),
        )
        for bucket in shown
    ]
    hidden = len(largest) - len(shown)
    share = sum(bucket.weight for bucket in largest[MAX_SHOWN_BUCKETS:])
    rest = f", the {MAX_SHOWN_BUCKETS} largest shown ({100 * share:.1f} % in the others)" if hidden else ""
    return Group(
        *parts,
        Text(f"{len(largest)} buckets of sizes{rest}:"),
        rows_table(("input", "output", "share", ""), buckets),
        Text(f"for a spec: medley workload … -o yaml   (rate {workload.rate_rps:.4g} requests/s)", style="dim"),
    )


def _trace_tables(trace: Trace) -> list[RenderableType]:
    figures = trace_statistics(trace)
    rows = [
        (name, *(f"{figures[key][figure]:,}" for figure in ("mean", "p50", "p90", "p99")))
        for name, key in (("input tokens", "inputTokens"), ("output tokens", "outputTokens"))
    ]
    failed = f", {figures['failedRequests']:,} without tokens left out" if figures["failedRequests"] else ""
    head = Text.assemble(
        (f"{figures['requests']:,} requests", "bold"),
        f" in {figures['spanSeconds']:,.0f} s{failed}: {_shown(figures['ratePerSecond'])} per second",
    )
    busy = ", ".join(f"{percent[1:]} % {rate:.4g}" for percent, rate in figures["busyRatePerSecond"].items())
    told = [Text(f"requests per second in busy times, at most, for so many of the requests: {busy}")] if busy else []
    return [head, Text(_burstiness(trace.arrivals)), *told, rows_table(("", "mean", "p50", "p90", "p99"), rows)]


def _burstiness(arrivals: Arrivals) -> str:
    """How bursty the arrivals are, in a sentence."""
    counts = ", ".join(f"{value:.3g} over {length:g} s" for length, value in arrivals.dispersion)
    dispersion = f"; variance over mean of counts (Poisson: 1): {counts}" if counts else ""
    if arrivals.grid_s is None:
        cv = None if arrivals.gap_cv is None else round(arrivals.gap_cv, 2)
        return f"coefficient of variation between arrivals (Poisson: 1): {_shown(cv)}{dispersion}"
    cv = None if arrivals.interarrival_cv is None else round(arrivals.interarrival_cv, 2)
    return (
        f"timestamps lie on a grid of {arrivals.grid_s:.3g} s, so that gaps between arrivals say nothing; "
        f"coefficient of variation by the counts: {_shown(cv)}{dispersion}"
    )


def _fit_text(fitted: FittedSizes, sizes: SizeHistogram) -> Text:
    told = Text.assemble(
        ("fitted to the measured margins", "bold"),
        f" in {fitted.iterations} rounds: mean input {sizes.mean_input_tokens:,.1f}, "
        f"mean output {sizes.mean_output_tokens:,.1f} tokens",
    )
    if fitted.measured_share < 1:
        told.append(f"; too few requests: {100 * (1 - fitted.measured_share):.0f} % of the prior is left in")
    if fitted.beyond_prior_share >= 0.01:
        told.append(f"; {100 * fitted.beyond_prior_share:.0f} % of the requests are of sizes that the prior lacks")
    return told


def _shown(value: float | None) -> str:
    return "?" if value is None else json.dumps(value)


def _bar(weight: float, largest: float) -> str:
    return "█" * max(1, round(24 * weight / largest))
