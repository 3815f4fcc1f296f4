"""Small simulated services: engines with round numbers, splits written down, arrivals drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medley_planner.fleet import Role, Variant
from medley_planner.result import BucketShare
from medley_planner.simulator.engine import EngineLimits, StepTimes
from medley_planner.simulator.requests import Requests
from medley_planner.simulator.run import RunOptions, ServiceRun
from medley_planner.simulator.stage import ReplicaKind
from medley_planner.workload.sizes import SizeHistogram

SMALL, BIG = Variant("small", 1), Variant("big", 1)
PREFILL, DECODE = Variant("fast", 1, role=Role.PREFILL), Variant("wide", 1, role=Role.DECODE)
SHORT, LONG = (100, 20), (2000, 200)
SIZES = SizeHistogram.of((*SHORT, 0.5), (*LONG, 0.5))


def steps(token_s: float = 1e-4, least_s: float = 0.01, budget: int = 512) -> StepTimes:
    return StepTimes(
        tuple(max(least_s, token_s * tokens) for tokens in range(budget + 1)),
        per_cached_token_s=1e-7,
        per_pair_s=1e-9,
    )


def kind(variant: Variant, *, price: float = 1.0, load_time_s: float = 30.0, **limits: object) -> ReplicaKind:
    held = EngineLimits(**{"key_value_tokens": 40_000, "max_sequences": 32, **limits})
    return ReplicaKind(variant, steps(), held, price_usd_per_hour=price, load_time_s=load_time_s)


def shares(*parts: tuple[Variant, float, float], sizes: SizeHistogram = SIZES) -> tuple[BucketShare, ...]:
    """(variant, share, capacity) of every bucket."""
    return tuple(
        BucketShare(bucket.input_tokens, bucket.output_tokens, variant, share, capacity_rps)
        for bucket in sizes.buckets
        for variant, share, capacity_rps in parts
    )


def requests(seed: int, *, rate_rps: float = 4.0, duration_s: float = 200.0, cv: float = 1.0) -> Requests:
    rng = np.random.default_rng(seed)
    return Requests.drawn(SIZES, rate_rps=rate_rps, duration_s=duration_s, rng=rng, interarrival_cv=cv)


def run_of(
    asked: Requests,
    mix: Mapping[Variant, int],
    split: Sequence[BucketShare] | None = None,
    *,
    kinds: Sequence[ReplicaKind] | None = None,
    **options: object,
) -> ServiceRun:
    """A service with these replicas ready, before its first request."""
    made = kinds or [kind(variant) for variant in mix]
    equal = shares(*((variant, 1 / len(mix), 4.0) for variant in mix)) if split is None else split
    run = ServiceRun(asked, SIZES, equal, {each.variant: each for each in made}, options=RunOptions(**options))
    run.start(mix)
    return run
