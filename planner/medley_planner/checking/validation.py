"""What a fleet must satisfy before it is planned; every refusal names the field and what is wrong with it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Hashable, Iterable, Iterator

from medley_planner.fleet import (
    GROUP_SIZES,
    Availability,
    CapacityType,
    FleetState,
    Objectives,
    PlanOptions,
    Pool,
    ReplicaBounds,
    Service,
)

MOST = 1e9
"""Figures beyond this are mistakes, and would drown all others in a solver's floating-point arithmetic."""

MOST_RATE_RPS = 1e6
MOST_REPLICAS = 1_000_000
MOST_INTERARRIVAL_CV = 100.0
MOST_INTERRUPTIONS_PER_HOUR = 3600.0


class InvalidFleetError(ValueError):
    """A fleet that cannot be planned because a value in it makes no sense.

    Args:
        field: Path of the value, such as `services[chat].rate_rps`.
        message: What is wrong with it.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


def validate(state: FleetState, options: PlanOptions) -> None:
    """Refuse a fleet with impossible values.

    Raises:
        InvalidFleetError: The first impossible value, in the order of services and pools by name.
    """
    for field, message in _problems(state, options):
        raise InvalidFleetError(field, message)


def _problems(state: FleetState, options: PlanOptions) -> Iterator[tuple[str, str]]:
    yield from _options(options)
    yield from _duplicates("pools", (pool.name for pool in state.pools))
    yield from _duplicates("services", (service.name for service in state.services))
    if state.max_cost_usd_per_hour is not None:
        yield from _not_negative("max_cost_usd_per_hour", state.max_cost_usd_per_hour)
    for pool in sorted(state.pools, key=lambda pool: pool.name):
        yield from _pool(f"pools[{pool.name}]", pool)
    names = sorted(pool.name for pool in state.pools)
    for service in sorted(state.services, key=lambda service: service.name):
        yield from _service(f"services[{service.name}]", service, names)


def _options(options: PlanOptions) -> Iterator[tuple[str, str]]:
    if options.slice_factor < 1:
        yield "options.slice_factor", f"must be at least 1, is {options.slice_factor}"
    yield from _positive("options.time_limit_s", options.time_limit_s)
    yield from _not_negative("options.relative_gap", options.relative_gap)
    yield from _not_negative("options.shared_gap", options.shared_gap)
    yield from _not_negative("options.switching_horizon_s", options.switching_horizon_s)


def _duplicates(field: str, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for name in sorted(names):
        if not name:
            yield field, "a name is empty"
        if name in seen:
            yield field, f"the name {name!r} occurs twice"
        seen.add(name)


def _pool(field: str, pool: Pool) -> Iterator[tuple[str, str]]:
    yield from _not_negative(f"{field}.price_usd_per_gpu_hour", pool.price_usd_per_gpu_hour)
    yield from _not_negative(f"{field}.load_time_s", pool.load_time_s)
    yield from _not_negative(
        f"{field}.interruptions_per_hour", pool.interruptions_per_hour, MOST_INTERRUPTIONS_PER_HOUR
    )
    if pool.interruptions_per_hour and pool.capacity_type is not CapacityType.SPOT:
        yield f"{field}.interruptions_per_hour", f"must be 0 where capacity is {pool.capacity_type}: only spot has any"
    yield from _count(f"{field}.gpus_per_node", pool.gpus_per_node, 1)
    for size in GROUP_SIZES:
        gpus = pool.stock.gpus_in_groups_of.get(size)
        if gpus is None or not 0 <= gpus <= MOST:
            yield f"{field}.stock", f"groups of {size} must hold 0 GPUs or more, hold {gpus}"


def _service(field: str, service: Service, pools: list[str]) -> Iterator[tuple[str, str]]:
    yield from _not_negative(f"{field}.rate_rps", service.rate_rps, MOST_RATE_RPS)
    yield from _share(f"{field}.headroom", service.headroom)
    yield from _share(f"{field}.queueing_quantile", service.queueing_quantile)
    yield from _not_negative(f"{field}.interarrival_cv", service.interarrival_cv, MOST_INTERARRIVAL_CV)
    if service.max_cost_usd_per_hour is not None:
        yield from _not_negative(f"{field}.max_cost_usd_per_hour", service.max_cost_usd_per_hour)
    if service.max_context_tokens is not None:
        yield from _count(f"{field}.max_context_tokens", service.max_context_tokens, 1)
    if abs(service.priority) > MOST:
        yield f"{field}.priority", f"must be from {-MOST:g} to {MOST:g}, is {service.priority}"
    yield from _availability(f"{field}.availability", service.availability)
    yield from _objectives(f"{field}.objectives", service.objectives)
    yield from _parallelism(field, service)
    yield from _once(f"{field}.pools", service.pools or ())
    for pool in sorted(service.pools or ()):
        yield from _known(f"{field}.pools", pool, pools)
    yield from _bounds(f"{field}.replicas", service.replicas)
    for pool in sorted(service.replicas_by_pool):
        yield from _known(f"{field}.replicas_by_pool", pool, pools)
        yield from _bounds(f"{field}.replicas_by_pool[{pool}]", service.replicas_by_pool[pool])
    yield from _running(f"{field}.running", service)


def _availability(field: str, availability: Availability) -> Iterator[tuple[str, str]]:
    for name in ("spot_max_share", "survivable_share"):
        share = getattr(availability, name)
        if not 0 <= share <= 1:
            yield f"{field}.{name}", f"must be from 0 to 1, is {share}"
    if not 0 < availability.pool_max_share <= 1:
        yield f"{field}.pool_max_share", f"must be above 0 and at most 1, is {availability.pool_max_share}"


def _parallelism(field: str, service: Service) -> Iterator[tuple[str, str]]:
    for size in service.tensor_parallel:
        if size not in GROUP_SIZES:
            yield f"{field}.tensor_parallel", f"must be of {GROUP_SIZES}, is {size}"
    for name in ("pipeline_parallel", "data_parallel"):
        sizes = getattr(service, name)
        if not sizes:
            yield f"{field}.{name}", "must hold at least one size"
        for size in sizes:
            if not 1 <= size <= max(GROUP_SIZES):
                yield f"{field}.{name}", f"must be from 1 to {max(GROUP_SIZES)}, is {size}"
    for name in ("tensor_parallel", "pipeline_parallel", "data_parallel"):
        yield from _once(f"{field}.{name}", getattr(service, name))
    for (gpu, parallelism), factor in sorted(service.corrections.items()):
        yield from _positive(f"{field}.corrections[{gpu}, {parallelism}]", factor)


def _objectives(field: str, objectives: Objectives) -> Iterator[tuple[str, str]]:
    for name in ("time_per_output_token_s", "time_to_first_token_s"):
        value = getattr(objectives, name)
        if value is not None:
            yield from _positive(f"{field}.{name}", value)
    for name in ("time_per_output_token_percentile", "time_to_first_token_percentile"):
        value = getattr(objectives, name)
        if value is not None and not 0 < value < 100:
            yield f"{field}.{name}", f"must be above 0 and below 100, is {value}"


def _bounds(field: str, bounds: ReplicaBounds) -> Iterator[tuple[str, str]]:
    yield from _count(f"{field}.minimum", bounds.minimum, 0, MOST_REPLICAS)
    if bounds.maximum is not None:
        if bounds.maximum < bounds.minimum:
            yield f"{field}.maximum", f"must be at least the minimum of {bounds.minimum}, is {bounds.maximum}"
        yield from _count(f"{field}.maximum", bounds.maximum, 0, MOST_REPLICAS)


def _running(field: str, service: Service) -> Iterator[tuple[str, str]]:
    for variant, count in sorted(service.running.items()):
        yield from _count(f"{field}[{variant}]", count, 0, MOST_REPLICAS)
        if variant.gpus not in GROUP_SIZES:
            yield f"{field}[{variant}]", f"GPUs of a replica must be of {GROUP_SIZES}, are {variant.gpus}"


def _once(field: str, values: Iterable[Hashable]) -> Iterator[tuple[str, str]]:
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            yield field, f"{value!r} occurs twice"
        seen.add(value)


def _known(field: str, name: str, names: list[str]) -> Iterator[tuple[str, str]]:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        yield field, f"there is no pool {name!r}{hint}"


def _share(field: str, value: float) -> Iterator[tuple[str, str]]:
    if not 0 <= value < 1:
        yield field, f"must be at least 0 and less than 1, is {value}"


def _count(field: str, value: int, least: int, most: float = MOST) -> Iterator[tuple[str, str]]:
    if value < least:
        yield field, f"must be at least {least}, is {value}"
    if value > most:
        yield field, f"must be at most {most:g}, is {value}"


def _not_negative(field: str, value: float, most: float = MOST) -> Iterator[tuple[str, str]]:
    if not (math.isfinite(value) and value >= 0):
        yield field, f"must be a finite number, at least 0, is {value}"
    if value > most:
        yield field, f"must be at most {most:g}, is {value}"


def _positive(field: str, value: float) -> Iterator[tuple[str, str]]:
    if not (math.isfinite(value) and value > 0):
        yield field, f"must be a finite number above 0, is {value}"
    if value > MOST:
        yield field, f"must be at most {MOST:g}, is {value}"
