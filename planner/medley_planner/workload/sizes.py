"""The joint histogram of request sizes: which inputs come with which outputs, and how often.

A bucket stands for requests of similar size by the mean of their inputs and the mean of their outputs,
so that the tokens of a workload are those of its histogram.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

MAX_TOKENS = 10_000_000
"""Longest input or output that is taken for one; more is a mistake in the data."""

_NORMALISED_WITHIN = 1e-12


class SizesError(ValueError):
    """A histogram or one of its entries is impossible; the message starts with the entry and its field."""


@dataclass(frozen=True, order=True)
class Bucket:
    """Requests of one size.

    Args:
        input_tokens: Tokens of the prompt, at least 1.
        output_tokens: Tokens of the answer, at least 1.
        weight: Share of all requests, or in the input of a histogram, any figure in proportion to it.
    """

    input_tokens: int
    output_tokens: int
    weight: float


@dataclass(frozen=True)
class SizeHistogram:
    """How requests spread over sizes.

    Whatever buckets it is made of, those it holds are sorted by size, have distinct sizes
    and positive weights that add up to 1:
    the same workload compares equal in whatever order it was written down.

    Raises:
        SizesError: An entry is impossible (the message names it by its place), or there is nothing to share out.
    """

    buckets: tuple[Bucket, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "buckets", _normalised(tuple(self.buckets)))

    def __hash__(self) -> int:
        """Of all buckets, worked out once: histograms are part of many keys."""
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self.buckets)

    @classmethod
    def of(cls, *sizes: tuple[int, int, float]) -> SizeHistogram:
        """A histogram of (input tokens, output tokens, weight) triples."""
        return cls(tuple(Bucket(*size) for size in sizes))

    @functools.cached_property
    def mean_input_tokens(self) -> float:
        """Input tokens of a request, on average."""
        return math.fsum(bucket.weight * bucket.input_tokens for bucket in self.buckets)

    @functools.cached_property
    def squared_input_tokens(self) -> float:
        """The square of a request's input tokens, on average."""
        return math.fsum(bucket.weight * bucket.input_tokens**2 for bucket in self.buckets)

    @property
    def mean_output_tokens(self) -> float:
        """Output tokens of a request, on average."""
        return math.fsum(bucket.weight * bucket.output_tokens for bucket in self.buckets)

    @property
    def longest_request_tokens(self) -> int:
        """Input and output tokens of the longest bucket."""
        return max(bucket.input_tokens + bucket.output_tokens for bucket in self.buckets)


def _normalised(entries: tuple[Bucket, ...]) -> tuple[Bucket, ...]:
    if not entries:
        raise SizesError("buckets: there is none")
    weights: dict[tuple[int, int], list[float]] = {}
    for place, entry in enumerate(entries):
        _check(f"buckets[{place}]", entry)
        weights.setdefault((entry.input_tokens, entry.output_tokens), []).append(entry.weight)
    merged = {size: math.fsum(parts) for size, parts in sorted(weights.items())}
    total = _total(merged.values())
    if abs(total - 1.0) <= _NORMALISED_WITHIN:
        total = 1.0
    return tuple(Bucket(*size, weight / total) for size, weight in merged.items() if weight / total > 0)


def _total(weights: Iterable[float]) -> float:
    try:
        total = math.fsum(weights)
    except OverflowError:
        total = math.inf
    if total == 0:
        raise SizesError("buckets: all weights are zero")
    if not math.isfinite(total):
        raise SizesError("buckets: the weights are too large to add up")
    return total


def _check(entry: str, bucket: Bucket) -> None:
    for field in ("input_tokens", "output_tokens"):
        tokens: object = getattr(bucket, field)
        if isinstance(tokens, bool) or not isinstance(tokens, int):
            raise SizesError(f"{entry}.{field}: must be an integer, is {tokens!r}")
        if not 1 <= tokens <= MAX_TOKENS:
            raise SizesError(f"{entry}.{field}: must be between 1 and {MAX_TOKENS}, is {tokens}")
    weight: object = bucket.weight
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
        raise SizesError(f"{entry}.weight: must be a finite number, at least 0, is {weight!r}")
