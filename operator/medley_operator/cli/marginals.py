"""Measured margins of request sizes, from a file: what Prometheus or an engine shows, or a list of cells."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medley_operator.cli.inputs import MAX_FILE_BYTES, InputError, Mistake
from medley_operator.cli.yaml_documents import Document, DocumentError, documents
from medley_planner.workload.marginals import Margin, MarginalsError

HISTOGRAMS = (
    ("vllm:request_prompt_tokens", "vllm:request_generation_tokens"),
    ("sglang:prompt_tokens_histogram", "sglang:generation_tokens_histogram"),
)
"""Names of the histograms of input and output sizes, by engine."""

OWN_LABELS = frozenset({"model_name", "model"})
"""Labels by which series of one histogram must agree; over others they are added up."""

_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{([^{}]*)\})?\s+(\S+)(?:\s+\S+)?\s*")
_LABEL = re.compile(r'\s*(\w+)="((?:[^"\\]|\\.)*)"\s*(?:,|$)')


@dataclass(frozen=True)
class MeasuredMargins:
    """The margins of the same requests.

    Args:
        inputs: Input sizes.
        outputs: Output sizes.
        requests: Requests behind them; None where the file has shares only.
    """

    inputs: Margin
    outputs: Margin
    requests: float | None


def read_margins(file: str, where: Mapping[str, str]) -> MeasuredMargins:
    """The margins in a file: Prometheus' text format, or YAML or JSON with `inputTokens` and `outputTokens`.

    Args:
        file: Its path.
        where: Values of labels that series must have, in Prometheus' format.

    Raises:
        InputError: The file cannot be read, or has no margins that make sense.
    """
    text = _read(file)
    if re.search(r"^\w+:\w+_bucket\{", text, flags=re.MULTILINE):
        return _of_metrics(file, text, where)
    try:
        found = list(documents(text))
    except DocumentError as error:
        raise InputError([Mistake(file, error.line, "", error.message)]) from None
    if len(found) != 1 or not isinstance(found[0].value, dict):
        names = " or ".join(pair[0] for pair in HISTOGRAMS)
        message = f"has neither a Prometheus histogram {names} nor an object with inputTokens and outputTokens"
        raise InputError([Mistake(file, None, "", message)])
    return _of_cells(file, found[0])


def _of_metrics(file: str, text: str, where: Mapping[str, str]) -> MeasuredMargins:
    for names in HISTOGRAMS:
        inputs, outputs = (_histogram(file, text, name, where) for name in names)
        if inputs is not None and outputs is not None:
            return MeasuredMargins(inputs, outputs, min(inputs.requests, outputs.requests))
        if inputs is not None or outputs is not None:
            missing = names[1] if outputs is None else names[0]
            raise InputError([Mistake(file, None, missing, "the histogram is missing, or no series has those labels")])
    names_known = "; ".join(" and ".join(pair) for pair in HISTOGRAMS)
    raise InputError([Mistake(file, None, "", f"has none of the histograms {names_known} (with those labels)")])


def _histogram(file: str, text: str, name: str, where: Mapping[str, str]) -> Margin | None:
    """One histogram, added up over its series; None where there is none."""
    counts: dict[float, float] = {}
    total = 0.0
    own: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith(name):
            continue
        sample = _sample(file, number, line)
        labels = sample[1]
        if any(labels.get(label) != value for label, value in where.items()):
            continue
        for label in sorted(OWN_LABELS & labels.keys()):
            if own.setdefault(label, labels[label]) != labels[label]:
                choice = (
                    f"has series of {label} {own[label]!r} and {labels[label]!r}: choose one with --where {label}=…"
                )
                raise InputError([Mistake(file, number, name, choice)])
        if sample[0] == f"{name}_bucket":
            edge = _number(file, number, labels.get("le", ""))
            counts[edge] = counts.get(edge, 0.0) + sample[2]
        elif sample[0] == f"{name}_sum":
            total += sample[2]
    if not counts:
        return None
    try:
        return Margin.of_cumulative(sorted(counts.items()), total_tokens=total if total > 0 else None)
    except MarginalsError as error:
        raise InputError([Mistake(file, None, name, str(error))]) from None


def _sample(file: str, number: int, line: str) -> tuple[str, dict[str, str], float]:
    """A line of Prometheus' text format: name, labels and value."""
    match = _SAMPLE.fullmatch(line)
    if match is None:
        raise InputError([Mistake(file, number, "", "is no sample in Prometheus' text format")])
    labels = {found.group(1): found.group(2) for found in _LABEL.finditer(match.group(2) or "")}
    value = _number(file, number, match.group(3))
    if not 0 <= value < math.inf:
        raise InputError([Mistake(file, number, "", f"must be a number, at least 0, is {match.group(3)[:40]}")])
    return match.group(1), labels, value


def _number(file: str, number: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError([Mistake(file, number, "", f"must be a number, is {text[:40]!r}")]) from None
    if math.isnan(value):
        raise InputError([Mistake(file, number, "", "must be a number, is NaN")])
    return value


def _of_cells(file: str, document: Document) -> MeasuredMargins:
    values = document.value
    unknown = sorted(set(values) - {"inputTokens", "outputTokens", "meanInputTokens", "meanOutputTokens", "requests"})
    if unknown:
        raise InputError([Mistake(file, document.line_of((unknown[0],)), unknown[0][:80], "is unknown")])
    inputs = _margin(file, document, "inputTokens", "meanInputTokens")
    outputs = _margin(file, document, "outputTokens", "meanOutputTokens")
    requests = values.get("requests")
    if requests is not None and not (_is_number(requests) and 0 <= requests < math.inf):
        raise InputError([Mistake(file, document.line_of(("requests",)), "requests", "must be a number, at least 0")])
    return MeasuredMargins(inputs, outputs, None if requests is None else float(requests))


def _margin(file: str, document: Document, name: str, mean_name: str) -> Margin:
    cells, mean = document.value.get(name), document.value.get(mean_name)

    def mistake(path: tuple[str | int, ...], shown: str, message: str) -> InputError:
        return InputError([Mistake(file, document.line_of(path), shown, message)])

    if not isinstance(cells, list) or not cells:
        raise mistake((name,), name, "must be a list of cells {upTo, weight}")
    edges: list[float] = []
    weights: list[float] = []
    for place, cell in enumerate(cells):
        for field, values in (("upTo", edges), ("weight", weights)):
            value: Any = cell.get(field) if isinstance(cell, dict) else None
            if not _is_number(value):
                raise mistake((name, place, field), f"{name}[{place}].{field}", "must be a number")
            values.append(float(value))
    if mean is not None and not _is_number(mean):
        raise mistake((mean_name,), mean_name, "must be a number")
    try:
        return Margin(tuple(edges), tuple(weights), None if mean is None else float(mean))
    except MarginalsError as error:
        entry, found, message = str(error).partition(": ")
        if not found or not entry.startswith("["):
            raise mistake((name,), name, str(error)) from None
        place = int(entry[1 : entry.index("]")])
        raise mistake((name, place), f"{name}{entry}", message) from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _read(file: str) -> str:
    try:
        with Path(file).open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError([Mistake(file, None, "", f"cannot be read: {reason}")]) from None
    if len(data) > MAX_FILE_BYTES:
        raise InputError([Mistake(file, None, "", f"larger than {MAX_FILE_BYTES // 2**20} MiB")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError([Mistake(file, None, "", "is not UTF-8 text")]) from None
