"""Requests to simulate: from a trace, scaled to a rate, or drawn at random with sizes from a histogram."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medley_planner.workload.sizes import SizeHistogram
from medley_planner.workload.traces import Trace

MAX_REQUESTS = 5_000_000
"""Most requests of a service in one simulation: about 2 GB."""


class RequestsError(ValueError):
    """No such requests can be made; the message says why."""


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests in order of arrival; the three arrays have the same length.

    Args:
        arrivals_s: When each arrives, in seconds, not falling.
        input_tokens: Tokens of each prompt, at least 1.
        output_tokens: Tokens of each answer, at least 1.

    Raises:
        RequestsError: The arrays do not fit together, or a value is impossible.
    """

    arrivals_s: npt.NDArray[np.float64]
    input_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.arrivals_s) == len(self.input_tokens) == len(self.output_tokens):
            raise RequestsError("arrivals and sizes differ in number")
        if len(self.arrivals_s) > MAX_REQUESTS:
            raise RequestsError(
                f"{len(self.arrivals_s)} requests are more than the {MAX_REQUESTS} that can be simulated"
            )
        if not np.all(np.isfinite(self.arrivals_s)) or np.any(np.diff(self.arrivals_s) < 0):
            raise RequestsError("arrivals must be finite and in order")
        if len(self) and (self.arrivals_s[0] < 0 or min(self.input_tokens.min(), self.output_tokens.min()) < 1):
            raise RequestsError("arrivals must be at least 0, sizes at least 1")

    def __len__(self) -> int:
        return len(self.arrivals_s)

    @property
    def span_s(self) -> float:
        """From time 0 to the last arrival; 0 where there is none."""
        return float(self.arrivals_s[-1]) if len(self) else 0.0

    @property
    def interarrival_cv(self) -> float:
        """Standard deviation of times between arrivals over their mean; NaN where there are too few."""
        gaps = np.diff(self.arrivals_s)
        return float(gaps.std() / gaps.mean()) if len(gaps) and gaps.mean() > 0 else math.nan

    def until(self, duration_s: float) -> Requests:
        """Those that arrive before this time."""
        count = int(np.searchsorted(self.arrivals_s, duration_s, side="left"))
        return Requests(self.arrivals_s[:count], self.input_tokens[:count], self.output_tokens[:count])

    @classmethod
    def of_trace(
        cls,
        trace: Trace,
        *,
        rate_rps: float | None = None,
        duration_s: float | None = None,
        rng: np.random.Generator | None = None,
    ) -> Requests:
        """A trace at another speed: times are stretched, so that bursts keep their shape relative to the mean rate.

        Args:
            trace: The trace.
            rate_rps: Mean rate to stretch it to; None keeps its times.
            duration_s: Where the trace ends earlier it begins again; None is once through it.
            rng: Where timestamps lie on a grid (`Arrivals.grid_s`), each arrival is moved to a random place within its
                step, as all of a step would come at one moment otherwise; None leaves them where they are.

        Raises:
            RequestsError: The trace has no rate, or there are too many requests.
        """
        arrivals = trace.arrivals_s
        grid_s = trace.arrivals.grid_s or 0.0
        if rng is not None and grid_s > 0:
            arrivals = arrivals + rng.uniform(0.0, grid_s, len(arrivals))
        order = np.argsort(arrivals, kind="stable")
        period_s = trace.span_s + (grid_s or (1 / trace.rate_rps if trace.span_s > 0 else 0.0))
        if rate_rps is not None:
            if not trace.span_s > 0:
                raise RequestsError("all requests of the trace arrive at once, so it has no rate to scale")
            factor = len(trace) / period_s / rate_rps
            arrivals, period_s = arrivals * factor, period_s * factor
        arrivals, inputs, outputs = arrivals[order], trace.input_tokens[order], trace.output_tokens[order]
        if duration_s is None:
            return cls(arrivals, inputs, outputs)
        rounds = max(1, math.ceil(duration_s / period_s)) if period_s > 0 else 1
        _check_number(len(trace) * max(duration_s / period_s, 1.0) if period_s > 0 else len(trace))
        starts = np.repeat(np.arange(rounds) * period_s, len(trace))
        repeated = np.tile(arrivals, rounds) + starts
        return cls(repeated, np.tile(inputs, rounds), np.tile(outputs, rounds)).until(duration_s)

    @classmethod
    def drawn(
        cls,
        sizes: SizeHistogram,
        *,
        rate_rps: float,
        duration_s: float,
        rng: np.random.Generator,
        interarrival_cv: float = 1.0,
    ) -> Requests:
        """Independent times between arrivals, gamma distributed, and sizes drawn from a histogram.

        Args:
            sizes: The histogram.
            rate_rps: Mean arrivals per second; 0 gives none.
            duration_s: For so long.
            rng: Draws.
            interarrival_cv: Standard deviation of times between arrivals over their mean; 1 is a Poisson process, 0 a
                clock.

        Raises:
            RequestsError: There would be too many requests, or a figure is impossible.
        """
        for name, value in (("rate", rate_rps), ("duration", duration_s), ("interarrival CV", interarrival_cv)):
            if not math.isfinite(value) or value < 0:
                raise RequestsError(f"the {name} must be finite and at least 0, is {value}")
        _check_number(rate_rps * duration_s)
        arrivals = _arrivals(rate_rps, duration_s, interarrival_cv, rng)
        weights = np.array([bucket.weight for bucket in sizes.buckets])
        chosen = rng.choice(len(weights), size=len(arrivals), p=weights / weights.sum())
        inputs = np.array([bucket.input_tokens for bucket in sizes.buckets], dtype=np.int64)
        outputs = np.array([bucket.output_tokens for bucket in sizes.buckets], dtype=np.int64)
        return cls(arrivals, inputs[chosen], outputs[chosen])


def _check_number(requests: float) -> None:
    if requests > MAX_REQUESTS:
        raise RequestsError(f"about {requests:.0f} requests are more than the {MAX_REQUESTS} that can be simulated")


def _arrivals(rate_rps: float, duration_s: float, cv: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    if rate_rps == 0 or duration_s == 0:
        return np.zeros(0)
    if cv == 0:
        return np.arange(0.0, duration_s, 1 / rate_rps)
    shape = 1 / cv**2
    parts: list[npt.NDArray[np.float64]] = []
    now_s, drawn = 0.0, 0
    while now_s < duration_s:
        count = int(rate_rps * duration_s / 4) + 1000
        drawn += count
        _check_number(drawn / 4)
        parts.append(now_s + np.cumsum(rng.gamma(shape, 1 / (shape * rate_rps), count)))
        now_s = float(parts[-1][-1])
    arrivals = np.concatenate(parts)
    return arrivals[arrivals < duration_s]
