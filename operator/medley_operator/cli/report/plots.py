"""The plots of a report: cost against rate and objectives, alternatives, the map of request sizes, and stock."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from medley_operator.api.llmservice_status import PlanStatus
from medley_operator.cli.columns import money
from medley_operator.cli.report.drawing import INK, LINE, MUTED, PAPER, Plot, colour_of, dashes_of, drawn
from medley_operator.cli.sensitivity import to_scale
from medley_planner.explaining.curves import Axis, Cell, Curve, SizeMap
from medley_planner.wording import variant_text
from medley_planner.workload.sizes import SizeHistogram

_AXIS_WORDS = {
    Axis.RATE: ("rate", "requests per second"),
    Axis.TIME_PER_OUTPUT_TOKEN: ("time per output token", "allowed time per output token, ms"),
    Axis.TIME_TO_FIRST_TOKEN: ("time to first token", "allowed time to first token, ms"),
}
_MAX_BARS = 12
_MAX_PARTS = 6
_STOCK_SHOWN_UP_TO = 4.0
"""A pool's stock is drawn where it is at most so many times what is used of any pool; else it is only told."""


@dataclass(frozen=True)
class PoolUse:
    """A pool's GPUs, by the services that use them.

    Args:
        pool: The pool's name.
        gpu: Type of its GPUs.
        stock: GPUs that may be used; None is without end.
        used: GPUs by service, those that use any.
    """

    pool: str
    gpu: str
    stock: int | None
    used: Mapping[str, int]


def curve_plot(name: str, curve: Curve, places: Mapping[str, int]) -> Plot:
    """Cost of the mix against the axis, with the best of single pools.

    Args:
        name: Unique on the page.
        curve: The costs.
        places: The place of each pool among all, which gives it its colour.
    """
    words, label = _AXIS_WORDS[curve.axis]
    values = [to_scale(curve.axis, point.value) for point in curve.points]

    def draw(axes: Axes) -> None:
        for index, pool in enumerate(curve.pools):
            costs = [_or_nan(point.single_pools[index]) for point in curve.points]
            if any(cost == cost for cost in costs):  # noqa: PLR0124 - NaN is the one that differs from itself
                place = places.get(pool, 0)
                axes.plot(values, costs, dashes_of(place), color=colour_of(place), lw=1.4, label=f"only {pool}")
        mixes = [_or_nan(point.cost_usd_per_hour) for point in curve.points]
        axes.plot(values, mixes, color=INK, lw=2.2, marker="o", ms=4, label="the mix")
        axes.axvline(to_scale(curve.axis, curve.now), color=MUTED, lw=1, ls=(0, (2, 3)))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        if curve.axis is Axis.RATE and all(cost != 0 for cost in mixes):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        else:
            axes.set_ylim(bottom=0)
        _plain_ticks(axes)
        axes.set_xlabel(f"{label} (now {to_scale(curve.axis, curve.now):.4g})")
        axes.set_ylabel("$ per hour")
        axes.grid(visible=True, axis="both", which="major")
        axes.legend(fontsize=9)

    title = f"Cost against {words}"
    description = f"{title} of {curve.service}: {_curve_in_words(curve)}"
    head = (label, "$/hour", *(f"only {pool}" for pool in curve.pools), "mix")
    rows = tuple(
        (
            f"{value:.4g}",
            _amount(point.cost_usd_per_hour),
            *(_amount(cost) for cost in point.single_pools),
            point.mix or point.outcome.value,
        )
        for value, point in zip(values, curve.points, strict=True)
    )
    return Plot(
        name, title, description, drawn(name, title, description, draw, width_in=6.4, height_in=3.6), head, rows
    )


def _curve_in_words(curve: Curve) -> str:
    planned = [point for point in curve.points if point.cost_usd_per_hour is not None]
    if not planned:
        return "no plan at any of the values."
    first, last = planned[0], planned[-1]
    ends = (
        f"{_amount(point.cost_usd_per_hour)} $/h at {to_scale(curve.axis, point.value):.4g} ({point.mix})"
        for point in (first, last)
    )
    return "from {} to {}.".format(*ends)


def alternatives_plot(name: str, service: str, plan: PlanStatus) -> Plot | None:
    """Bars of what the mix and other fleets cost; None where there is nothing to compare."""
    priced = [other for other in plan.alternatives if other.cost_per_hour is not None][:_MAX_BARS]
    if not priced or not plan.entries:
        return None
    bars = [("the mix", plan.cost_per_hour), *((other.name, other.cost_per_hour or 0.0) for other in priced)]
    bars.sort(key=lambda bar: (bar[1], bar[0] != "the mix", bar[0]))

    def draw(axes: Axes) -> None:
        colours = [INK if label == "the mix" else colour_of(0) for label, _ in bars]
        drawn_bars = axes.barh([label for label, _ in bars], [cost for _, cost in bars], color=colours, height=0.66)
        axes.bar_label(drawn_bars, [money(cost) for _, cost in bars], padding=4, color=INK, fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel("$ per hour")
        axes.grid(visible=True, axis="x")
        axes.tick_params(axis="y", length=0)

    title = "What other fleets would cost"
    words = ", ".join(f"{label} {money(cost)}" for label, cost in bars)
    description = f"{title} for {service}, in $/h: {words}."
    height = 0.9 + 0.28 * len(bars)
    svg = drawn(name, title, description, draw, width_in=6.4, height_in=height)
    return Plot(name, title, description, svg, ("fleet", "$/hour"), tuple((label, money(cost)) for label, cost in bars))


def map_plot(name: str, found: SizeMap, sizes: SizeHistogram, places: Mapping[str, int]) -> Plot:
    """The cheapest variant over request sizes, with the service's own requests as dots.

    Args:
        name: Unique on the page.
        found: The cheapest variant by size.
        sizes: The service's requests.
        places: The place of each pool among all.
    """
    labels = sorted({_cell_label(cell) for cell in found.cells if cell.variant is not None})
    pools = {_cell_label(cell): cell.variant.pool for cell in found.cells if cell.variant is not None}
    columns = len(found.output_tokens)

    def draw(axes: Axes) -> None:
        kinds = [
            [_kind(found.cells[i * columns + o], labels) for i in range(len(found.input_tokens))]
            for o in range(columns)
        ]
        colours = [LINE, *(colour_of(places.get(pools[label], 0)) for label in labels)]
        axes.pcolormesh(
            _edges(found.input_tokens),
            _edges(found.output_tokens),
            kinds,
            cmap=ListedColormap(colours),
            vmin=-0.5,
            vmax=len(colours) - 0.5,
            alpha=0.75,
            linewidth=0,
        )
        axes.add_collection(LineCollection(_borders(found, kinds), colors=PAPER, linewidths=1.5))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        _plain_ticks(axes)
        for label in (*labels, ""):
            _write_in_the_middle(axes, found, label)
        heaviest = max(bucket.weight for bucket in sizes.buckets)
        axes.scatter(
            [bucket.input_tokens for bucket in sizes.buckets],
            [bucket.output_tokens for bucket in sizes.buckets],
            s=[4 + 60 * bucket.weight / heaviest for bucket in sizes.buckets],
            facecolor="none",
            edgecolor=INK,
            linewidth=0.9,
        )
        axes.set_xlim(min(found.input_tokens), max(found.input_tokens))
        axes.set_ylim(min(found.output_tokens), max(found.output_tokens))
        axes.set_xlabel("input tokens")
        axes.set_ylabel("output tokens")

    title = "Cheapest GPUs by request size"
    counts = {label: sum(_cell_label(cell) == label for cell in found.cells) for label in (*labels, "")}
    words = ", ".join(
        f"{label or 'none'} for {100 * count / len(found.cells):.0f} %" for label, count in counts.items() if count
    )
    description = f"{title} of {found.service}, of the sizes on the map: {words}. Circles are the service's requests."
    svg = drawn(name, title, description, draw, width_in=6.4, height_in=4.2)
    head = ("input tokens", "output tokens", "cheapest", "$ per million requests", "next best", "its price over that")
    return Plot(name, title, description, svg, head, tuple(_cell_row(cell) for cell in found.cells))


def _cell_label(cell: Cell) -> str:
    return "" if cell.variant is None else variant_text(cell.variant)


def _kind(cell: Cell, labels: Sequence[str]) -> int:
    return 0 if cell.variant is None else 1 + labels.index(_cell_label(cell))


def _cell_row(cell: Cell) -> tuple[str, ...]:
    size = (f"{cell.input_tokens:,}", f"{cell.output_tokens:,}")
    if cell.variant is None:
        return (*size, f"none: {cell.reason}", "", "", "")
    second = "" if cell.runner_up is None else variant_text(cell.runner_up)
    ratio = "" if cell.runner_up_ratio is None else f"{cell.runner_up_ratio:.2f}"
    return (*size, _cell_label(cell), f"{cell.usd_per_million_requests:.4g}", second, ratio)


def _write_in_the_middle(axes: Axes, found: SizeMap, label: str) -> None:
    """The label of a region at the one of its cells that is nearest to its middle."""
    mine = [
        (place // len(found.output_tokens), place % len(found.output_tokens))
        for place, cell in enumerate(found.cells)
        if _cell_label(cell) == label
    ]
    if len(mine) < 3:
        return
    middle = [sum(each[side] for each in mine) / len(mine) for side in (0, 1)]
    i, o = min(mine, key=lambda each: ((each[0] - middle[0]) ** 2 + (each[1] - middle[1]) ** 2, each))
    axes.annotate(
        label or "none",
        (found.input_tokens[i], found.output_tokens[o]),
        ha="center",
        va="center",
        fontsize=10,
        fontweight="bold",
        color=INK,
        bbox={"boxstyle": "round,pad=0.2", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.75},
    )


def _borders(found: SizeMap, kinds: Sequence[Sequence[int]]) -> list[list[tuple[float, float]]]:
    """Lines between cells of different kinds: those of one pool have the same colour."""
    x, y = _edges(found.input_tokens), _edges(found.output_tokens)
    rows, columns = len(kinds), len(kinds[0])
    upright = [
        [(x[i + 1], y[o]), (x[i + 1], y[o + 1])]
        for o in range(rows)
        for i in range(columns - 1)
        if kinds[o][i] != kinds[o][i + 1]
    ]
    level = [
        [(x[i], y[o + 1]), (x[i + 1], y[o + 1])]
        for o in range(rows - 1)
        for i in range(columns)
        if kinds[o][i] != kinds[o + 1][i]
    ]
    return upright + level


def _edges(centres: Sequence[int]) -> list[float]:
    """Edges of cells around values that are evenly spaced in their logarithm."""
    inner = [(one * other) ** 0.5 for one, other in itertools.pairwise(centres)]
    if not inner:
        return [centres[0] / 2**0.5, centres[0] * 2**0.5]
    return [centres[0] ** 2 / inner[0], *inner, centres[-1] ** 2 / inner[-1]]


def stock_plot(name: str, uses: Sequence[PoolUse]) -> Plot:
    """Bars of the GPUs that services use of each pool, within its stock."""
    totals: dict[str, int] = {}
    for use in uses:
        for service, gpus in use.used.items():
            totals[service] = totals.get(service, 0) + gpus
    shown = sorted(totals, key=lambda service: (-totals[service], service))[:_MAX_PARTS]
    most = max((sum(use.used.values()) for use in uses), default=0)

    def draw(axes: Axes) -> None:
        pools = [use.pool for use in uses]
        left = [0] * len(uses)
        others = {use.pool: sum(gpus for each, gpus in use.used.items() if each not in shown) for use in uses}
        parts = [(service, [use.used.get(service, 0) for use in uses]) for service in shown]
        parts += [("others", [others[pool] for pool in pools])] if any(others.values()) else []
        for place, (label, gpus) in enumerate(parts):
            colour = MUTED if label == "others" else colour_of(place)
            axes.barh(pools, gpus, left=left, color=colour, height=0.6, label=label)
            left = [begin + width for begin, width in zip(left, gpus, strict=True)]
        for row, use in enumerate(uses):
            drawn_stock = use.stock is not None and use.stock <= _STOCK_SHOWN_UP_TO * max(most, 1)
            if drawn_stock:
                axes.barh([use.pool], [use.stock or 0], color="none", edgecolor=MUTED, height=0.6, linewidth=1)
            of = "(no limit)" if use.stock is None else f"of {use.stock:,}"
            end = max(left[row], (use.stock or 0) if drawn_stock else 0)
            axes.annotate(f" {left[row]} {of}", (end, row), va="center", fontsize=9, color=INK)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("GPUs")
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=True, axis="x")
        if len(parts) > 1:
            axes.legend(fontsize=9)

    title = "GPUs in use"
    words = ", ".join(
        f"{use.pool} {sum(use.used.values())}" + ("" if use.stock is None else f" of {use.stock}") for use in uses
    )
    description = f"{title} by pool: {words}."
    svg = drawn(name, title, description, draw, width_in=6.4, height_in=1.0 + 0.42 * len(uses))
    rows = tuple(
        (use.pool, use.gpu, service, str(gpus), "no limit" if use.stock is None else f"{use.stock:,}")
        for use in uses
        for service, gpus in (sorted(use.used.items()) or [("", 0)])
    )
    return Plot(name, title, description, svg, ("pool", "GPU", "service", "GPUs", "stock"), rows)


def _plain_ticks(axes: Axes) -> None:
    """Numbers as people write them, on logarithmic axes too."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axis.set_minor_formatter(NullFormatter())


def _or_nan(cost: float | None) -> float:
    return float("nan") if cost is None else cost


def _amount(cost: float | None) -> str:
    return "–" if cost is None else money(cost)
