"""What planning with buckets costs, by their number, on three public traces; how well margins stand in for sizes.

Methodology. Each trace's load is priced on eight GPU types at list prices (Llama-3.1-8B, estimates of the roofline),
each size on its cheapest variant, in fractions of replicas: `medley_planner.workload.bucketing`.

- *Error*: the price by buckets at their means over that of every single request, less 1. The latter is computed from
  every distinct size of the trace.
- *Bound*: what the buckets alone guarantee, with each at the smallest and at the largest of its requests.
- *Plan*: the same in whole replicas, at ten times the trace's rate, planned with `medley_planner.plan`.
- *Margins*: the trace's two histograms on vLLM's Prometheus boundaries (1, 2, 5, 10, …) with their sums, fitted to the
  preset of another trace; the price of the fitted histogram's load over that of every single request, less 1.

Figures are exact: nothing is drawn at random. The traces are looked for in $MEDLEY_TRACES, else beside the checkout;
without them there are no rows. Takes 5 to 15 minutes, most of it for every single request; `quick` looks at every
twentieth request, at 10 and 20 bins, and takes 15 s.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from medley_bench.report import Row
from medley_operator.cli.prices import LIST_PRICES
from medley_planner.catalogue.gpus import gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.fleet import FleetState, Objectives, PlanOptions, Pool, Service, Stock
from medley_planner.plan import plan
from medley_planner.workload.bucketing import BINS, BucketingError, bucketing_errors, load_price
from medley_planner.workload.buckets import histogram_of
from medley_planner.workload.marginals import Margin, fit_sizes
from medley_planner.workload.presets import presets
from medley_planner.workload.sizes import Bucket, SizeHistogram
from medley_planner.workload.traces import Trace, read_trace

TRACES = Path(os.environ.get("MEDLEY_TRACES") or Path(__file__).resolve().parents[2] / "shared" / "traces")
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
TIMES_THE_RATE = 10
GOAL = 0.01
"""The error that 10 bins an axis must not exceed."""


@dataclass(frozen=True)
class Case:
    """A trace, what it is served within, and the preset of another trace that its margins are fitted to."""

    name: str
    preset: str
    other: str
    first_token_s: float


CASES = (
    Case("azure-conv-2023", "azure-conversation-2023", "azure-code-2023", 5.0),
    Case("azure-code-2023", "azure-code-2023", "azure-conversation-2023", 5.0),
    Case("mooncake-conversation-2024", "mooncake-conversation-2024", "azure-conversation-2023", 30.0),
)

EDGES = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
"""vLLM's boundaries of its histograms of tokens, for a long context."""


def rows(*, quick: bool) -> list[Row]:
    """Print the tables; their figures as rows."""
    console = Console()
    if not TRACES.is_dir():
        console.print(f"[yellow]no traces in {TRACES}: set MEDLEY_TRACES")
        return []
    made: list[Row] = []
    for case in CASES:
        trace = _trace(case, every=20 if quick else 1)
        made += _case_rows(case, trace, BINS[:2] if quick else BINS, console)
    return made


def _case_rows(case: Case, trace: Trace, bins: Sequence[int], console: Console) -> list[Row]:
    pools = [
        Pool(name, gpu_type(name), price.usd_per_gpu_hour, Stock.of(1_000_000))
        for name, price in sorted(LIST_PRICES.items())
    ]
    service = Service(
        name=case.name,
        model=known_models()[MODEL],
        rate_rps=trace.rate_rps,
        sizes=_every_request(trace),
        objectives=Objectives(0.08, case.first_token_s),
    )
    exact = load_price(service.sizes, service, pools).usd_per_hour
    errors = bucketing_errors(trace, service, pools, bins=bins)
    plans = [_planned(service, trace, count, pools) for count in bins]
    _show(console, case, exact, errors, plans)
    made: list[Row] = []
    for error in errors:
        off = error.means.usd_per_hour / exact - 1
        enclosed = error.optimistic.usd_per_hour <= exact <= error.pessimistic.usd_per_hour
        what = f"{case.name}, {error.bins} bins an axis"
        goal = (f"≤ {GOAL:.0%}", abs(off) <= GOAL) if error.bins == bins[0] else ("", None)
        made.append(Row(f"bucketing error: {what}", abs(100 * off), "%", *goal))
        made.append(Row(f"bucketing bound: {what}", 100 * error.bound, "%", "encloses the truth", enclosed))
    fitted = _fitted(case, trace)
    off = load_price(fitted, service, pools).usd_per_hour / exact - 1
    console.print(f"from margins fitted to {case.other}: {100 * off:+.2f} %\n")
    made.append(Row(f"price by margins fitted to another trace: {case.name}", 100 * off, "% off"))
    return made


def _planned(service: Service, trace: Trace, bins: int, pools: Sequence[Pool]) -> float:
    """The price of whole replicas."""
    sizes = histogram_of(trace, input_bins=bins, output_bins=bins)
    busy = dataclasses.replace(service, sizes=sizes, rate_rps=TIMES_THE_RATE * service.rate_rps)
    return plan(FleetState((busy,), tuple(pools)), PlanOptions(explain=False)).cost_usd_per_hour


def _fitted(case: Case, trace: Trace) -> SizeHistogram:
    inputs, outputs = (_margin(tokens) for tokens in (trace.input_tokens, trace.output_tokens))
    return fit_sizes(inputs, outputs, presets()[case.other].sizes, requests=float(len(trace))).sizes


def _margin(tokens: np.ndarray) -> Margin:
    counts = [(edge, float((tokens <= edge).sum())) for edge in EDGES]
    return Margin.of_cumulative([*counts, (float("inf"), float(len(tokens)))], total_tokens=float(tokens.sum()))


def _every_request(trace: Trace) -> SizeHistogram:
    counts = Counter(zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True))
    return SizeHistogram(tuple(Bucket(*size, float(count)) for size, count in counts.items()))


def _trace(case: Case, *, every: int) -> Trace:
    with gzip.open(TRACES / f"{case.name}.csv.gz", "rt", encoding="utf-8") as file:
        trace = read_trace(file)
    return Trace(trace.arrivals_s[::every], trace.input_tokens[::every], trace.output_tokens[::every])


def _show(console: Console, case: Case, exact: float, errors: Sequence[BucketingError], plans: Sequence[float]) -> None:
    table = Table(
        title=f"{case.name}: every single request {exact:.4f} $/h in fractions of replicas", title_justify="left"
    )
    names = ("bins", "buckets", "$/h", "error", "at least", "at most", "bound", f"plan at {TIMES_THE_RATE}× rate, $/h")
    for name in names:
        table.add_column(name, justify="right")
    for error, planned in zip(errors, plans, strict=True):
        table.add_row(
            f"{error.bins} × {error.bins}",
            f"{error.buckets:,}",
            f"{error.means.usd_per_hour:.4f}",
            f"{100 * (error.means.usd_per_hour / exact - 1):+.2f} %",
            f"{error.optimistic.usd_per_hour:.4f}",
            f"{error.pessimistic.usd_per_hour:.4f}",
            f"{100 * error.bound:.1f} %",
            f"{planned:.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    rows(quick=False)
