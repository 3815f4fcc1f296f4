"""The part of the check that is about requests: who serves them, with how much room, and what a loss leaves.

Worked out from the fleet, the plan and the capacity of a replica alone, as the rest of the check.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from medley_planner.capacities.percentiles import PromptMix
from medley_planner.capacities.table import CapacityTable
from medley_planner.capacities.variants import CapacityFunction
from medley_planner.checking.violations import LOAD_TOLERANCE, Violation
from medley_planner.fleet import CapacityType, Pool, Role, Service, Variant
from medley_planner.programme.headroom import queue_of, waiting_probability
from medley_planner.result import BucketShare, MixEntry, Outcome, ServicePlan

Rates = Mapping[tuple[Variant, tuple[int, int]], float]
"""Requests per second of one replica, by variant and size."""

_PARTS = (Role.PREFILL, Role.DECODE)
"""What must be computed of every request; shared replicas compute both."""


@dataclass(frozen=True)
class Serving:
    """One service with its plan, and what it takes to judge who serves what.

    Args:
        service: The service.
        plan: Its plan.
        pools: All pools by name.
        capacity_of: What one replica sustains.
    """

    service: Service
    plan: ServicePlan
    pools: Mapping[str, Pool]
    capacity_of: CapacityFunction

    def capacities(self, variant: Variant, sizes: Sequence[tuple[int, int]]) -> CapacityTable:
        """The capacity of a replica for requests of each (input tokens, output tokens), in the order given."""
        service, gpu = self.service, self.pools[variant.pool].gpu
        found = self.capacity_of(
            model=service.model,
            measurements=service.measurements,
            engine=service.engine,
            gpu=gpu,
            parallelism=variant.parallelism,
            role=variant.role,
            sizes=sizes,
            objectives=service.objectives,
            max_context_tokens=service.max_context_tokens,
            correction=service.correction(gpu, variant.parallelism),
            prompts=PromptMix.of(service.sizes),
        )
        return CapacityTable.of(found)


def check_serving(serving: Serving, *, queueing: bool = True) -> Iterator[Violation]:
    """Every bucket served as far as promised, by replicas that have room for it.

    Args:
        serving: The service and its plan.
        queueing: Whether room for queueing must be left.
    """
    service, plan = serving.service, serving.plan
    if service.rate_rps > 0:
        yield from _demand(serving, plan.shares, wanted=1.0, promised=plan.served_share)
    elif plan.shares:
        yield Violation("demand", service.name, "requests that nobody sends are served")
    rates = _rates(serving, plan.shares)
    loads = _loads(serving, plan.shares, rates)
    yield from _capacity(serving, plan.shares, plan.mix, rates)
    yield from _room(serving, plan.mix, loads, queueing=queueing)
    for entry in plan.mix:
        if abs(loads.get(entry.variant, 0.0) / entry.replicas - entry.utilisation) > LOAD_TOLERANCE:
            yield Violation("accounting", service.name, f"{entry.variant}: utilisation is not {entry.utilisation}")


def check_losses(serving: Serving) -> Iterator[Violation]:
    """After the loss of any one spot pool the rest serves what must survive, in the way that the plan says."""
    service, plan = serving.service, serving.plan
    wanted = service.availability.survivable_share
    if wanted <= 0 or service.rate_rps <= 0:
        return
    spot = {name for name, pool in serving.pools.items() if pool.capacity_type is CapacityType.SPOT}
    used = sorted({entry.variant.pool for entry in plan.mix} & spot)
    if used != [fallback.pool for fallback in plan.fallbacks]:
        yield Violation("survivable", service.name, f"does not say what serves without each of {used}")
        return
    for fallback in plan.fallbacks:
        left = [entry for entry in plan.mix if entry.variant.pool != fallback.pool]
        rates = _rates(serving, fallback.shares)
        broken = [
            *_demand(serving, fallback.shares, wanted=wanted, promised=fallback.served_share),
            *_capacity(serving, fallback.shares, left, rates),
            *_room(serving, left, _loads(serving, fallback.shares, rates), queueing=True),
        ]
        for each in broken:
            yield Violation("survivable", service.name, f"without {fallback.pool}: {each.detail}")


def _by_size(shares: Sequence[BucketShare]) -> dict[tuple[int, int], list[BucketShare]]:
    found: dict[tuple[int, int], list[BucketShare]] = {}
    for share in shares:
        found.setdefault((share.input_tokens, share.output_tokens), []).append(share)
    return found


def _demand(serving: Serving, shares: Sequence[BucketShare], *, wanted: float, promised: float) -> Iterator[Violation]:
    """Shares of every bucket that add up in each part of its requests: to all that is wanted where that is planned."""
    service = serving.service
    by_size = _by_size(shares)
    served = []
    for bucket in service.sizes.buckets:
        size = (bucket.input_tokens, bucket.output_tokens)
        parts = by_size.pop(size, [])
        totals = [0.0 for _ in _PARTS]
        for part in parts:
            for number, role in enumerate(_PARTS):
                if part.variant.role in (Role.SHARED, role):
                    totals[number] += part.share
        least, most = min(totals), max(totals)
        served.append(bucket.weight * least)
        if any(part.share < 0 for part in parts) or most > wanted + LOAD_TOLERANCE:
            yield Violation("demand", service.name, f"{size}: shares {[part.share for part in parts]}")
        if serving.plan.outcome is Outcome.PLANNED and least < wanted - LOAD_TOLERANCE:
            yield Violation("demand", service.name, f"{size}: only {least} of it is served, not {wanted}")
    if by_size:
        yield Violation("demand", service.name, f"sizes that nobody sends are served: {sorted(by_size)}")
    if abs(math.fsum(served) - promised) > LOAD_TOLERANCE:
        yield Violation("demand", service.name, f"{math.fsum(served)} is served, not {promised}")


def _capacity(
    serving: Serving, shares: Sequence[BucketShare], mix: Sequence[MixEntry], rates: Rates
) -> Iterator[Violation]:
    """Replicas that serve are there, and can do what the plan says they do."""
    there = {entry.variant for entry in mix}
    for part in shares:
        size = (part.input_tokens, part.output_tokens)
        capacity = rates.get((part.variant, size), 0.0)
        if part.variant not in there or capacity <= 0 or not math.isclose(part.capacity_rps, capacity):
            detail = f"{size} on {part.variant}: {capacity} req/s, not {part.capacity_rps}"
            yield Violation("capacity", serving.service.name, detail)


def _rates(serving: Serving, shares: Sequence[BucketShare]) -> Rates:
    """What a replica sustains of each size that it serves."""
    sizes: dict[Variant, list[tuple[int, int]]] = {}
    for part in shares:
        sizes.setdefault(part.variant, []).append((part.input_tokens, part.output_tokens))
    return {
        (variant, size): rate_rps
        for variant, served in sizes.items()
        if variant.pool in serving.pools
        for size, rate_rps in zip(served, serving.capacities(variant, served).rates, strict=True)
    }


def _loads(serving: Serving, shares: Sequence[BucketShare], rates: Rates) -> dict[Variant, float]:
    """Replicas that are busy, by variant."""
    service = serving.service
    weights = {(bucket.input_tokens, bucket.output_tokens): bucket.weight for bucket in service.sizes.buckets}
    loads: dict[Variant, list[float]] = {}
    for part in shares:
        size = (part.input_tokens, part.output_tokens)
        capacity = rates.get((part.variant, size), 0.0)
        if capacity > 0 and size in weights:
            load = service.rate_rps * weights[size] * part.share / capacity
            loads.setdefault(part.variant, []).append(load)
    return {variant: math.fsum(each) for variant, each in loads.items()}


def _room(
    serving: Serving, mix: Sequence[MixEntry], loads: Mapping[Variant, float], *, queueing: bool
) -> Iterator[Violation]:
    """No replica busier than headroom allows, and as few requests that wait as the service asks for."""
    service = serving.service
    for entry in mix:
        room = entry.replicas * (1 - service.headroom)
        load = loads.get(entry.variant, 0.0)
        if load > room * (1 + LOAD_TOLERANCE):
            yield Violation("capacity", service.name, f"{entry.variant}: load {load} of {room}")
        elif queueing and service.queueing_quantile > 0 and load > 0:
            waits = _waits(serving, entry, load / (1 - service.headroom) * (1 - LOAD_TOLERANCE))
            if waits > 1 - service.queueing_quantile + LOAD_TOLERANCE:
                detail = f"{entry.variant}: {100 * waits:.2f} % of the requests wait, by estimate"
                yield Violation("queueing", service.name, detail)


def _waits(serving: Serving, entry: MixEntry, load: float) -> float:
    """The share of requests that find no place free on replicas loaded like that, in replicas."""
    service = serving.service
    sizes = [(bucket.input_tokens, bucket.output_tokens) for bucket in service.sizes.buckets]
    capacities = serving.capacities(entry.variant, sizes)
    queue = queue_of(
        [service.rate_rps * bucket.weight for bucket in service.sizes.buckets],
        capacities.rates,
        capacities.concurrencies,
        interarrival_cv=service.interarrival_cv,
        quantile=service.queueing_quantile,
    )
    return waiting_probability(entry.replicas * queue.places, load * queue.places, queue.burstiness)
