"""From many requests to a small joint histogram of their sizes, with the same number of tokens.

Lengths spread over orders of magnitude, so bucket edges are equally far apart in logarithms, between the shortest and
the longest request. A bucket stands for its requests by their mean sizes; rounding them to whole tokens would lose or
add up to half a token per request, so what one bucket's rounding adds, the next ones take away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from medley_planner.sizes import MAX_TOKENS, Bucket, SizeHistogram, SizesError

IntArray = npt.NDArray[np.int64]

DEFAULT_BINS = 10
"""Bins of each of the two sizes."""


def histogram(
    input_tokens: IntArray,
    output_tokens: IntArray,
    *,
    input_bins: int = DEFAULT_BINS,
    output_bins: int = DEFAULT_BINS,
) -> SizeHistogram:
    """The joint histogram of requests, with at most `input_bins` × `output_bins` buckets.

    Args:
        input_tokens: Input size of each request, all at least 1.
        output_tokens: Output size of each request, in the same order.
        input_bins: Bins of the input size, at least 1.
        output_bins: Bins of the output size, at least 1.

    Raises:
        SizesError: There is no request, the arrays differ in length, or a size is out of range.
    """
    counts = bucket_counts(input_tokens, output_tokens, input_bins=input_bins, output_bins=output_bins)
    return SizeHistogram(tuple(Bucket(*size, float(count)) for size, count in counts.items()))


def bucket_counts(
    input_tokens: IntArray,
    output_tokens: IntArray,
    *,
    input_bins: int = DEFAULT_BINS,
    output_bins: int = DEFAULT_BINS,
) -> Mapping[tuple[int, int], int]:
    """Requests by the (input tokens, output tokens) of their bucket, sorted; arguments and errors of `histogram`."""
    _check(input_tokens, output_tokens, input_bins, output_bins)
    bins = _bins(input_tokens, input_bins) * output_bins + _bins(output_tokens, output_bins)
    _, bucket, requests = np.unique(bins, return_inverse=True, return_counts=True)
    inputs = _whole_means(np.bincount(bucket, weights=input_tokens).tolist(), requests.tolist())
    outputs = _whole_means(np.bincount(bucket, weights=output_tokens).tolist(), requests.tolist())
    counts: dict[tuple[int, int], int] = {}
    for input_mean, output_mean, count in sorted(zip(inputs, outputs, requests.tolist(), strict=True)):
        counts[input_mean, output_mean] = counts.get((input_mean, output_mean), 0) + count
    return counts


def _check(input_tokens: IntArray, output_tokens: IntArray, input_bins: int, output_bins: int) -> None:
    if len(input_tokens) != len(output_tokens):
        raise SizesError(f"output_tokens: {len(output_tokens)} sizes for {len(input_tokens)} inputs")
    if len(input_tokens) == 0:
        raise SizesError("input_tokens: there is no request")
    for name, tokens in (("input_tokens", input_tokens), ("output_tokens", output_tokens)):
        outside = np.flatnonzero((tokens < 1) | (tokens > MAX_TOKENS))
        if len(outside):
            place = int(outside[0])
            raise SizesError(f"{name}[{place}]: must be between 1 and {MAX_TOKENS}, is {tokens[place]}")
    for name, bins in (("input_bins", input_bins), ("output_bins", output_bins)):
        if bins < 1:
            raise SizesError(f"{name}: must be at least 1, is {bins}")


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
