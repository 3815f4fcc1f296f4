"""From many requests to a small joint histogram of their sizes, with the same number of tokens.

Lengths spread over orders of magnitude, so bucket edges are equally far apart in logarithms, between the shortest and
the longest request. A bucket stands for its requests by their mean sizes; rounding them to whole tokens would lose or
add up to half a token per request, so what one bucket's rounding adds, the next ones take away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from medley_planner.sizes import Bucket, SizeHistogram
from medley_planner.traces import Trace

IntArray = npt.NDArray[np.int64]

DEFAULT_BINS = 10
"""Bins of each of the two sizes."""


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
    for name, bins in (("input_bins", input_bins), ("output_bins", output_bins)):
        if bins < 1:
            raise ValueError(f"{name}: must be at least 1, is {bins}")
    places = _bins(trace.input_tokens, input_bins) * output_bins + _bins(trace.output_tokens, output_bins)
    _, bucket, requests = np.unique(places, return_inverse=True, return_counts=True)
    inputs = _whole_means(np.bincount(bucket, weights=trace.input_tokens).tolist(), requests.tolist())
    outputs = _whole_means(np.bincount(bucket, weights=trace.output_tokens).tolist(), requests.tolist())
    counts: dict[tuple[int, int], int] = {}
    for input_mean, output_mean, count in sorted(zip(inputs, outputs, requests.tolist(), strict=True)):
        counts[input_mean, output_mean] = counts.get((input_mean, output_mean), 0) + count
    return counts


def _bins(tokens: IntArray, bins: int) -> IntArray:
    """The bin of each size, of bins that are equally wide in logarithms from the smallest size to the largest."""
    edges = np.geomspace(tokens.min(), tokens.max(), bins + 1)[1:-1]
    return np.searchsorted(edges, tokens, side="right").astype(np.int64)


def _whole_means(totals: Sequence[float], requests: Sequence[int]) -> list[int]:
    """Means of buckets as whole tokens, at least 1, that keep the total over all requests as nearly as can be.

    Large buckets are rounded first, so that the last remainder is that of the smallest.
    """
    means = [0] * len(totals)
    surplus = 0.0
    for bucket in sorted(range(len(totals)), key=lambda place: (-requests[place], place)):
        means[bucket] = max(1, round((totals[bucket] - surplus) / requests[bucket]))
        surplus += means[bucket] * requests[bucket] - totals[bucket]
    return means
