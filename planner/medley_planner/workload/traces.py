"""Request traces as their publishers ship them, read from lines of text.

Layouts, told apart by their header:

- Azure LLM inference traces: `TIMESTAMP,ContextTokens,GeneratedTokens`, with dates
- Mooncake: `timestamp_ms,input_length,output_length`, or JSON lines with `timestamp` (milliseconds) in its place
- BurstGPT: `Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type`, seconds;
  older files have neither session nor elapsed time
- plain: `arrival_s,input_tokens,output_tokens`

Other columns may be there; requests can be chosen by them (BurstGPT's `Model` and `Log Type`, say).
Opening and unpacking files is the caller's.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medley_planner.workload.arrivals import Arrivals, arrivals
from medley_planner.workload.sizes import MAX_TOKENS

MAX_ARRIVAL_S = 1e11
"""Latest time that is taken for one, in seconds since any moment; more is a mistake in the data."""

MAX_NAMED = 8
"""Values that an error names at most."""

MAX_SHOWN = 200
"""Characters of a value that an error shows at most."""


class TraceError(ValueError):
    """A trace cannot be read; the message starts with the line, and the column where one is to blame."""

    def __init__(self, line: int, problem: str, column: str | None = None) -> None:
        super().__init__(f"line {line}, column {column}: {problem}" if column else f"line {line}: {problem}")
        self.line = line
        self.column = column


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in order of arrival; the three arrays have the same length, at least 1.

    Args:
        arrivals_s: Arrivals in seconds after the first one, rising.
        input_tokens: Tokens of each prompt.
        output_tokens: Tokens of each answer.
        failed_requests: Requests that the trace lists with no input or no output; they are left out of the arrays.
    """

    arrivals_s: npt.NDArray[np.float64]
    input_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    failed_requests: int = 0

    def __len__(self) -> int:
        return len(self.arrivals_s)

    @property
    def span_s(self) -> float:
        """Time from the first arrival to the last."""
        return float(self.arrivals_s[-1])

    @property
    def rate_rps(self) -> float:
        """Mean arrivals per second; NaN where all arrive at once."""
        return (len(self) - 1) / self.span_s if self.span_s > 0 else math.nan

    @property
    def interarrival_cv(self) -> float:
        """Standard deviation of times between arrivals over their mean (Poisson: 1); NaN where all arrive at once.

        Of timestamps on a grid, `arrivals` tells more.
        """
        gap_cv = self.arrivals.gap_cv
        return math.nan if gap_cv is None else gap_cv

    @property
    def arrivals(self) -> Arrivals:
        """How the requests arrive: rate, burstiness, and whether timestamps lie on a grid."""
        return arrivals(self.arrivals_s)

    def input_percentile(self, percent: float) -> float:
        """The input size that so many per cent of the requests do not exceed (interpolated)."""
        return float(np.percentile(self.input_tokens, percent))

    def output_percentile(self, percent: float) -> float:
        """The output size that so many per cent of the requests do not exceed (interpolated)."""
        return float(np.percentile(self.output_tokens, percent))


@dataclass(frozen=True)
class _Layout:
    """The columns of a layout, and how its arrivals become seconds (since any moment)."""

    arrival: str
    input: str
    output: str
    seconds: Callable[[str], float]


_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d{1,18})?)?)?", re.ASCII)


def _date_in_seconds(text: str) -> float:
    """Seconds since 1970 of `2023-11-16 18:15:46.6805900`; a UTC offset may follow."""
    for utc in ("Z", "+00:00"):
        text = text.removesuffix(utc)
    if _DATE.fullmatch(text) and 1970 <= int(text[:4]) <= 2261:
        return int(np.datetime64(text, "ns").astype(np.int64)) / 1e9
    raise ValueError(text)


_LAYOUTS = (
    _Layout("TIMESTAMP", "ContextTokens", "GeneratedTokens", _date_in_seconds),
    _Layout("timestamp_ms", "input_length", "output_length", lambda text: float(text) / 1000),
    _Layout("timestamp", "input_length", "output_length", lambda text: float(text) / 1000),
    _Layout("Timestamp", "Request tokens", "Response tokens", float),
    _Layout("arrival_s", "input_tokens", "output_tokens", float),
)

_Row = tuple[int, dict[str, str]]
"""A line's number and its values by column."""


def read_trace(lines: Iterable[str], *, where: Mapping[str, str] | None = None) -> Trace:
    """The requests of a trace in any of the layouts above; blank lines are passed over.

    Args:
        lines: The trace's lines.
        where: Values by column that a request must have to count, such as `{"Model": "GPT-4"}`.

    Raises:
        TraceError: The layout is unknown, a value is missing or impossible, or no request is left.
    """
    wanted = dict(where or {})
    passed_over: dict[str, set[str]] = {column: set() for column in wanted}
    rows = _rows(lines)
    first = next(rows, None)
    if first is None:
        raise TraceError(1, "there is no request")
    layout = _layout(first)
    arrivals_s: list[float] = []
    sizes: list[tuple[int, int]] = []
    failed = 0
    last_line = 1
    for row in itertools.chain([first], rows):
        last_line = row[0]
        if not _is_wanted(row, wanted, passed_over):
            continue
        arrival_s = _arrival(row, layout)
        size = (_tokens(row, layout.input), _tokens(row, layout.output))
        if 0 in size:
            failed += 1
            continue
        arrivals_s.append(arrival_s)
        sizes.append(size)
    if not sizes:
        seen = "; ".join(_seen(column, wanted[column], values) for column, values in passed_over.items() if values)
        raise TraceError(last_line, f"no request has both input and output tokens{seen and f' and {seen}'}")
    return _in_order(arrivals_s, sizes, failed)


def _is_wanted(row: _Row, wanted: Mapping[str, str], passed_over: Mapping[str, set[str]]) -> bool:
    """Whether a request is to be counted; the values for which it is not are remembered, a few of each column."""
    for column, value in wanted.items():
        found = _value(row, column)
        if found != value:
            if len(passed_over[column]) < MAX_NAMED:
                passed_over[column].add(found[:40])
            return False
    return True


def _seen(column: str, wanted: str, values: set[str]) -> str:
    return f"{column} {wanted!r} (it has {', '.join(repr(value) for value in sorted(values))})"


def _in_order(arrivals_s: list[float], sizes: list[tuple[int, int]], failed: int) -> Trace:
    arrivals = np.array(arrivals_s, dtype=np.float64)
    order = np.argsort(arrivals, kind="stable")
    tokens = np.array(sizes, dtype=np.int64)[order]
    return Trace(arrivals[order] - arrivals.min(), tokens[:, 0].copy(), tokens[:, 1].copy(), failed)


def _rows(lines: Iterable[str]) -> Iterator[_Row]:
    numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
    first = next(numbered, None)
    if first is None:
        return
    everything = itertools.chain([first], numbered)
    if first[1].lstrip().startswith("{"):
        yield from map(_json_row, everything)
    else:
        yield from _csv_rows(everything)


def _json_row(numbered: tuple[int, str]) -> _Row:
    number, line = numbered
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise TraceError(number, f"is not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise TraceError(number, "is no JSON that can be read: a number too long, or nested too deep") from error
    if not isinstance(values, dict):
        raise TraceError(number, "is not a JSON object")
    return number, {
        str(column): value if isinstance(value, str) else json.dumps(value) for column, value in values.items()
    }


def _csv_rows(numbered: Iterator[tuple[int, str]]) -> Iterator[_Row]:
    number, line = next(numbered)
    header = _csv_values(number, line.removeprefix("\ufeff"))
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise TraceError(number, "is there twice", twice[0])
    for number, line in numbered:
        values = _csv_values(number, line)
        if len(values) != len(header):
            raise TraceError(number, f"has {len(values)} values, the header has {len(header)} columns")
        yield number, dict(zip(header, values, strict=True))


def _csv_values(number: int, line: str) -> list[str]:
    try:
        return [value.strip() for value in next(csv.reader([line], strict=True))]
    except csv.Error as error:
        raise TraceError(number, f"is not CSV: {error}") from error


def _layout(first: _Row) -> _Layout:
    number, values = first
    for layout in _LAYOUTS:
        if {layout.arrival, layout.input, layout.output} <= values.keys():
            return layout
    known = "; ".join(f"{layout.arrival}, {layout.input}, {layout.output}" for layout in _LAYOUTS)
    columns = ", ".join(values)
    shown = columns if len(columns) <= MAX_SHOWN else f"{columns[:MAX_SHOWN]}…"
    raise TraceError(number, f"the columns {shown} are of no known trace (known: {known})")


def _shown(text: str) -> str:
    return repr(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…")


def _value(row: _Row, column: str) -> str:
    number, values = row
    if column not in values:
        raise TraceError(number, "is missing", column)
    return values[column]


def _arrival(row: _Row, layout: _Layout) -> float:
    text = _value(row, layout.arrival)
    try:
        arrival_s = layout.seconds(text)
    except ValueError as error:
        raise TraceError(row[0], f"must be a time, is {_shown(text)}", layout.arrival) from error
    if not 0 <= arrival_s <= MAX_ARRIVAL_S:
        raise TraceError(row[0], f"must be a time, is {_shown(text)}", layout.arrival)
    return arrival_s


def _tokens(row: _Row, column: str) -> int:
    text = _value(row, column)
    try:
        tokens = int(text)
    except ValueError as error:
        raise TraceError(row[0], f"must be a whole number of tokens, is {_shown(text)}", column) from error
    if not 0 <= tokens <= MAX_TOKENS:
        raise TraceError(row[0], f"must be between 0 and {MAX_TOKENS}, is {tokens}", column)
    return tokens
