"""Plots as inline SVG that follow the page's colours, light or dark, and can be read aloud.

matplotlib draws with colours that stand for roles; in the SVG they become the page's CSS variables. Text stays text, in
the page's font. The same plot gives the same SVG: no date, and ids made from a fixed salt.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

INK, MUTED, LINE, PAPER = "#0a0b0c", "#0a0b0d", "#0a0b0e", "#0a0b0f"
"""Text and the main line; secondary text; grid and frames; the background."""

SERIES = tuple(f"#0a0c{place:02x}" for place in range(8))
"""Colours of series; more series than these share them, told apart by their dashes or labels."""

DASHES = ("-", "--", ":", "-.")

_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", PAPER: "--paper"} | {
    colour: f"--s{place}" for place, colour in enumerate(SERIES)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "medley",
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "hatch.color": PAPER,
    "hatch.linewidth": 0.8,
}


@dataclass(frozen=True)
class Plot:
    """A drawn plot.

    Args:
        name: Unique on the page.
        title: What it shows, in a few words.
        description: What a reader sees on it, for who cannot see it.
        svg: The SVG element.
        head: Columns of the figures that it shows, as a table.
        rows: The rows.
    """

    name: str
    title: str
    description: str
    svg: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def colour_of(place: int) -> str:
    """The colour of the series at this place."""
    return SERIES[place % len(SERIES)]


def dashes_of(place: int) -> str:
    """The dashes of the series at this place: plain as long as colours suffice."""
    return DASHES[place // len(SERIES) % len(DASHES)]


def drawn(
    name: str, title: str, description: str, draw: Callable[[Axes], None], *, width_in: float, height_in: float
) -> str:
    """The SVG element of a plot.

    Args:
        name: Unique on the page: all ids begin with it.
        title: The SVG's title.
        description: The SVG's description.
        draw: Draws on the axes that it is given.
        width_in: Width in inches of 72 pixels.
        height_in: Height.
    """
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The browser draws the text, with its own fonts; matplotlib only measures it, and warns of letters it lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        canvas = Canvas(figsize=(width_in, height_in), layout="constrained")
        draw(canvas.add_subplot())
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inlined(buffer.getvalue(), name, title, description)


def _inlined(document: str, name: str, title: str, description: str) -> str:
    """The SVG element of a document, with the page's colours, ids of its own, and a title and description."""
    svg = document[document.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    end = svg.index(">")
    opening = re.sub(r' (width|height|xmlns|xmlns:xlink|version)="[^"]*"', "", svg[:end])
    labels = f'role="img" aria-labelledby="{name}-title {name}-description"'
    told = (
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-description">{html.escape(description)}</desc>'
    )
    return f"{opening} {labels}>{told}{svg[end + 1 :]}".replace("xlink:href", "href").strip()
