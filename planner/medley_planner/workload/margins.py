"""One of a workload's two margins: a histogram of input or of output sizes, as Prometheus exports them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medley_planner.workload.sizes import MAX_TOKENS

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MAX_CELLS = 512
"""Cells of a histogram."""

MAX_WEIGHT = 1e15

_MOST_MOVED = 12.0
_HALVINGS = 60


class MarginalsError(ValueError):
    """Margins that cannot be fitted to; the message starts with the entry and its field."""


@dataclass(frozen=True)
class Margin:
    """A histogram of one of the two sizes.

    Args:
        up_to: Upper edges of its cells in tokens, rising; each cell holds the sizes above the edge before and up to its
            own. The last edge may be infinite: all sizes above the one before.
        weights: Requests in each cell, or any figure in proportion to them.
        mean_tokens: Mean size, where it is known: Prometheus histograms have the sum too. Sizes are then moved within
            their cells until their mean is this one.

    Raises:
        MarginalsError: An edge, a weight or the mean is impossible, or there is no request.
    """

    up_to: tuple[float, ...]
    weights: tuple[float, ...]
    mean_tokens: float | None = None

    def __post_init__(self) -> None:
        if len(self.up_to) != len(self.weights):
            raise MarginalsError(f"there are {len(self.up_to)} edges and {len(self.weights)} weights")
        if not self.up_to:
            raise MarginalsError("there is no cell")
        if len(self.up_to) > MAX_CELLS:
            raise MarginalsError(f"there are {len(self.up_to)} cells, at most {MAX_CELLS} are allowed")
        before = 0.0
        for place, (edge, weight) in enumerate(zip(self.up_to, self.weights, strict=True)):
            last = place == len(self.up_to) - 1
            if not before < edge or not (edge <= MAX_TOKENS or (last and edge == math.inf)):
                raise MarginalsError(f"[{place}].upTo: must be above {before:g} and at most {MAX_TOKENS}, is {edge}")
            if not 0 <= weight <= MAX_WEIGHT:
                raise MarginalsError(f"[{place}].weight: must be between 0 and {MAX_WEIGHT:g}, is {weight}")
            before = edge
        if not any(self.weights):
            raise MarginalsError("all weights are zero")
        if self.mean_tokens is not None:
            self._check_mean(self.mean_tokens)

    def _check_mean(self, mean_tokens: float) -> None:
        least, most = (float(self.shares @ bounds) for bounds in self.bounds())
        if self.up_to[-1] == math.inf and self.weights[-1] > 0:
            most = math.inf
        if not least <= mean_tokens <= most:
            raise MarginalsError(
                f"a mean of {mean_tokens:g} tokens is impossible: by its cells it is between {least:g} and {most:g}"
            )

    @classmethod
    def of_cumulative(cls, counts: Sequence[tuple[float, float]], *, total_tokens: float | None = None) -> Margin:
        """The margin of a Prometheus histogram.

        Args:
            counts: (`le`, requests at most that long) pairs, in any order.
            total_tokens: Its sum.

        Raises:
            MarginalsError: Counts fall as edges rise, or an edge is there twice.
        """
        ordered = sorted(counts)
        weights: list[float] = []
        before = 0.0
        for place, (edge, count) in enumerate(ordered):
            if place and edge == ordered[place - 1][0]:
                raise MarginalsError(f"the edge {edge:g} is there twice")
            if count < before:
                raise MarginalsError(f"{count:g} requests are at most {edge:g} long, but {before:g} are shorter")
            weights.append(count - before)
            before = count
        cells = [(edge, weight) for (edge, _), weight in zip(ordered, weights, strict=True)]
        if cells and cells[-1][0] == math.inf and cells[-1][1] == 0:
            cells.pop()
        mean = None if total_tokens is None or not before > 0 else total_tokens / before
        return cls(tuple(edge for edge, _ in cells), tuple(weight for _, weight in cells), mean)

    @property
    def requests(self) -> float:
        """Sum of the weights."""
        return math.fsum(self.weights)

    @property
    def shares(self) -> FloatArray:
        """Share of each cell."""
        return np.asarray(self.weights) / self.requests

    def cells(self, tokens: IntArray) -> IntArray:
        """The cell of each size; sizes beyond the last edge are in the last cell."""
        return np.minimum(np.searchsorted(self.up_to, tokens, side="left"), len(self.up_to) - 1).astype(np.int64)

    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """The smallest and the largest whole size of each cell; that of an unbounded one is twice its smallest."""
        high = np.floor(np.asarray(self.up_to))
        low = np.append(1.0, high[:-1] + 1)
        high = np.where(np.isfinite(high), high, np.minimum(2 * low, MAX_TOKENS))
        return np.minimum(low, high), high

    def moved(self, sizes: FloatArray, cells: IntArray, weights: FloatArray) -> IntArray:
        """Whole sizes within their cells, whose mean is `mean_tokens` where it is known.

        A size at the share u of its cell's logarithmic width moves to u^k, with the same k for all: k below 1 makes
        all sizes longer, k above 1 shorter, and none leaves its cell.

        Args:
            sizes: Sizes, each in its cell or beyond the last edge.
            cells: Their cells.
            weights: Their shares; they add up to 1.
        """
        low, high = (bounds[cells] for bounds in self.bounds())
        width = np.log(high / low)
        share = np.clip(np.log(np.clip(sizes, low, high) / low) / np.where(width > 0, width, 1.0), 1e-6, 1 - 1e-6)

        def at(exponent: float) -> FloatArray:
            return np.asarray(low * np.exp(width * share ** np.exp(exponent)))

        if self.mean_tokens is None:
            return np.round(np.clip(sizes, low, high)).astype(np.int64)
        shorter, longer = _MOST_MOVED, -_MOST_MOVED
        for _ in range(_HALVINGS):
            middle = (shorter + longer) / 2
            if weights @ at(middle) > self.mean_tokens:
                longer = middle
            else:
                shorter = middle
        return np.round(at((shorter + longer) / 2)).astype(np.int64)
