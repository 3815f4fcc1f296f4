"""A fleet and its plan in simulated time.

Steps take what the roofline says of the variant. Where the plan's capacities come from elsewhere (measurements, or a
live correction), all of a variant's times are stretched by one factor, so that the roofline with stretched times
sustains what the plan counts on, on (geometric) average over the sizes that the variant is given.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from medley_planner.capacities.capacity import ROOFLINE, capacities
from medley_planner.capacities.memory import ReplicaMemory
from medley_planner.capacities.percentiles import PromptMix
from medley_planner.capacities.roofline import (
    KEY_VALUE_TRANSFER_BYTES_PER_S,
    MAX_SEQUENCES,
    MAX_STEP_TOKENS,
    sustained_rates,
)
from medley_planner.capacities.step_budget import STEP_TOKENS, step_budget_tokens
from medley_planner.capacities.step_time import StepTime
from medley_planner.fleet import FleetState, Objectives, Pool, Role, Service, Variant
from medley_planner.result import BucketShare, FleetPlan, ServicePlan
from medley_planner.simulator.engine import EngineLimits, StepTimes
from medley_planner.simulator.measures import ServiceMeasures, measured
from medley_planner.simulator.requests import Requests
from medley_planner.simulator.run import HandOver, RunOptions, ServiceRun, StepBudget
from medley_planner.simulator.stage import ReplicaKind

_BISECTIONS = 30
_MOST_STRETCH = 64.0

Progress = Callable[[str, float], None]
"""Told the service and the share of its requests that have arrived, in [0, 1]."""


DEFAULT_OPTIONS = RunOptions()


class NothingToSimulateError(ValueError):
    """A service has no replica, or no split, to be simulated with; the message names it."""


@dataclass(frozen=True)
class FleetMeasures:
    """A simulated fleet: its services by name."""

    services: tuple[ServiceMeasures, ...]

    @property
    def attained(self) -> bool:
        """Whether every service kept its objectives."""
        return all(service.attained for service in self.services)

    @property
    def cost_usd_per_hour(self) -> float:
        """Of all services."""
        return math.fsum(service.cost_usd_per_hour for service in self.services)


def simulate(
    state: FleetState,
    fleet_plan: FleetPlan,
    arriving: Mapping[str, Requests],
    options: RunOptions = DEFAULT_OPTIONS,
    *,
    horizon_s: float,
    limits: EngineLimits | None = None,
    slices: int = 50,
    progress: Progress | None = None,
) -> FleetMeasures:
    """Replay requests through a planned fleet.

    Args:
        state: The fleet that was planned.
        fleet_plan: Its plan.
        arriving: Requests of each service to simulate, by name.
        options: How it is simulated.
        horizon_s: Until when replicas are paid for: the end of arrivals.
        limits: Block size, watermark and queue limit of engines; the rest is the replicas' own. None is the defaults.
        slices: How often progress is told for a service.
        progress: Told how far the simulation is.

    Raises:
        NothingToSimulateError: A service has no replica.
    """
    services = {service.name: service for service in state.services}
    found = []
    for name in sorted(arriving):
        service, service_plan = services[name], fleet_plan.service(name)
        run = planned_run(service, service_plan, state.pools, arriving[name], options, limits=limits)
        for part in range(1, slices + 1):
            run.run_until(horizon_s * part / slices)
            if progress is not None:
                progress(name, part / slices)
        run.finish()
        found.append(
            measured(name, run.book, run.instances, service.objectives, horizon_s=horizon_s, bin_s=options.bin_s)
        )
    return FleetMeasures(tuple(found))


def planned_run(
    service: Service,
    service_plan: ServicePlan,
    pools: Sequence[Pool],
    requests: Requests,
    options: RunOptions,
    *,
    limits: EngineLimits | None = None,
    mix: Mapping[Variant, int] | None = None,
) -> ServiceRun:
    """A service with its planned replicas ready, before the first request.

    Args:
        service: The service.
        service_plan: Its plan.
        pools: All pools.
        requests: What arrives.
        options: How it is simulated; the seed is mixed with the service's name.
        limits: Block size, watermark and queue limit of engines; None is the defaults.
        mix: Other replicas than the plan's.

    Raises:
        NothingToSimulateError: There is no replica, or no split.
    """
    planned = {entry.variant: entry.replicas for entry in service_plan.mix} if mix is None else dict(mix)
    if not any(planned.values()):
        raise NothingToSimulateError(f"{service.name} has no replica")
    if not service_plan.shares:
        raise NothingToSimulateError(f"{service.name} has no split of its requests over replicas")
    by_name = {pool.name: pool for pool in pools}
    for variant in sorted(planned):
        if variant.pool not in by_name:
            raise NothingToSimulateError(
                f"{service.name} has replicas in {variant.pool}, which is no pool of the fleet"
            )
    sources = dict(service_plan.capacity_source)
    kinds = {
        variant: replica_kind(
            service,
            by_name[variant.pool],
            variant,
            tuple(share for share in service_plan.shares if share.variant == variant),
            source=sources.get(variant, ROOFLINE),
            limits=limits,
            step_budget=options.step_budget,
        )
        for variant in sorted({*planned, *(share.variant for share in service_plan.shares)})
        if variant.pool in by_name
    }
    run = ServiceRun(
        requests,
        service.sizes,
        service_plan.shares,
        kinds,
        options=replace(options, seed=options.seed ^ zlib.crc32(service.name.encode())),
        hand_over=_hand_over(service, by_name, planned),
        at_once={variant: _at_once(service, by_name[variant.pool], kind) for variant, kind in kinds.items()},
    )
    run.start(planned)
    return run


def replica_kind(
    service: Service,
    pool: Pool,
    variant: Variant,
    shares: Sequence[BucketShare],
    *,
    source: str = ROOFLINE,
    limits: EngineLimits | None = None,
    step_budget: StepBudget = StepBudget.DEFAULT,
) -> ReplicaKind:
    """What a replica of a variant is in the simulation.

    Args:
        service: The service.
        pool: The variant's pool.
        variant: The variant.
        shares: The variant's part of the plan's split, with its capacities.
        source: Where those capacities come from.
        limits: Block size, watermark and queue limit; None is the defaults.
        step_budget: How many tokens a step computes at most.
    """
    times = StepTime(service.model, pool.gpu, variant.parallelism)
    contexts = sorted(bucket.input_tokens + bucket.output_tokens / 2 for bucket in service.sizes.buckets)
    prompts = sorted(float(bucket.input_tokens) for bucket in service.sizes.buckets)
    steps = StepTimes.of(
        times.step_s,
        max_step_tokens=_step_tokens(times, service.objectives, variant.role, step_budget),
        contexts=_apart(contexts),
        prompts=_apart(prompts),
    )
    correction = service.corrections.get((pool.gpu.name, variant.parallelism), 1.0)
    stretch = 1.0
    if shares and (source != ROOFLINE or correction != 1.0):
        stretch = _stretch(service, pool, variant, shares)
    return ReplicaKind(
        variant=variant,
        steps=steps.slower(stretch) if stretch != 1.0 else steps,
        limits=_limits(service, pool, variant, limits),
        units=times.units,
        price_usd_per_hour=pool.price_usd_per_gpu_hour * variant.gpus,
        load_time_s=pool.load_time_s,
    )


def _step_tokens(times: StepTime, objectives: Objectives, role: Role, step_budget: StepBudget) -> int:
    per_token_s = objectives.time_per_output_token_s
    if step_budget is StepBudget.DEFAULT or per_token_s is None or role is Role.PREFILL:
        return MAX_STEP_TOKENS
    return min(MAX_STEP_TOKENS, step_budget_tokens(times, per_token_s) or STEP_TOKENS[0])


def _apart(values: Sequence[float]) -> tuple[float, float]:
    """A low and a high one of sorted values, that differ."""
    low, high = values[len(values) // 4], values[(9 * len(values)) // 10]
    return (low, high) if high > low + 1 else (low, low + 1000.0)


def _limits(service: Service, pool: Pool, variant: Variant, limits: EngineLimits | None) -> EngineLimits:
    """The part of a data parallel rank's cache and batch that one stage's share of requests has.

    Where layers have windows or constant states, the cache counts as so many tokens as it holds of requests of the mean
    length, and at least those of one of the longest.
    """
    memory = ReplicaMemory.of(service.model, pool.gpu, variant.parallelism)
    stages = variant.pipeline_parallel
    mean = service.sizes.mean_input_tokens + service.sizes.mean_output_tokens / 2
    longest = min(memory.key_value_tokens, service.max_context_tokens or service.model.max_context_tokens)
    tokens = max(math.floor(float(memory.requests(mean)) * mean / stages), longest)
    given = limits or EngineLimits(tokens)
    return replace(
        given,
        key_value_tokens=max(tokens, given.block_tokens),
        max_sequences=max(1, min(given.max_sequences, MAX_SEQUENCES) // stages),
    )


def _stretch(service: Service, pool: Pool, variant: Variant, shares: Sequence[BucketShare]) -> float:
    """The factor on all times with which the roofline sustains what the plan counts on.

    Times s times as long are objectives s times as strict, at rates s times as large.
    """
    served = [share for share in shares if share.capacity_rps > 0]
    sizes = [(share.input_tokens, share.output_tokens) for share in served]
    weights = [share.share / share.capacity_rps for share in served]

    prompts = PromptMix.of(service.sizes)

    def excess(stretch: float) -> float:
        within = _stricter(service.objectives, stretch)
        found = sustained_rates(
            service.model, pool.gpu, variant.parallelism, sizes, within, role=variant.role, prompts=prompts
        )
        rates = found.requests_per_second.tolist()
        if min(rates) <= 0:
            return -math.inf
        logs = (math.log(rate / stretch / share.capacity_rps) for rate, share in zip(rates, served, strict=True))
        return math.fsum(weight * log for weight, log in zip(weights, logs, strict=True))

    low, high = -math.log(_MOST_STRETCH), math.log(_MOST_STRETCH)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(math.exp(middle)) > 0 else (low, middle)
    return math.exp((low + high) / 2)


def _stricter(objectives: Objectives, stretch: float) -> Objectives:
    per_token_s, first_token_s = objectives.time_per_output_token_s, objectives.time_to_first_token_s
    return replace(
        objectives,
        time_per_output_token_s=None if per_token_s is None else per_token_s / stretch,
        time_to_first_token_s=None if first_token_s is None else first_token_s / stretch,
    )


def _at_once(service: Service, pool: Pool, kind: ReplicaKind) -> dict[tuple[int, int], float]:
    """Requests of each size that a unit has at once at its capacity: none where it cannot serve them."""
    sizes = tuple((bucket.input_tokens, bucket.output_tokens) for bucket in service.sizes.buckets)
    found = capacities(
        model=service.model,
        measurements=service.measurements,
        engine=service.engine,
        gpu=pool.gpu,
        parallelism=kind.variant.parallelism,
        role=kind.variant.role,
        sizes=sizes,
        objectives=service.objectives,
        max_context_tokens=service.max_context_tokens,
        correction=service.corrections.get((pool.gpu.name, kind.variant.parallelism), 1.0),
        prompts=PromptMix.of(service.sizes),
    )
    return {
        size: max(1.0, each.concurrency / kind.units)
        for size, each in zip(sizes, found, strict=True)
        if each.requests_per_second > 0
    }


def _hand_over(service: Service, pools: Mapping[str, Pool], mix: Mapping[Variant, int]) -> HandOver:
    """Of the slowest prefill variant: each of its GPUs sends its part of the cache."""
    slowest = 0.0
    for variant in sorted(mix):
        if variant.role is Role.PREFILL and variant.pool in pools:
            gpu = pools[variant.pool].gpu
            memory = ReplicaMemory.of(service.model, gpu, variant.parallelism)
            rate = min(KEY_VALUE_TRANSFER_BYTES_PER_S, gpu.link_bandwidth_bytes_per_s)
            slowest = max(slowest, memory.key_value_bytes_per_token / rate)
    return HandOver(0.0, slowest)
