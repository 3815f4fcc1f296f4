"""What happened when, in intervals of equal length; a latency goes to the interval in which its request arrived."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medley_planner.simulator.book import Book
from medley_planner.simulator.gauges import Reading
from medley_planner.simulator.stage import Instance

FloatArray = npt.NDArray[np.float64]

_BUSY, _CACHE = Reading._fields.index("busy_s"), Reading._fields.index("block_s")


@dataclass(frozen=True, eq=False)
class Timeline:
    """Series over intervals; all arrays have one entry for each.

    Args:
        begins_s: When each interval begins.
        bin_s: Its length.
        arrivals_rps: Arrivals.
        finished_rps: Requests that ended, served.
        waiting: Requests that have arrived and not begun, on average.
        in_system: Requests that have arrived and not ended, on average.
        replicas: Replicas that are ready and not drained, on average.
        busy_share: Share of the time of those in which they computed.
        cache_share: Share of their caches that was taken.
        first_token_p95_s: 95th percentile of the time to the first token of those that arrived; NaN where none did.
        usd_per_hour: What is paid for.
    """

    begins_s: FloatArray
    bin_s: float
    arrivals_rps: FloatArray
    finished_rps: FloatArray
    waiting: FloatArray
    in_system: FloatArray
    replicas: FloatArray
    busy_share: FloatArray
    cache_share: FloatArray
    first_token_p95_s: FloatArray
    usd_per_hour: FloatArray


def timeline(
    book: Book, first_token_s: FloatArray, instances: Sequence[Instance], *, horizon_s: float, bin_s: float
) -> Timeline:
    """The timeline of a finished run over [0, horizon_s)."""
    bins = max(1, math.ceil(horizon_s / bin_s - 1e-9)) if horizon_s > 0 and math.isfinite(bin_s) else 1
    width_s = bin_s if math.isfinite(bin_s) and horizon_s > 0 else max(horizon_s, 1e-9)
    edges: FloatArray = np.arange(bins + 1, dtype=np.float64) * width_s
    arrived = np.array(book.arrived_s)
    begun = np.array(book.admitted_s)
    finished = np.array(book.finished_s)
    gone = np.isnan(finished)
    begun = np.where(np.isnan(begun), arrived, begun)
    ended = np.where(gone, begun, finished)
    ready = _in_life([(each.ready_s, each.drained_s) for each in instances], edges)
    computing = np.zeros((bins, 2))
    capacity_s = np.zeros(bins)
    blocks_s = np.zeros(bins)
    paid = np.zeros(bins)
    for each in instances:
        alive = _in_life([(each.ready_s, each.gone_s)], edges) * width_s
        capacity_s += alive * each.kind.units
        blocks_s += alive * each.kind.units * each.kind.limits.blocks
        paid += _in_life([(each.asked_s, each.gone_s)], edges) * each.kind.price_usd_per_hour
        for unit in each.units:
            computing += np.diff(unit.gauges.at(edges), axis=0)[:, (_BUSY, _CACHE)]
    return Timeline(
        begins_s=edges[:-1],
        bin_s=width_s,
        arrivals_rps=_counts(arrived, edges) / width_s,
        finished_rps=_counts(finished[~gone], edges) / width_s,
        waiting=_present(arrived, begun, edges) / width_s,
        in_system=_present(arrived, ended, edges) / width_s,
        replicas=ready,
        busy_share=_ratio(computing[:, 0], capacity_s),
        cache_share=_ratio(computing[:, 1], blocks_s),
        first_token_p95_s=_percentile(arrived, first_token_s, edges, 95.0),
        usd_per_hour=paid,
    )


def _counts(times: FloatArray, edges: FloatArray) -> FloatArray:
    return np.histogram(times, bins=edges)[0].astype(np.float64)


def _present(begins: FloatArray, ends: FloatArray, edges: FloatArray) -> FloatArray:
    """∫ number of requests that have begun and not ended dt over each interval."""
    return np.diff(_since(begins, edges) - _since(ends, edges))


def _since(times: FloatArray, edges: FloatArray) -> FloatArray:
    """Σ max(0, edge − time) for each edge."""
    ordered = np.sort(times)
    before = np.searchsorted(ordered, edges, side="right")
    total = np.concatenate([[0.0], np.cumsum(ordered)])
    return np.asarray(before * edges - total[before])


def _in_life(lives: Sequence[tuple[float, float]], edges: FloatArray) -> FloatArray:
    """How many of these lives, from and to, there are in each interval, on average."""
    total = np.zeros(len(edges) - 1)
    for begin, end in lives:
        total += np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], begin), 0.0, None)
    return total / np.diff(edges)


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), 0.0)


def _percentile(arrived: FloatArray, latency_s: FloatArray, edges: FloatArray, percent: float) -> FloatArray:
    there = np.isfinite(latency_s)
    places = np.searchsorted(edges, arrived[there], side="right") - 1
    values = latency_s[there]
    order = np.argsort(places, kind="stable")
    found = np.full(len(edges) - 1, np.nan)
    bounds = np.searchsorted(places[order], np.arange(len(edges)))
    for index in range(len(edges) - 1):
        part = values[order[bounds[index] : bounds[index + 1]]]
        if len(part):
            found[index] = np.percentile(part, percent)
    return found
