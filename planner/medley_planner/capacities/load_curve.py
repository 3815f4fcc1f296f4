"""Measured latencies of one replica at one request size over the rate of requests."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from medley_planner.capacities.latency import Latency
from medley_planner.catalogue.models import ThroughputPoint
from medley_planner.fleet import Objectives


@dataclass(frozen=True)
class LoadCurve:
    """Latencies of one replica at one request size over the rate of requests, each at least that of every lower rate.

    Measurements are noisy: where a higher rate was measured with a lower latency, the earlier, worse figure is kept,
    so that the rate within an objective is well defined and errs to the safe side.

    Args:
        rates_rps: Measured rates, rising.
        time_per_output_token_s: Mean times per output token at these rates.
        time_to_first_token_s: Mean times to the first token at these rates.
    """

    rates_rps: tuple[float, ...]
    time_per_output_token_s: tuple[float, ...]
    time_to_first_token_s: tuple[float, ...]

    @classmethod
    def of(cls, points: Sequence[ThroughputPoint]) -> LoadCurve:
        """The curve through points of one size; of points with the same rate the worst latencies count."""
        ordered = sorted(points, key=lambda point: point.requests_per_second)
        per_token = itertools.accumulate((point.time_per_output_token_s for point in ordered), max)
        first_token = itertools.accumulate((point.time_to_first_token_s for point in ordered), max)
        by_rate = {
            point.requests_per_second: latencies
            for point, latencies in zip(ordered, zip(per_token, first_token, strict=True), strict=True)
        }
        return cls(
            rates_rps=tuple(by_rate),
            time_per_output_token_s=tuple(latencies[0] for latencies in by_rate.values()),
            time_to_first_token_s=tuple(latencies[1] for latencies in by_rate.values()),
        )

    def rate_within(self, objectives: Objectives) -> float:
        """The largest rate within both objectives, at most the last measured; 0 where the first already misses one."""
        return min(
            self._rate_within(self.time_per_output_token_s, objectives.time_per_output_token_s),
            self._rate_within(self.time_to_first_token_s, objectives.time_to_first_token_s),
        )

    def residence_s(self, rate_rps: float, output_tokens: int) -> float:
        """Mean time that a request of so many output tokens is in the replica at a rate, linear between points."""
        first_token_s = _linear(rate_rps, self.rates_rps, self.time_to_first_token_s)
        per_token_s = _linear(rate_rps, self.rates_rps, self.time_per_output_token_s)
        return first_token_s + (output_tokens - 1) * per_token_s

    @property
    def lightest(self) -> Latency:
        """The latencies at the lowest measured rate."""
        return Latency(self.time_per_output_token_s[0], self.time_to_first_token_s[0])

    def _rate_within(self, latencies_s: tuple[float, ...], objective_s: float | None) -> float:
        if objective_s is None or latencies_s[-1] <= objective_s:
            return self.rates_rps[-1]
        over = next(place for place, latency_s in enumerate(latencies_s) if latency_s > objective_s)
        if over == 0:
            return 0.0
        share = (objective_s - latencies_s[over - 1]) / (latencies_s[over] - latencies_s[over - 1])
        return self.rates_rps[over - 1] + share * (self.rates_rps[over] - self.rates_rps[over - 1])


def _linear(at: float, places: Sequence[float], values: Sequence[float]) -> float:
    """The value at a place, linear between the given ones and constant beyond."""
    above = bisect.bisect_left(places, at)
    if above == 0:
        return values[0]
    if above == len(places):
        return values[-1]
    share = (at - places[above - 1]) / (places[above] - places[above - 1])
    return values[above - 1] + share * (values[above] - values[above - 1])
