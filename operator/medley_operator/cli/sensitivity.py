"""How far a plan holds: asked within a time, shown as a table and as values for programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from medley_operator.cli.columns import money, rows_table
from medley_planner.explaining.curves import Axis, Cell, Curve, SizeMap
from medley_planner.explaining.sensitivity import Progress as Told
from medley_planner.explaining.sensitivity import Sensitivity
from medley_planner.explaining.turns import Figure, Turn
from medley_planner.wording import variant_text

AXES = {
    Axis.RATE: "rate",
    Axis.TIME_PER_OUTPUT_TOKEN: "timePerOutputTokenMs",
    Axis.TIME_TO_FIRST_TOKEN: "timeToFirstTokenMs",
}
"""What a curve is drawn against, as programs read it."""

MAX_CHANGES_SHOWN = 3

SENSITIVITY_TIME_S = 120.0
"""No question about how far a plan holds is begun after so long."""


@contextmanager
def told_within(limit_s: float, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Told]:
    """What `sensitivity` is to tell: shown on a terminal's standard error, and an end to it when the time is over."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task("sensitivity", total=None)
        end_s = clock() + limit_s

        def told(done: int, of: int, words: str) -> bool:
            shown.update(task, completed=done, total=of, description=words)
            return clock() < end_s

        yield told


def to_scale(axis: Axis, value: float) -> float:
    """A value as people read it: requests per second, or milliseconds."""
    return value if axis is Axis.RATE else 1e3 * value


def sensitivity_manifest(found: Sensitivity) -> dict[str, Any]:
    """The answers for programs."""
    return {
        "prices": [_turn_manifest(turn) for turn in found.prices],
        "rates": [_turn_manifest(turn) for turn in found.rates],
        "curves": [_curve_manifest(curve) for curve in found.curves],
        "maps": [_map_manifest(each) for each in found.maps],
        "unanswered": list(found.unanswered),
    }


def _turn_manifest(turn: Turn) -> dict[str, Any]:
    return {
        "pool" if turn.figure is Figure.PRICE else "service": turn.subject,
        "direction": "rises" if turn.upwards else "falls",
        "now": _rounded(turn.now),
        "holdsTo": _rounded(turn.holds_to),
        "changesAt": _rounded(turn.changes_at),
        "lookedTo": _rounded(turn.looked_to),
        "changes": [{"service": each.service, "before": each.before, "after": each.after} for each in turn.changes],
        "costBefore": _rounded(turn.cost_before_usd_per_hour),
        "costAfter": _rounded(turn.cost_after_usd_per_hour),
    }


def _curve_manifest(curve: Curve) -> dict[str, Any]:
    return {
        "service": curve.service,
        "axis": AXES[curve.axis],
        "now": _rounded(to_scale(curve.axis, curve.now)),
        "points": [
            {
                "value": _rounded(to_scale(curve.axis, point.value)),
                "outcome": point.outcome.value,
                "mix": point.mix,
                "costPerHour": _rounded(point.cost_usd_per_hour),
                "lowerBound": _rounded(point.lower_bound_usd_per_hour),
                "gpus": dict(point.gpus_by_pool),
                "only": {pool: _rounded(cost) for pool, cost in zip(curve.pools, point.single_pools, strict=True)},
            }
            for point in curve.points
        ],
    }


def _map_manifest(found: SizeMap) -> dict[str, Any]:
    return {
        "service": found.service,
        "inputTokens": list(found.input_tokens),
        "outputTokens": list(found.output_tokens),
        "cells": [_cell_manifest(cell) for cell in found.cells],
    }


def _cell_manifest(cell: Cell) -> dict[str, Any]:
    size = {"inputTokens": cell.input_tokens, "outputTokens": cell.output_tokens}
    if cell.variant is None:
        return {**size, "variant": None, "reason": cell.reason}
    return {
        **size,
        "variant": variant_text(cell.variant),
        "perMillionRequests": _rounded(cell.usd_per_million_requests),
        "runnerUp": None if cell.runner_up is None else variant_text(cell.runner_up),
        "runnerUpRatio": _rounded(cell.runner_up_ratio),
    }


def _rounded(value: float | None) -> float | None:
    """Six significant digits: no more is known, and the same answer prints the same."""
    return None if value is None else float(f"{value:.6g}")


def sensitivity_tables(found: Sensitivity, *, alone: bool) -> RenderableType:
    """Where the plan changes, for people.

    Args:
        found: The answers.
        alone: There is one service only, which goes without saying.
    """
    rows = [turn_words(turn, alone=alone) for turn in (*found.prices, *found.rates)]
    parts: list[RenderableType] = [Text("how far it holds", style="bold")]
    if rows:
        columns = ("if", "from", "to", "then")
        parts.append(Padding(rows_table(columns, rows), (0, 0, 0, 2), expand=False))
    if found.unanswered:
        missing = f"{len(found.unanswered)} more questions were not asked: the time was over"
        parts.append(Text(f"  {missing}", style="yellow"))
    return Group(*parts, Text())


def turn_words(turn: Turn, *, alone: bool) -> tuple[str, str, str, str]:
    """`price of l4 rises`, `0.80 $`, `1.12 $`, `1×a100 instead of 2×l4`."""
    what = f"{turn.figure.value} of {turn.subject} {'rises' if turn.upwards else 'falls'}"
    now = shown_figure(turn.figure, turn.now)
    if turn.changes_at is None:
        return what, now, shown_figure(turn.figure, turn.looked_to), "nothing changes"
    named = turn.figure is Figure.PRICE and not alone
    return what, now, shown_figure(turn.figure, turn.changes_at), _changes_text(turn, named=named)


def shown_figure(figure: Figure, value: float) -> str:
    """A price or a rate as people read it."""
    return f"{money(value)} $" if figure is Figure.PRICE else f"{value:.4g} req/s"


def _changes_text(turn: Turn, *, named: bool) -> str:
    names = [f"{each.service}: " if named else "" for each in turn.changes]
    words = [f"{name}{each.after} instead of {each.before}" for name, each in zip(names, turn.changes, strict=True)]
    more = len(words) - MAX_CHANGES_SHOWN
    return "; ".join(words[:MAX_CHANGES_SHOWN]) + (f"; {more} more" if more > 0 else "")
