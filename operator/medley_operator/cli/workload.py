"""`medley workload`: a trace or measured margins to a histogram of request sizes, ready for a spec, with statistics."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from medley_operator.cli.inputs import STDIN, InputError, Mistake
from medley_operator.cli.marginals import read_margins
from medley_planner.workload.arrivals import BUSY_WINDOW_S, MIN_WINDOWS, busy_rate_rps
from medley_planner.workload.buckets import DEFAULT_BINS, coarsened, histogram_of
from medley_planner.workload.marginals import FittedSizes, MarginalsError, fit_sizes
from medley_planner.workload.presets import UnknownPresetError, preset
from medley_planner.workload.sizes import SizeHistogram
from medley_planner.workload.traces import Trace, TraceError, read_trace

MAX_TRACE_BYTES = 1 * 2**30
"""Of text, unpacked: what a file may make us read, however small it is packed."""

MAX_LINE_CHARACTERS = 1 * 2**20
BUSY_PERCENTILES = (90, 95, 99)
PERCENTILES = (50, 90, 99)
MAX_ENTRIES = 256
"""Buckets that a spec takes."""

MAX_CV = 100.0

DEFAULT_PRIOR = "azure-conversation-2023"
"""What measured margins are fitted to where nobody says."""

_GZIP = b"\x1f\x8b"
_NOT_READ = {b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zX": "xz", b"BZh": "bzip2", b"PK\x03\x04": "zip"}


@dataclass(frozen=True)
class FoundWorkload:
    """A workload, ready for a spec.

    Args:
        sizes: Histogram of request sizes.
        rate_rps: Requests per second to plan for: the trace's own, or the user's.
        interarrival_cv: Burstiness of the arrivals; None where nothing is known of it.
        trace: The requests, where there is a trace.
        fitted: How the sizes were fitted to measured margins, where they were.
    """

    sizes: SizeHistogram
    rate_rps: float
    interarrival_cv: float | None = None
    trace: Trace | None = None
    fitted: FittedSizes | None = None

    def to_spec(self) -> dict[str, Any]:
        """The `workload` of an LLMService's spec."""
        spec: dict[str, Any] = {"rate": round(self.rate_rps, 4)}
        if self.interarrival_cv is not None:
            spec["interarrivalCV"] = round(min(self.interarrival_cv, MAX_CV), 3)
        spec["sizes"] = {
            "histogram": [
                {
                    "inputTokens": bucket.input_tokens,
                    "outputTokens": bucket.output_tokens,
                    "weight": float(f"{bucket.weight:.6g}"),
                }
                for bucket in coarsened(self.sizes, max_buckets=MAX_ENTRIES).buckets
            ]
        }
        return spec

    def statistics(self) -> dict[str, Any]:
        """Figures of the trace and of the fit; None where a figure has no meaning."""
        made: dict[str, Any] = {} if self.trace is None else trace_statistics(self.trace)
        if self.fitted is not None:
            made["fit"] = {
                "iterations": self.fitted.iterations,
                "measuredShare": round(self.fitted.measured_share, 4),
                "beyondPriorShare": round(self.fitted.beyond_prior_share, 4),
                "meanInputTokens": round(self.sizes.mean_input_tokens, 1),
                "meanOutputTokens": round(self.sizes.mean_output_tokens, 1),
            }
        return made


def find_workload(
    trace: str | None,
    *,
    marginals: str | None = None,
    prior: str = DEFAULT_PRIOR,
    where: Sequence[str] = (),
    rate_rps: float | None = None,
    bins: int = DEFAULT_BINS,
) -> FoundWorkload:
    """The workload of a trace, or of measured margins fitted to a prior.

    Args:
        trace: File of the trace; with margins, what they are fitted to in place of the preset.
        marginals: File of the margins.
        prior: Preset that margins are fitted to.
        where: Conditions `COLUMN=VALUE` on requests, or on the labels of margins.
        rate_rps: Requests per second to plan for; None for the trace's own.
        bins: Bins of each of the two sizes of the trace.

    Raises:
        InputError: A file cannot be read or makes no sense, or something is missing.
    """
    chosen = conditions(where)
    if marginals is not None:
        if rate_rps is None:
            raise InputError([Mistake("--rate", None, "", "is needed with --marginals: they do not tell it")])
        return fitted_workload(marginals, prior=prior, rate_rps=rate_rps, trace=trace, bins=bins, where=chosen)
    if trace is None:
        raise InputError([Mistake("workload", None, "", "give a trace, or measured histograms with --marginals")])
    return trace_workload(trace, rate_rps=rate_rps, bins=bins, where=chosen)


def trace_workload(
    file: str, *, rate_rps: float | None, bins: int = DEFAULT_BINS, where: Mapping[str, str] | None = None
) -> FoundWorkload:
    """The workload of a trace file, packed with gzip or not; `-` is the standard input.

    Args:
        file: Its path.
        rate_rps: Requests per second to plan for; None for the trace's own.
        bins: Bins of each of the two sizes.
        where: Values by column that a request must have to count.

    Raises:
        InputError: The file cannot be read, is too large, is no trace, or gives no rate.
    """
    trace = open_trace(file, where=where) if rate_rps is not None else open_rated_trace(file, where=where)
    sizes = histogram_of(trace, input_bins=bins, output_bins=bins)
    return FoundWorkload(sizes, rate_rps or trace.rate_rps, trace.arrivals.interarrival_cv, trace)


def fitted_workload(
    file: str,
    *,
    prior: str,
    rate_rps: float,
    trace: str | None = None,
    bins: int = DEFAULT_BINS,
    where: Mapping[str, str] | None = None,
) -> FoundWorkload:
    """The workload of measured margins, fitted to a prior.

    Args:
        file: File of the margins.
        prior: Preset that says how inputs and outputs depend on each other, unless there is a trace.
        rate_rps: Requests per second to plan for.
        trace: A trace that says so, in place of the preset.
        bins: Bins of each of the two sizes of the trace.
        where: Values of labels that Prometheus' series must have.

    Raises:
        InputError: A file cannot be read or makes no sense, or there is no such preset.
    """
    measured = read_margins(file, where or {})
    try:
        known = preset(prior).sizes if trace is None else None
    except UnknownPresetError as error:
        raise InputError([Mistake("--prior", None, "", str(error))]) from None
    requests = open_trace(trace) if trace is not None else None
    if known is None:
        assert requests is not None
        known = histogram_of(requests, input_bins=bins, output_bins=bins)
    try:
        fitted = fit_sizes(measured.inputs, measured.outputs, known, requests=measured.requests)
    except MarginalsError as error:
        raise InputError([Mistake(file, None, "", str(error))]) from None
    cv = None if requests is None else requests.arrivals.interarrival_cv
    return FoundWorkload(fitted.sizes, rate_rps, cv, fitted=fitted)


def open_trace(file: str, *, where: Mapping[str, str] | None = None) -> Trace:
    """The requests of a trace file; `-` is the standard input.

    Raises:
        InputError: It cannot be read, is too large, or is no trace.
    """
    shown = "standard input" if file == STDIN else file
    try:
        return read_trace(_lines(file), where=where)
    except TraceError as error:
        raise InputError([Mistake(shown, error.line, error.column or "", _without_place(error))]) from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"cannot be read: {_reason(error)}"
        raise InputError([Mistake(shown, None, "", reason)]) from None


def open_rated_trace(file: str, *, where: Mapping[str, str] | None = None) -> Trace:
    """The same for a trace whose requests must not all arrive at once.

    Raises:
        InputError: They do, or as `open_trace`.
    """
    trace = open_trace(file, where=where)
    if not math.isfinite(trace.rate_rps):
        message = "all requests arrive at once, so the trace has no rate; give one with --rate"
        raise InputError([Mistake(file, None, "", message)])
    return trace


def conditions(given: Sequence[str]) -> dict[str, str]:
    """`COLUMN=VALUE` conditions by column.

    Raises:
        InputError: One is not of this form, or a column is there twice.
    """
    made: dict[str, str] = {}
    for condition in given:
        column, equals, value = condition.partition("=")
        if not equals or not column:
            raise InputError([Mistake("--where", None, "", f"must be COLUMN=VALUE, is {condition[:80]!r}")])
        if column in made:
            raise InputError([Mistake("--where", None, "", f"names {column[:80]!r} twice")])
        made[column] = value
    return made


def trace_statistics(trace: Trace) -> dict[str, Any]:
    """Figures of a trace; None where a figure has no meaning."""
    arrivals = trace.arrivals
    return {
        "requests": len(trace),
        "failedRequests": trace.failed_requests,
        "spanSeconds": round(trace.span_s, 3),
        "ratePerSecond": _finite(trace.rate_rps, 4),
        "interarrivalCV": None if arrivals.interarrival_cv is None else round(arrivals.interarrival_cv, 2),
        "dispersion": {f"{length:g}s": round(value, 2) for length, value in arrivals.dispersion},
        "busyRatePerSecond": _busy_rates(trace),
        "timestampGridSeconds": None if arrivals.grid_s is None else round(arrivals.grid_s, 3),
        "inputTokens": {
            "mean": round(float(trace.input_tokens.mean()), 1),
            **{f"p{percent}": round(trace.input_percentile(percent)) for percent in PERCENTILES},
        },
        "outputTokens": {
            "mean": round(float(trace.output_tokens.mean()), 1),
            **{f"p{percent}": round(trace.output_percentile(percent)) for percent in PERCENTILES},
        },
    }


def _busy_rates(trace: Trace) -> dict[str, float]:
    """Rates that so many per cent of the requests see at most; none where the trace is too short to tell."""
    if trace.span_s < MIN_WINDOWS * BUSY_WINDOW_S:
        return {}
    return {
        f"p{percent}": round(busy_rate_rps(trace.arrivals_s, BUSY_WINDOW_S, percent), 4) for percent in BUSY_PERCENTILES
    }


def _lines(file: str) -> Iterator[str]:
    """The file's lines, unpacked as they are read and bounded in number of bytes and in length."""
    with contextlib.ExitStack() as stack:
        opened = sys.stdin.buffer if file == STDIN else stack.enter_context(Path(file).open("rb"))
        raw = io.BufferedReader(opened) if isinstance(opened, io.RawIOBase) else opened
        start = raw.peek(4)[:4] if hasattr(raw, "peek") else b""
        packing = next((name for magic, name in _NOT_READ.items() if start.startswith(magic)), None)
        if packing is not None:
            raise TraceError(1, f"is packed with {packing}: unpack it, and pipe it in with -")
        source: BinaryIO = gzip.GzipFile(fileobj=raw) if start[:2] == _GZIP else raw  # type: ignore[assignment]
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
