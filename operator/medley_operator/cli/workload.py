"""`medley workload`: a trace of requests to a histogram of their sizes, ready for a spec, with its statistics."""

from __future__ import annotations

import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Group, RenderableType
from rich.text import Text

from medley_operator.cli.columns import rows_table
from medley_operator.cli.inputs import InputError, Mistake
from medley_planner.buckets import DEFAULT_BINS, histogram_of
from medley_planner.sizes import SizeHistogram
from medley_planner.traces import Trace, TraceError, read_trace

MAX_TRACE_BYTES = 1 * 2**30
"""Of text, unpacked: what a file may make us read, however small it is packed."""

MAX_LINE_CHARACTERS = 1 * 2**20
PERCENTILES = (50, 90, 99)
MAX_SHOWN_BUCKETS = 24


@dataclass(frozen=True)
class TraceWorkload:
    """A trace's workload.

    Args:
        trace: The requests.
        sizes: Histogram of their sizes.
        rate_rps: Requests per second to plan for: the trace's own, or the user's.
    """

    trace: Trace
    sizes: SizeHistogram
    rate_rps: float

    def to_spec(self) -> dict[str, Any]:
        """The `workload` of an LLMService's spec."""
        return {
            "rate": round(self.rate_rps, 4),
            "sizes": {
                "histogram": [
                    {
                        "inputTokens": bucket.input_tokens,
                        "outputTokens": bucket.output_tokens,
                        "weight": float(f"{bucket.weight:.6g}"),
                    }
                    for bucket in self.sizes.buckets
                ]
            },
        }

    def statistics(self) -> dict[str, Any]:
        """Figures of the trace; None where a figure has no meaning."""
        trace = self.trace
        return {
            "requests": len(trace),
            "failedRequests": trace.failed_requests,
            "spanSeconds": round(trace.span_s, 3),
            "ratePerSecond": _finite(trace.rate_rps, 4),
            "interarrivalCV": _finite(trace.interarrival_cv, 2),
            "inputTokens": {
                "mean": round(float(trace.input_tokens.mean()), 1),
                **{f"p{percent}": round(trace.input_percentile(percent)) for percent in PERCENTILES},
            },
            "outputTokens": {
                "mean": round(float(trace.output_tokens.mean()), 1),
                **{f"p{percent}": round(trace.output_percentile(percent)) for percent in PERCENTILES},
            },
        }


def trace_workload(file: str, *, rate_rps: float | None, bins: int = DEFAULT_BINS) -> TraceWorkload:
    """The workload of a trace file, packed with gzip or not.

    Args:
        file: Its path.
        rate_rps: Requests per second to plan for; None for the trace's own.
        bins: Bins of each of the two sizes.

    Raises:
        InputError: The file cannot be read, is too large, is no trace, or gives no rate.
    """
    try:
        trace = read_trace(_lines(Path(file)))
    except TraceError as error:
        raise InputError([Mistake(file, error.line, error.column or "", _without_place(error))]) from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError([Mistake(file, None, "", f"cannot be read: {_reason(error)}")]) from None
    except UnicodeDecodeError:
        raise InputError([Mistake(file, None, "", "is not UTF-8 text")]) from None
    rate = trace.rate_rps if rate_rps is None else rate_rps
    if not math.isfinite(rate):
        message = "all requests arrive at once, so the trace has no rate; give one with --rate"
        raise InputError([Mistake(file, None, "", message)])
    return TraceWorkload(trace, histogram_of(trace, input_bins=bins, output_bins=bins), rate)


def workload_tables(workload: TraceWorkload) -> RenderableType:
    """The workload for people: figures, and the largest buckets."""
    figures = workload.statistics()
    rows = [
        (name, *(f"{figures[key][figure]:,}" for figure in ("mean", "p50", "p90", "p99")))
        for name, key in (("input tokens", "inputTokens"), ("output tokens", "outputTokens"))
    ]
    failed = f", {figures['failedRequests']:,} without tokens left out" if figures["failedRequests"] else ""
    head = Text.assemble(
        (f"{figures['requests']:,} requests", "bold"),
        f" in {figures['spanSeconds']:,.0f} s{failed}: {_shown(figures['ratePerSecond'])} per second, "
        f"coefficient of variation between arrivals {_shown(figures['interarrivalCV'])}",
    )
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
        head,
        rows_table(("", "mean", "p50", "p90", "p99"), rows),
        Text(f"{len(largest)} buckets of sizes{rest}:"),
        rows_table(("input", "output", "share", ""), buckets),
        Text(f"for a spec: medley workload … -o yaml   (rate {workload.rate_rps:.4g} requests/s)", style="dim"),
    )


def _lines(path: Path) -> Iterator[str]:
    """The file's lines, unpacked as they are read and bounded in number of bytes and in length."""
    with path.open("rb") as file:
        packed = file.peek(2)[:2] == b"\x1f\x8b"
        source: BinaryIO = gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[assignment]
        text = io.TextIOWrapper(source, encoding="utf-8-sig", newline=None)
        read = 0
        for number in range(1, MAX_TRACE_BYTES):
            line = text.readline(MAX_LINE_CHARACTERS)
            if not line:
                return
            if len(line) >= MAX_LINE_CHARACTERS:
                raise TraceError(number, "is too long for a line of a trace")
            read += len(line)
            if read > MAX_TRACE_BYTES:
                raise TraceError(number, f"the trace is larger than {MAX_TRACE_BYTES // 2**20} MiB")
            yield line


def _without_place(error: TraceError) -> str:
    """The error's message without its line and column, which are told apart from it."""
    return str(error).partition(": ")[2]


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


def _finite(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def _shown(value: float | None) -> str:
    return "?" if value is None else json.dumps(value)


def _bar(weight: float, largest: float) -> str:
    return "█" * max(1, round(24 * weight / largest))
