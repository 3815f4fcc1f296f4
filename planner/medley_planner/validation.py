"""What a fleet must satisfy before it is planned; every refusal names the field and what is wrong with it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator

from medley_planner.fleet import GROUP_SIZES, FleetState, Objectives, PlanOptions, Pool, ReplicaBounds, Service


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
    if pool.gpus_per_node < 1:
        yield f"{field}.gpus_per_node", f"must be at least 1, is {pool.gpus_per_node}"
    for size in GROUP_SIZES:
        gpus = pool.stock.gpus_in_groups_of.get(size)
        if gpus is None or gpus < 0:
            yield f"{field}.stock", f"groups of {size} must hold 0 GPUs or more, hold {gpus}"


def _service(field: str, service: Service, pools: list[str]) -> Iterator[tuple[str, str]]:
    yield from _not_negative(f"{field}.rate_rps", service.rate_rps)
    if not (math.isfinite(service.headroom) and 0 <= service.headroom < 1):
        yield f"{field}.headroom", f"must be at least 0 and less than 1, is {service.headroom}"
    if service.max_cost_usd_per_hour is not None:
        yield from _not_negative(f"{field}.max_cost_usd_per_hour", service.max_cost_usd_per_hour)
    if service.max_context_tokens is not None and service.max_context_tokens < 1:
        yield f"{field}.max_context_tokens", f"must be at least 1, is {service.max_context_tokens}"
    yield from _objectives(f"{field}.objectives", service.objectives)
    for size in service.tensor_parallel:
        if size not in GROUP_SIZES:
            yield f"{field}.tensor_parallel", f"must be of {GROUP_SIZES}, is {size}"
    for pool in sorted(service.pools or ()):
        yield from _known(f"{field}.pools", pool, pools)
    yield from _bounds(f"{field}.replicas", service.replicas)
    for pool in sorted(service.replicas_by_pool):
        yield from _known(f"{field}.replicas_by_pool", pool, pools)
        yield from _bounds(f"{field}.replicas_by_pool[{pool}]", service.replicas_by_pool[pool])
    yield from _running(f"{field}.running", service)


def _objectives(field: str, objectives: Objectives) -> Iterator[tuple[str, str]]:
    for name in ("time_per_output_token_s", "time_to_first_token_s"):
        value = getattr(objectives, name)
        if value is not None:
            yield from _positive(f"{field}.{name}", value)


def _bounds(field: str, bounds: ReplicaBounds) -> Iterator[tuple[str, str]]:
    if bounds.minimum < 0:
        yield f"{field}.minimum", f"must be at least 0, is {bounds.minimum}"
    if bounds.maximum is not None and bounds.maximum < bounds.minimum:
        yield f"{field}.maximum", f"must be at least the minimum of {bounds.minimum}, is {bounds.maximum}"


def _running(field: str, service: Service) -> Iterator[tuple[str, str]]:
    for variant, count in sorted(service.running.items()):
        if count < 0:
            yield f"{field}[{variant}]", f"must be at least 0, is {count}"
        if variant.tensor_parallel not in GROUP_SIZES:
            yield f"{field}[{variant}]", f"tensor_parallel must be of {GROUP_SIZES}"


def _known(field: str, name: str, names: list[str]) -> Iterator[tuple[str, str]]:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        yield field, f"there is no pool {name!r}{hint}"


def _not_negative(field: str, value: float) -> Iterator[tuple[str, str]]:
    if not (math.isfinite(value) and value >= 0):
        yield field, f"must be a finite number, at least 0, is {value}"


def _positive(field: str, value: float) -> Iterator[tuple[str, str]]:
    if not (math.isfinite(value) and value > 0):
        yield field, f"must be a finite number above 0, is {value}"
