"""From many requests to a small joint histogram of their sizes, with the same number of tokens.

Lengths spread over orders of magnitude, so bucket edges are equally far apart in logarithms, between the shortest and
the longest request. A bucket stands for its requests by their mean sizes; rounding them to whole tokens would lose or
add up to half a token per request, so what one bucket's rounding adds, the next ones take away.

What is lost by planning with means can be bounded: `corners_of` lets every bucket stand for its requests by the
smallest and by the largest of their sizes. Where a longer request never takes less capacity, planning for every single
request costs something between the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medley_planner.workload.sizes import Bucket, SizeHistogram
from medley_planner.workload.traces import Trace

IntArray = npt.NDArray[np.int64]

DEFAULT_BINS = 10
"""Bins of each of the two sizes."""


class Corners(NamedTuple):
    """What the buckets of a trace hold at least and at most.

    Args:
        lower: Every bucket at the smallest input and the smallest output of its requests: too little load.
        upper: Every bucket at the largest of both: too much load.
    """

    lower: SizeHistogram
    upper: SizeHistogram


def histogram_of(trace: Trace, *, input_bins: int = DEFAULT_BINS, output_bins: int = DEFAULT_BINS) -> SizeHistogram:
    """The joint histogram of a trace's requests, with at most `input_bins` × `output_bins` buckets.

    Raises:
        ValueError: A number of bins is less than 1.
    """
    counts = bucket_counts(trace, input_bins=input_bins, output_bins=output_bins)
    return SizeHistogram(tuple(Bucket(*size, float(count)) for size, count in counts.items()))


def bucket_counts(
    trace: Trace, *, input_bins: int = DEFAULT_BINS, output_bins: int = DEFAULT_BINS
) -> Mapping[tuple[int, int], int]:
    """Requests by the (input tokens, output tokens) of their bucket, sorted; arguments and errors of `histogram_of`."""
    bucket, requests = _buckets(trace, input_bins, output_bins)
    inputs = _whole_means(np.bincount(bucket, weights=trace.input_tokens).tolist(), requests.tolist())
    outputs = _whole_means(np.bincount(bucket, weights=trace.output_tokens).tolist(), requests.tolist())
    counts: dict[tuple[int, int], int] = {}
    for input_mean, output_mean, count in sorted(zip(inputs, outputs, requests.tolist(), strict=True)):
        counts[input_mean, output_mean] = counts.get((input_mean, output_mean), 0) + count
    return counts


def corners_of(trace: Trace, *, input_bins: int = DEFAULT_BINS, output_bins: int = DEFAULT_BINS) -> Corners:
    """The smallest and the largest requests that the buckets of `histogram_of` stand for; its arguments and errors."""
    bucket, requests = _buckets(trace, input_bins, output_bins)
    order = np.argsort(bucket, kind="stable")
    starts = np.concatenate([[0], np.cumsum(requests)[:-1]])

    def histogram(extreme: np.ufunc) -> SizeHistogram:
        inputs = extreme.reduceat(trace.input_tokens[order], starts).tolist()
        outputs = extreme.reduceat(trace.output_tokens[order], starts).tolist()
        return SizeHistogram.of(*zip(inputs, outputs, requests.astype(np.float64).tolist(), strict=True))

    return Corners(histogram(np.minimum), histogram(np.maximum))


def coarsened(sizes: SizeHistogram, *, max_buckets: int) -> SizeHistogram:
    """A histogram with at most so many buckets: the same one where it has no more, else neighbours put together.

    Raises:
        ValueError: `max_buckets` is less than 1.
    """
    if max_buckets < 1:
        raise ValueError(f"max_buckets: must be at least 1, is {max_buckets}")
    if len(sizes.buckets) <= max_buckets:
        return sizes
    weights = np.array([bucket.weight for bucket in sizes.buckets])
    inputs = np.array([bucket.input_tokens for bucket in sizes.buckets], dtype=np.int64)
    outputs = np.array([bucket.output_tokens for bucket in sizes.buckets], dtype=np.int64)
    for bins in range(math.isqrt(max_buckets) + 8, 0, -1):
        _, bucket = np.unique(_bins(inputs, bins) * bins + _bins(outputs, bins), return_inverse=True)
        shares = np.bincount(bucket, weights=weights)
        if len(shares) <= max_buckets:
            break
    means_in = _whole_means(np.bincount(bucket, weights=weights * inputs).tolist(), shares.tolist())
    means_out = _whole_means(np.bincount(bucket, weights=weights * outputs).tolist(), shares.tolist())
    return SizeHistogram.of(*zip(means_in, means_out, shares.tolist(), strict=True))


def _buckets(trace: Trace, input_bins: int, output_bins: int) -> tuple[IntArray, IntArray]:
    """The bucket of each request, numbered from 0 without gaps, and the requests of each bucket."""
    for name, bins in (("input_bins", input_bins), ("output_bins", output_bins)):
        if bins < 1:
            raise ValueError(f"{name}: must be at least 1, is {bins}")
    places = _bins(trace.input_tokens, input_bins) * output_bins + _bins(trace.output_tokens, output_bins)
    _, bucket, requests = np.unique(places, return_inverse=True, return_counts=True)
    return bucket, requests


def _bins(tokens: IntArray, bins: int) -> IntArray:
    """The bin of each size, of bins that are equally wide in logarithms from the smallest size to the largest."""
    edges = np.geomspace(tokens.min(), tokens.max(), bins + 1)[1:-1]
    return np.searchsorted(edges, tokens, side="right").astype(np.int64)


def _whole_means(totals: Sequence[float], requests: Sequence[float]) -> list[int]:
    """Means of buckets as whole tokens, at least 1, that keep the total over all requests as nearly as can be.

    Large buckets are rounded first, so that the last remainder is that of the smallest.
    """
    means = [0] * len(totals)
    surplus = 0.0
    for bucket in sorted(range(len(totals)), key=lambda place: (-requests[place], place)):
        means[bucket] = max(1, round((totals[bucket] - surplus) / requests[bucket]))
        surplus += means[bucket] * requests[bucket] - totals[bucket]
    return means
