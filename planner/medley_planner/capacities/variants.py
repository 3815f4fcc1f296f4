"""The ways a service may run: which pools, parallelism and roles, what each can serve, and why not.

A variant that cannot serve a single size is no candidate but a rejection, with the reason that weighs most.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from medley_planner.capacities.estimate import Capacity, Size
from medley_planner.capacities.percentiles import PromptMix
from medley_planner.capacities.table import CapacityTable
from medley_planner.catalogue.gpus import GPUType
from medley_planner.catalogue.models import ModelArchitecture, ThroughputPoint
from medley_planner.fleet import GROUP_SIZES, Objectives, Parallelism, Pool, Role, Service, Variant
from medley_planner.programme.memo import Hashed, Memo
from medley_planner.result import Rejection
from medley_planner.workload.sizes import Bucket

NOT_ALLOWED = "NotAllowed"


class CapacityFunction(Protocol):
    """How many requests of each size one replica sustains: `capacity.capacities`, or a stand-in with its signature."""

    def __call__(
        self,
        *,
        model: ModelArchitecture,
        measurements: tuple[ThroughputPoint, ...],
        engine: str,
        gpu: GPUType,
        parallelism: Parallelism,
        role: Role,
        sizes: Sequence[tuple[int, int]],
        objectives: Objectives,
        max_context_tokens: int | None,
        correction: float,
        prompts: PromptMix | None = None,
    ) -> Sequence[Capacity]:
        """The capacity of one replica for requests of each (input tokens, output tokens), in the order given.

        Args:
            model: The model that is served.
            measurements: Measured points of that model.
            engine: The engine that serves.
            gpu: Type of the replica's GPUs.
            parallelism: How the replica's GPUs share the work.
            role: Which part of a request the replica computes.
            sizes: Requests that reach the replica, one size at a time.
            objectives: Latencies to keep.
            max_context_tokens: What the engine is configured for; None is what the model was made for.
            correction: Multiplies every rate: what was observed live over what is estimated.
            prompts: What the replica gets together with these sizes; None is prompts of the size that is judged.
        """
        ...


@dataclass(frozen=True)
class Candidate:
    """A variant that can serve at least one size.

    Args:
        variant: Pool, parallelism and role.
        gpus: GPUs of one replica.
        price_usd_per_hour: Price of one replica.
        load_time_s: From asking for a replica until it serves.
        capacities: One per bucket of the service, in their order.
    """

    variant: Variant
    gpus: int
    price_usd_per_hour: float
    load_time_s: float
    capacities: CapacityTable

    @property
    def source(self) -> str:
        """Where its capacities come from; the sources of all sizes, most frequent first, where they differ."""
        pairs = zip(self.capacities.sources, self.capacities.rates, strict=True)
        sources = [source for source, rate_rps in pairs if rate_rps > 0]
        return " and ".join(sorted(set(sources), key=lambda source: (-sources.count(source), source)))


@dataclass(frozen=True)
class Candidates:
    """What a service may run on.

    Args:
        buckets: The service's request sizes.
        usable: Sorted by variant.
        rejected: Variants that are out whatever they cost, sorted by variant.
    """

    buckets: tuple[Bucket, ...]
    usable: tuple[Candidate, ...]
    rejected: tuple[Rejection, ...]

    @functools.cached_property
    def unserved(self) -> tuple[Bucket, ...]:
        """Sizes of which no candidate computes the prompt, or none the output tokens."""
        return tuple(bucket for index, bucket in enumerate(self.buckets) if not self._serves(index))

    def _serves(self, index: int) -> bool:
        roles = {candidate.variant.role for candidate in self.usable if candidate.capacities.rates[index] > 0}
        return Role.SHARED in roles or {Role.PREFILL, Role.DECODE} <= roles


def candidates(service: Service, pools: Sequence[Pool], capacity_of: CapacityFunction, memo: Memo) -> Candidates:
    """All variants of a service: the usable ones with their capacities, the others with their reasons.

    Args:
        service: The service.
        pools: All pools of the fleet, sorted by name.
        capacity_of: Capacity of one replica for one size.
        memo: Keeps capacities; they depend on neither rate, price nor stock.
    """
    demand = Hashed(
        (
            capacity_of,
            service.model,
            service.measurements,
            service.engine,
            service.sizes,
            service.objectives,
            service.max_context_tokens,
        )
    )
    usable: list[Candidate] = []
    rejected: list[Rejection] = []
    for pool in pools:
        if service.pools is not None and pool.name not in service.pools:
            rejected.append(
                Rejection(Variant(pool.name, 1), NOT_ALLOWED, f"{pool.name} is not among the service's pools")
            )
            continue
        for variant in variants_in(service, pool):
            if variant.gpus > pool.gpus_per_node:
                held = f"a node of {pool.name} holds {pool.gpus_per_node} GPUs"
                detail = f"{held}, a replica of {variant.gpus} does not span nodes"
                rejected.append(Rejection(variant, NOT_ALLOWED, detail))
                continue
            compute = functools.partial(_capacities, service, pool.gpu, variant, capacity_of)
            key = ("capacities", demand, pool.gpu, variant.parallelism, variant.role)
            factor = service.correction(pool.gpu, variant.parallelism)
            capacities = memo.recall(key, compute).corrected(factor)
            if capacities.serves_any:
                price = pool.price_usd_per_gpu_hour * variant.gpus
                usable.append(Candidate(variant, variant.gpus, price, pool.load_time_s, capacities))
            else:
                rejected.append(_rejection(variant, service.sizes.buckets, capacities))
    in_order = tuple(sorted(usable, key=_by_variant)), tuple(sorted(rejected, key=_by_variant))
    return Candidates(service.sizes.buckets, *in_order)


def variants_in(service: Service, pool: Pool) -> tuple[Variant, ...]:
    """The ways to run a replica of the service on this pool's GPUs, sorted; some may not fit on a node.

    Sizes of tensor parallelism that the service does not choose are all that fit beside those that it does: a node of
    8 GPUs and pipelines of 2 leave 1, 2 and 4. Numbers of GPUs that a stock cannot be counted in are left out.
    """
    tensor_sizes = service.tensor_parallel or GROUP_SIZES
    roles = (Role.SHARED, Role.PREFILL, Role.DECODE) if service.disaggregated else (Role.SHARED,)
    found = (
        Variant(pool.name, tensor, pipeline, data, role)
        for tensor, pipeline, data in itertools.product(tensor_sizes, service.pipeline_parallel, service.data_parallel)
        for role in roles
    )
    chosen = bool(service.tensor_parallel)
    return tuple(
        sorted(
            {
                variant
                for variant in found
                if variant.gpus in GROUP_SIZES and (chosen or variant.gpus <= pool.gpus_per_node)
            }
        )
    )


def _by_variant(item: Candidate | Rejection) -> Variant:
    return item.variant


def _capacities(service: Service, gpu: GPUType, variant: Variant, capacity_of: CapacityFunction) -> CapacityTable:
    found = capacity_of(
        model=service.model,
        measurements=service.measurements,
        engine=service.engine,
        gpu=gpu,
        parallelism=variant.parallelism,
        role=variant.role,
        sizes=tuple((bucket.input_tokens, bucket.output_tokens) for bucket in service.sizes.buckets),
        objectives=service.objectives,
        max_context_tokens=service.max_context_tokens,
        correction=1.0,
        prompts=PromptMix.of(service.sizes),
    )
    return CapacityTable.of(found)


def _rejection(variant: Variant, buckets: Sequence[Bucket], capacities: CapacityTable) -> Rejection:
    """The reason that keeps most requests away, and what it says about the most frequent size among them."""
    weights: dict[str, list[float]] = {}
    for bucket, why in zip(buckets, capacities.reasons, strict=True):
        weights.setdefault(why, []).append(bucket.weight)
    reason = min(weights, key=lambda word: (-math.fsum(weights[word]), word))
    heaviest = min(
        (index for index, why in enumerate(capacities.reasons) if why == reason),
        key=lambda index: (-buckets[index].weight, index),
    )
    return Rejection(variant, reason, capacities.details[heaviest])


class Remembered:
    """A capacity function that answers from what was worked out for the candidates where it can.

    Keyed by the identity of the services' values, which live as long as this does: to hash measurements for every size
    would cost more than to work out the capacity.

    Args:
        services: Services with their candidates.
        gpus: GPU type by pool.
        capacity_of: Answers the rest.
    """

    def __init__(
        self,
        services: Iterable[tuple[Service, Candidates]],
        gpus: Mapping[str, GPUType],
        capacity_of: CapacityFunction,
    ) -> None:
        self._services = tuple(services)
        self._capacity_of = capacity_of
        self._candidates: dict[tuple[object, ...], tuple[tuple[Bucket, ...], Candidate]] = {}
        self._places: dict[int, Mapping[Size, int]] = {}
        for service, found in self._services:
            within = (id(service.objectives), service.max_context_tokens, PromptMix.of(service.sizes))
            served = (id(service.model), id(service.measurements), service.engine, *within)
            for candidate in found.usable:
                gpu, parallelism = gpus[candidate.variant.pool], candidate.variant.parallelism
                factor = service.correction(gpu, parallelism)
                replica = (id(gpu), parallelism, candidate.variant.role, factor)
                self._candidates[(*served, *replica)] = (found.buckets, candidate)

    def __call__(
        self,
        *,
        model: ModelArchitecture,
        measurements: tuple[ThroughputPoint, ...],
        engine: str,
        gpu: GPUType,
        parallelism: Parallelism,
        role: Role,
        sizes: Sequence[tuple[int, int]],
        objectives: Objectives,
        max_context_tokens: int | None,
        correction: float,
        prompts: PromptMix | None = None,
    ) -> Sequence[Capacity]:
        """The capacity of one replica for requests of each size, in the order given."""
        served = (id(model), id(measurements), engine, id(objectives), max_context_tokens, prompts)
        replica = (id(gpu), parallelism, role, correction)
        buckets, candidate = self._candidates.get((*served, *replica), ((), None))
        if candidate is not None:
            places = self._places_in(buckets)
            if all(size in places for size in sizes):
                return candidate.capacities.at([places[size] for size in sizes])
        return self._capacity_of(
            model=model,
            measurements=measurements,
            engine=engine,
            gpu=gpu,
            parallelism=parallelism,
            role=role,
            sizes=sizes,
            objectives=objectives,
            max_context_tokens=max_context_tokens,
            correction=correction,
            prompts=prompts,
        )

    def _places_in(self, buckets: tuple[Bucket, ...]) -> Mapping[Size, int]:
        """The place of each size; the same for all candidates of a service."""
        if id(buckets) not in self._places:
            sizes = ((bucket.input_tokens, bucket.output_tokens) for bucket in buckets)
            self._places[id(buckets)] = {size: place for place, size in enumerate(sizes)}
        return self._places[id(buckets)]
