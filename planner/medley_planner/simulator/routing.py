"""Which variant serves a request: the plan's split of request sizes, for requests whose answers are not yet known.

A plan splits *buckets*, and a bucket is a size of input and of output. A router knows the input; it takes the output
for the mean of the workload's requests with inputs like it (Mélange's balancer does the same from what it has seen),
looks up the nearest bucket, and draws one of the variants that share it with their shares as weights.

The *load* of a request is the part that it takes of a replica: one over the requests of its size that the replica has
at once when it serves its capacity. A replica whose requests have a load of 1 together is at its capacity; more would
wait, or miss their objectives. A router that *overflows* then sends requests to another variant that has room.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medley_planner.fleet import Role, Variant
from medley_planner.result import BucketShare
from medley_planner.simulator.requests import Requests
from medley_planner.workload.sizes import SizeHistogram

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

Size = tuple[int, int]
AtOnce = Mapping[Variant, Mapping[Size, float]]

INPUT_BINS = 16
"""Bins of inputs, equally wide in logarithms, over which the router averages outputs."""
_CHUNK = 8192


class Knowledge(enum.StrEnum):
    """What the router takes a request's output for."""

    MEAN = "mean"
    """The mean output of requests with inputs like it."""
    ORACLE = "oracle"
    """Its own output, which no router knows: the bound of what better estimates could give."""
    SPREAD = "spread"
    """Nothing in particular: of all buckets with inputs like it, one is drawn by weight."""


class Balancing(enum.StrEnum):
    """Which of the replicas of a variant gets a request."""

    LEAST_LOAD = "least-load"
    """The one with the least load."""
    ROUND_ROBIN = "round-robin"
    RANDOM = "random"


@dataclass(frozen=True)
class Routes:
    """Where the requests of a service should go in one stage.

    Args:
        variants: The variants of the stage, sorted.
        variant: For each request, the index of its variant.
        load: What each request takes of a replica of each variant, (variants, requests); infinite where it cannot be
            served within the objectives.
        in_replicas: Whether a load of 1 is a replica's capacity; else loads can only be compared within a variant.
    """

    variants: tuple[Variant, ...]
    variant: IntArray
    load: FloatArray
    in_replicas: bool


def routes(
    requests: Requests,
    sizes: SizeHistogram,
    shares: Sequence[BucketShare],
    roles: tuple[Role, ...],
    *,
    knowledge: Knowledge,
    rng: np.random.Generator,
    at_once: AtOnce | None = None,
) -> Routes:
    """Where each request should go among the variants of these roles.

    Args:
        requests: The requests.
        sizes: The planned workload, from which outputs are estimated.
        shares: The plan's split.
        roles: Roles of the stage's variants.
        knowledge: What the router knows of outputs.
        rng: Draws variants.
        at_once: Requests of each size that a unit of each variant has at once at its capacity; None where that is not
            known.

    Raises:
        ValueError: The plan gives no variant of these roles any share.
    """
    table = _table(shares, roles, at_once)
    outputs = _estimated_outputs(requests, sizes, knowledge, rng)
    bucket = _nearest(table.sizes, requests.input_tokens, outputs)
    drawn = rng.random(len(requests))
    variant = (drawn[:, None] > table.cumulative[bucket]).sum(axis=1)
    variant = np.minimum(variant, len(table.variants) - 1)
    return Routes(table.variants, variant.astype(np.int64), table.load[bucket].T.copy(), at_once is not None)


@dataclass(frozen=True)
class _Table:
    """The plan's split as arrays: (buckets, 2), and (buckets, variants) twice."""

    variants: tuple[Variant, ...]
    sizes: FloatArray
    cumulative: FloatArray
    load: FloatArray


def _table(shares: Sequence[BucketShare], roles: tuple[Role, ...], at_once: AtOnce | None) -> _Table:
    given: dict[Size, dict[Variant, BucketShare]] = {}
    for share in shares:
        if share.variant.role in roles and share.share > 0:
            given.setdefault((share.input_tokens, share.output_tokens), {})[share.variant] = share
    if not given:
        raise ValueError(f"the plan gives no {' or '.join(roles)} variant any requests")
    others = {variant for variant in at_once or {} if variant.role in roles}
    variants = tuple(sorted({variant for by_variant in given.values() for variant in by_variant} | others))
    buckets = sorted(given)
    weight = np.zeros((len(buckets), len(variants)))
    load = np.full((len(buckets), len(variants)), np.inf)
    for row, size in enumerate(buckets):
        for column, variant in enumerate(variants):
            share_of_it = given[size].get(variant)
            weight[row, column] = share_of_it.share if share_of_it else 0.0
            if at_once is not None:
                count = at_once[variant].get(size, 0.0)
                load[row, column] = 1 / max(1.0, count) if count > 0 else np.inf
            elif share_of_it is not None and share_of_it.capacity_rps > 0:
                load[row, column] = 1 / share_of_it.capacity_rps
    cumulative = np.cumsum(weight / weight.sum(axis=1, keepdims=True), axis=1)
    return _Table(variants, np.array(buckets, dtype=np.float64), cumulative, load)


def _estimated_outputs(
    requests: Requests, sizes: SizeHistogram, knowledge: Knowledge, rng: np.random.Generator
) -> FloatArray:
    if knowledge is Knowledge.ORACLE:
        return requests.output_tokens.astype(np.float64)
    inputs = np.array([bucket.input_tokens for bucket in sizes.buckets], dtype=np.float64)
    outputs = np.array([bucket.output_tokens for bucket in sizes.buckets], dtype=np.float64)
    weights = np.array([bucket.weight for bucket in sizes.buckets])
    edges = np.geomspace(inputs.min(), inputs.max(), INPUT_BINS + 1)[1:-1]
    of_bucket = np.searchsorted(edges, inputs, side="right")
    filled = np.unique(of_bucket)
    wanted = np.searchsorted(edges, requests.input_tokens, side="right")
    nearest = filled[np.abs(filled[None, :] - wanted[:, None]).argmin(axis=1)]
    if knowledge is Knowledge.MEAN:
        total = np.bincount(of_bucket, weights=weights * outputs, minlength=INPUT_BINS)
        weight = np.bincount(of_bucket, weights=weights, minlength=INPUT_BINS)
        means: FloatArray = total[nearest] / weight[nearest]
        return means
    drawn = np.zeros(len(requests))
    for place in filled.tolist():
        here = of_bucket == place
        asked = nearest == place
        drawn[asked] = rng.choice(outputs[here], size=int(asked.sum()), p=weights[here] / weights[here].sum())
    return drawn


def _nearest(sizes: FloatArray, inputs: IntArray, outputs: FloatArray) -> IntArray:
    """For each request, the bucket at the least distance in logarithms of both sizes."""
    buckets = np.log(sizes)
    wanted = np.log(np.stack([inputs.astype(np.float64), np.maximum(outputs, 1.0)], axis=1))
    found = np.empty(len(wanted), dtype=np.int64)
    for start in range(0, len(wanted), _CHUNK):
        part = wanted[start : start + _CHUNK]
        distance = (part[:, None, 0] - buckets[:, 0]) ** 2 + (part[:, None, 1] - buckets[:, 1]) ** 2
        found[start : start + len(part)] = distance.argmin(axis=1)
    return found
