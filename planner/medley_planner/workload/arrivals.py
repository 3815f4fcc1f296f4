"""How requests arrive: the mean rate, and how bursty they are.

Two figures tell of burstiness. The coefficient of variation of the times between arrivals (1 for Poisson arrivals) is
what queueing formulas take. The index of dispersion of counts, variance over mean of the arrivals in windows of a given
length (again 1 for Poisson), also sees bursts that last: for a renewal process it tends to the square of the former as
windows grow (Cox and Lewis, The Statistical Analysis of Series of Events, 1966).

Some publishers round timestamps to a grid. Where several requests fall on a tick, the times between arrivals are those
of the grid, and their variation says nothing; counts over windows of many whole ticks still do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

WINDOWS_S = (1.0, 10.0, 60.0)
"""Lengths of windows over which arrivals are counted."""

REQUESTS_PER_TICK = 1.2
"""From so many requests per occupied tick of a grid, times between arrivals are an artefact of the grid."""

JITTER = 0.02
"""Ticks may be off the grid by this share of its step: some publishers round, then add what a clock adds."""

ON_GRID = 0.95
"""Share of the ticks that must lie on the grid."""

TICKS_PER_WINDOW = 5
"""A window is counted over where it has at least so many ticks."""

BUSY_WINDOW_S = 20.0
"""Length of the windows by which busy times are told from calm ones: longer than most answers, shorter than it takes to
load a replica."""

MIN_WINDOWS = 20
"""Fewer windows than these give no variance to speak of."""

_TICKS_PER_S = 1_000_000


@dataclass(frozen=True)
class Arrivals:
    """How the requests of a trace arrive; a figure is None where the trace gives none.

    Args:
        rate_rps: Mean arrivals per second.
        gap_cv: Standard deviation of times between arrivals over their mean, grid or not.
        grid_s: Step of the grid on which timestamps lie, where several requests share a tick; else None.
        dispersion: Variance over mean of the arrivals in windows, by the window's length in seconds.
    """

    rate_rps: float | None
    gap_cv: float | None
    grid_s: float | None
    dispersion: tuple[tuple[float, float], ...]

    @property
    def interarrival_cv(self) -> float | None:
        """The coefficient of variation to plan with.

        That of the gaps; on a grid, the root of the dispersion in the shortest window that the grid allows.
        """
        if self.grid_s is None:
            return self.gap_cv
        return math.sqrt(self.dispersion[0][1]) if self.dispersion else None


def arrivals(arrivals_s: Sequence[float] | FloatArray) -> Arrivals:
    """The statistics of arrivals, in seconds after any moment, rising; at least one."""
    times = np.asarray(arrivals_s, dtype=np.float64)
    span_s = float(times[-1] - times[0])
    if span_s <= 0:
        return Arrivals(None, None, None, ())
    rate_rps = (len(times) - 1) / span_s
    gaps = np.diff(times)
    grid_s = _grid(times - times[0])
    since_s = times - times[0] + (grid_s or 0.0) / 2
    windows = [length for length in _windows(grid_s) if span_s / length >= MIN_WINDOWS]
    dispersion = tuple((length, _dispersion(since_s, length)) for length in windows)
    return Arrivals(rate_rps, float(gaps.std() / gaps.mean()), grid_s, dispersion)


def busy_rate_rps(arrivals_s: FloatArray, window_s: float, percent: float) -> float:
    """The arrival rate of busy times: so many per cent of the requests come in windows whose rate is no higher.

    Counted by requests, not by windows: it is in busy windows that most requests find themselves.

    Args:
        arrivals_s: Arrivals in seconds, at least 0.
        window_s: Length of a window.
        percent: Share of the requests, above 0 and below 100.
    """
    _, window, counts = np.unique(np.asarray(arrivals_s) // window_s, return_inverse=True, return_counts=True)
    return float(np.percentile(counts[window], percent, method="inverted_cdf")) / window_s


def _windows(grid_s: float | None) -> tuple[float, ...]:
    """Lengths of windows; on a grid, those that are long enough, rounded to whole ticks."""
    if grid_s is None:
        return WINDOWS_S
    ticks = [round(length / grid_s) for length in WINDOWS_S]
    return tuple(count * grid_s for count in ticks if count >= TICKS_PER_WINDOW)


def _grid(times_s: FloatArray) -> float | None:
    """The step of the grid on which the times lie, where many share a tick; else None.

    Most ticks of a grid that is worth the name follow the one before, so that a short gap is the step.
    """
    ticks = np.unique(np.round(times_s * _TICKS_PER_S)) / _TICKS_PER_S
    if len(ticks) < MIN_WINDOWS or len(times_s) / len(ticks) < REQUESTS_PER_TICK:
        return None
    gaps = np.diff(ticks)
    step_s = float(np.percentile(gaps, 10))
    steps = np.round(gaps / step_s)
    on_grid = np.abs(gaps - steps * step_s) <= JITTER * step_s
    if on_grid.mean() < ON_GRID:
        return None
    return float(gaps[on_grid].sum() / steps[on_grid].sum())


def _dispersion(times_s: FloatArray, window_s: float) -> float:
    """Variance over mean of the counts in all whole windows."""
    windows = int(times_s[-1] // window_s)
    counts = np.bincount((times_s[times_s < windows * window_s] // window_s).astype(np.int64), minlength=windows)
    return float(counts.var() / counts.mean()) if counts.any() else 0.0
