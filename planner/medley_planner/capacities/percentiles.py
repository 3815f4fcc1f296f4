"""From means to percentiles: how far a batch fluctuates, and how long a prompt waits for those before it.

Formulae and their sources: docs/formulation-capacity.md, "Percentiles".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from medley_planner.workload.sizes import SizeHistogram

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PromptMix:
    """The prompts that a replica gets, as far as waiting for them depends on it.

    Args:
        mean_tokens: Mean size.
        squared_cv: Variance of their sizes over the square of the mean; 0 for prompts of one size.
    """

    mean_tokens: float
    squared_cv: float

    @classmethod
    def of(cls, sizes: SizeHistogram) -> PromptMix:
        """The prompts of a service."""
        mean = sizes.mean_input_tokens
        return cls(mean, max(0.0, sizes.squared_input_tokens / mean**2 - 1))


UNKNOWN_SQUARED_CV = 1.0
"""Where only one size is known of the prompts: they are taken to vary around it as exponential ones."""

_LOADS: FloatArray = np.append(np.geomspace(1e-4, 0.95, 2000), 1 - 0.05 * np.exp2(-np.arange(1, 32 * 32) / 32))
"""Loads of up to 1 − 10⁻¹¹, closer to each other towards 0 and towards 1."""


def deviations(percentile: float | None) -> float:
    """Standard deviations above the mean at which a normal distribution's percentile lies.

    At least 0: a percentile below the 50th asks for no more than the mean. None is the mean.
    """
    return 0.0 if percentile is None else max(0.0, NormalDist().inv_cdf(percentile / 100))


def count_at(mean: FloatArray, percentile: float | None) -> FloatArray:
    """The percentile of a Poisson count with this mean, by its normal approximation: m + z·√m."""
    return np.asarray(mean + deviations(percentile) * np.sqrt(mean))


def mean_within(count: FloatArray, percentile: float | None) -> FloatArray:
    """The largest mean whose percentile is at most `count`: the inverse of `count_at`."""
    z = deviations(percentile)
    return np.asarray(((np.sqrt(z * z + 4 * count) - z) / 2) ** 2)


def waiting_services(load: FloatArray, percentile: float | None, squared_cv: float = UNKNOWN_SQUARED_CV) -> FloatArray:
    """How long a prompt waits in a queue with one server, in mean service times; infinite from a load of 1 on.

    With Poisson arrivals the mean is Pollaczek's and Khinchine's, ρ·(1 + c²) / 2(1 − ρ). The tail is taken as
    exponential with the slope of heavy traffic, P(W > t) = ρ·exp(−2(1 − ρ)t / (1 + c²)), exact for exponential service.
    """
    spread = (1 + squared_cv) / 2
    busy = np.clip(load, 0.0, None)
    idle = np.maximum(1 - busy, 0.0)
    if percentile is None:
        wait = spread * busy
    else:
        over = busy / (1 - percentile / 100)
        wait = spread * np.log(np.maximum(over, 1.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        waiting = np.where(wait > 0, wait / idle, 0.0)
    return np.asarray(waiting)


def largest_load(services: FloatArray, percentile: float | None, squared_cv: float = UNKNOWN_SQUARED_CV) -> FloatArray:
    """The largest load at which a prompt waits for at most so many mean service times; 0 where that is negative."""
    # At a percentile nobody waits up to this load.
    free = 0.0 if percentile is None else 1 - percentile / 100
    loads = np.append(free, _LOADS[free < _LOADS])
    load = np.interp(services, waiting_services(loads, percentile, squared_cv), loads)
    return np.asarray(np.where(services < 0, 0.0, load))


def is_percentile(percentile: float) -> bool:
    """Whether this is a percentile that can be asked for: above 0 and below 100."""
    return math.isfinite(percentile) and 0 < percentile < 100
