"""What a simulation showed: latencies against objectives, how busy replicas were, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medley_planner.fleet import Objectives, Variant
from medley_planner.simulator.book import Book, Fate
from medley_planner.simulator.gauges import Reading
from medley_planner.simulator.stage import Instance
from medley_planner.simulator.timeline import Timeline, timeline

FloatArray = npt.NDArray[np.float64]

TIME_TO_FIRST_TOKEN = "timeToFirstToken"  # noqa: S105 - no password
TIME_PER_OUTPUT_TOKEN = "timePerOutputToken"  # noqa: S105 - no password

_SECONDS_PER_HOUR = 3600.0
_FIELD = {name: place for place, name in enumerate(Reading._fields)}


@dataclass(frozen=True)
class Distribution:
    """How a latency spreads over requests, in seconds; NaN where there is none."""

    count: int
    mean_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    max_s: float

    @classmethod
    def of(cls, latency_s: FloatArray) -> Distribution:
        """Of these latencies. A percentile is the smallest latency that so many per cent do not exceed."""
        if not len(latency_s):
            return cls(0, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan)
        p50, p90, p95, p99 = np.percentile(latency_s, (50, 90, 95, 99), method="inverted_cdf").tolist()
        return cls(len(latency_s), float(latency_s.mean()), p50, p90, p95, p99, float(latency_s.max()))


@dataclass(frozen=True)
class Attainment:
    """One objective, and what came of it.

    Args:
        objective: `timeToFirstToken` or `timePerOutputToken`.
        limit_s: The objective.
        percentile: Share of the requests that must keep it, in per cent; None is the mean.
        measured_s: That percentile, or the mean; infinite where so many were not served at all.
        within_percent: Share of the requests that kept the limit; those not served did not.
        attained: Whether the objective was kept.
    """

    objective: str
    limit_s: float
    percentile: float | None
    measured_s: float
    within_percent: float
    attained: bool


@dataclass(frozen=True)
class VariantMeasures:
    """The replicas of a variant.

    Args:
        variant: The variant.
        replicas: How many there were at most at once.
        replica_hours: Time that was paid for.
        cost_usd: For it.
        requests: Requests that they served (or computed the prompts of).
        time_to_first_token: Of those, where they came to their first token.
        time_per_output_token: Of those with two tokens or more.
        busy_share: Share of the time in which they computed anything.
        running_requests: Requests that a replica computed at once, on average over all time.
        cache_share: Share of the cache that was taken, on average over all time.
        cache_peak_share: Largest share of any replica's cache that was taken.
        preemptions: How often a request was put back because a cache was full.
    """

    variant: Variant
    replicas: int
    replica_hours: float
    cost_usd: float
    requests: int
    time_to_first_token: Distribution
    time_per_output_token: Distribution
    busy_share: float
    running_requests: float
    cache_share: float
    cache_peak_share: float
    preemptions: int


@dataclass(frozen=True)
class ServiceMeasures:
    """A simulated service.

    Args:
        name: The service.
        horizon_s: From the beginning to the end of arrivals; costs and shares of time are over this, latencies are of
            all requests, those that ended later included.
        requests: That arrived.
        served: Of them.
        rejected: Refused, or never given to a replica.
        lost: On a replica that went away.
        preemptions: How often one was put back because a cache was full.
        input_tokens: Of those served.
        output_tokens: Of those served.
        wait: From arrival to the first step.
        time_to_first_token: From arrival to the first token.
        time_per_output_token: Between tokens after the first, on average over a request's.
        end_to_end: From arrival to the last token.
        objectives: What came of each.
        variants: By variant.
        cost_usd: Of all replicas over the horizon.
        timeline: What happened when.
    """

    name: str
    horizon_s: float
    requests: int
    served: int
    rejected: int
    lost: int
    preemptions: int
    input_tokens: int
    output_tokens: int
    wait: Distribution
    time_to_first_token: Distribution
    time_per_output_token: Distribution
    end_to_end: Distribution
    objectives: tuple[Attainment, ...]
    variants: tuple[VariantMeasures, ...]
    cost_usd: float
    timeline: Timeline

    @property
    def attained(self) -> bool:
        """Whether every objective was kept, and every request served where an objective is a mean."""
        return all(each.attained for each in self.objectives) and (
            bool(self.objectives) or self.served == self.requests
        )

    @property
    def cost_usd_per_hour(self) -> float:
        """Price of the replicas, on average over the horizon."""
        return self.cost_usd / self.horizon_s * _SECONDS_PER_HOUR if self.horizon_s > 0 else math.nan

    @property
    def usd_per_million_tokens(self) -> float:
        """Cost of a million tokens, input and output, of requests that were served; NaN where none was."""
        tokens = self.input_tokens + self.output_tokens
        return self.cost_usd / tokens * 1e6 if tokens else math.nan

    @property
    def usd_per_million_output_tokens(self) -> float:
        """Cost of a million output tokens; NaN where there was none."""
        return self.cost_usd / self.output_tokens * 1e6 if self.output_tokens else math.nan


@dataclass(frozen=True)
class Latencies:
    """Latencies of every request of a book, NaN where it has none; arrays of one length."""

    wait_s: FloatArray
    first_token_s: FloatArray
    per_token_s: FloatArray
    end_to_end_s: FloatArray

    @classmethod
    def of(cls, book: Book) -> Latencies:
        """Of a finished book."""
        arrived, admitted = np.array(book.arrived_s), np.array(book.admitted_s)
        first, finished = np.array(book.first_token_s), np.array(book.finished_s)
        served = np.array(book.fate, dtype=np.int64) == Fate.SERVED
        later = np.array(book.outputs, dtype=np.float64) - 1
        per_token = np.where(later > 0, (finished - first) / np.maximum(later, 1), np.nan)
        waits = (admitted - arrived, first - arrived, per_token, finished - arrived)
        return cls(*(np.where(served, wait, np.nan) for wait in waits))


def attainments(book: Book, latencies: Latencies, objectives: Objectives) -> tuple[Attainment, ...]:
    """What came of each objective."""
    unserved = sum(fate != Fate.SERVED for fate in book.fate)
    found = []
    for name, limit_s, percentile, latency_s in (
        (
            TIME_TO_FIRST_TOKEN,
            objectives.time_to_first_token_s,
            objectives.time_to_first_token_percentile,
            latencies.first_token_s,
        ),
        (
            TIME_PER_OUTPUT_TOKEN,
            objectives.time_per_output_token_s,
            objectives.time_per_output_token_percentile,
            latencies.per_token_s,
        ),
    ):
        if limit_s is not None:
            there = latency_s[np.isfinite(latency_s)]
            found.append(_attainment(name, limit_s, percentile, there, unserved))
    return tuple(found)


def _attainment(
    name: str, limit_s: float, percentile: float | None, latency_s: FloatArray, unserved: int
) -> Attainment:
    total = len(latency_s) + unserved
    within = int(np.count_nonzero(latency_s <= limit_s))
    share = 100.0 * within / total if total else 100.0
    if percentile is None:
        measured_s = float(latency_s.mean()) if len(latency_s) else (math.inf if unserved else 0.0)
        return Attainment(name, limit_s, None, measured_s, share, measured_s <= limit_s and unserved == 0)
    ordered = np.sort(latency_s)
    place = max(0, math.ceil(total * percentile / 100 - 1e-9) - 1)
    measured_s = float(ordered[place]) if place < len(ordered) else (math.inf if total else 0.0)
    return Attainment(name, limit_s, percentile, measured_s, share, measured_s <= limit_s)


def measured(
    name: str,
    book: Book,
    instances: Sequence[Instance],
    objectives: Objectives,
    *,
    horizon_s: float,
    bin_s: float,
) -> ServiceMeasures:
    """The measures of a finished run.

    Args:
        name: The service.
        book: Its requests.
        instances: Its replicas.
        objectives: What was to be kept.
        horizon_s: Until when replicas are paid for and times are shared out.
        bin_s: Interval of the timeline.
    """
    latencies = Latencies.of(book)
    fates = np.array(book.fate, dtype=np.int64)
    served = fates == Fate.SERVED
    variants = _variants(book, latencies, instances, horizon_s)
    return ServiceMeasures(
        name=name,
        horizon_s=horizon_s,
        requests=len(book),
        served=int(served.sum()),
        rejected=int((fates == Fate.REJECTED).sum()),
        lost=int((fates == Fate.LOST).sum()),
        preemptions=sum(book.preemptions.values()),
        input_tokens=int(np.array(book.inputs, dtype=np.int64)[served].sum()),
        output_tokens=int(np.array(book.outputs, dtype=np.int64)[served].sum()),
        wait=Distribution.of(_there(latencies.wait_s)),
        time_to_first_token=Distribution.of(_there(latencies.first_token_s)),
        time_per_output_token=Distribution.of(_there(latencies.per_token_s)),
        end_to_end=Distribution.of(_there(latencies.end_to_end_s)),
        objectives=attainments(book, latencies, objectives),
        variants=variants,
        cost_usd=math.fsum(variant.cost_usd for variant in variants),
        timeline=timeline(book, latencies.first_token_s, instances, horizon_s=horizon_s, bin_s=bin_s),
    )


def _there(latency_s: FloatArray) -> FloatArray:
    return latency_s[np.isfinite(latency_s)]


def _variants(
    book: Book, latencies: Latencies, instances: Sequence[Instance], horizon_s: float
) -> tuple[VariantMeasures, ...]:
    replica, prefill_replica = np.array(book.replica), np.array(book.prefill_replica)
    by_variant: dict[Variant, list[Instance]] = {}
    for instance in instances:
        by_variant.setdefault(instance.kind.variant, []).append(instance)
    found = []
    for variant, group in sorted(by_variant.items()):
        numbers = [instance.number for instance in group]
        touched = np.isin(replica, numbers) | np.isin(prefill_replica, numbers)
        served = touched & np.isfinite(latencies.end_to_end_s)
        paid_s = math.fsum(each.paid_s(horizon_s) for each in group)
        used = sum(unit.gauges.at(np.array([0.0, horizon_s]))[1] for each in group for unit in each.units)
        units = group[0].kind.units
        blocks = group[0].kind.limits.blocks
        held_s = max(paid_s, 1e-300)
        found.append(
            VariantMeasures(
                variant=variant,
                replicas=_most_at_once(group),
                replica_hours=paid_s / _SECONDS_PER_HOUR,
                cost_usd=paid_s / _SECONDS_PER_HOUR * group[0].kind.price_usd_per_hour,
                requests=int(served.sum()),
                time_to_first_token=Distribution.of(_there(latencies.first_token_s[touched])),
                time_per_output_token=Distribution.of(_there(latencies.per_token_s[touched])),
                busy_share=float(used[_FIELD["busy_s"]]) / units / held_s,
                running_requests=float(used[_FIELD["sequence_s"]]) / held_s,
                cache_share=float(used[_FIELD["block_s"]]) / units / blocks / held_s,
                cache_peak_share=max(unit.gauges.most_blocks for each in group for unit in each.units) / blocks,
                preemptions=sum(
                    times for request, times in book.preemptions.items() if book.replica[request] in set(numbers)
                ),
            )
        )
    return tuple(found)


def _most_at_once(group: Sequence[Instance]) -> int:
    changes = sorted(
        [(each.ready_s, 1) for each in group] + [(each.gone_s, -1) for each in group if each.gone_s < math.inf]
    )
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most
