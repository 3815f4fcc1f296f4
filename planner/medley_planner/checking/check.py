"""Whether a plan keeps what it promises, worked out again from the fleet's own figures.

Nothing of the solver, of the problem in figures or of the split is used here, only the fleet, the plan and the
capacity of a replica: a mistake in the model cannot hide behind itself. Every plan passes here before it leaves the
planner.

Each violation names the constraint of docs/formulation.md that is broken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from medley_planner.capacities.variants import CapacityFunction
from medley_planner.checking.check_serving import Serving, check_losses, check_serving
from medley_planner.checking.violations import DECIDED, LOAD_TOLERANCE, USD_TOLERANCE, Violation
from medley_planner.fleet import CapacityType, FleetState, Pool, ReplicaBounds, Service
from medley_planner.result import FleetPlan, MixEntry, Outcome, ServicePlan
from medley_planner.wording import mix_text, plural

__all__ = ["DECIDED", "Violation", "check", "check_mix", "check_unshared"]

_SECONDS_PER_HOUR = 3600.0
_SHORT = (Outcome.STOCK_SHORT, Outcome.FLEET_CAP_TOO_LOW)
"""The outcomes in which lower bounds on replicas may give way."""


def check(state: FleetState, plan: FleetPlan, capacity_of: CapacityFunction) -> tuple[Violation, ...]:
    """All that is wrong with a plan; empty where it is sound.

    Services that keep what runs are not judged, but what they hold is taken from the stock of the others.
    """
    return tuple(_violations(state, plan, capacity_of))


def check_unshared(state: FleetState, plan: FleetPlan, capacity_of: CapacityFunction) -> tuple[Violation, ...]:
    """The same for a plan in Mélange's mode, which knows neither stock nor caps nor bounds."""
    pools = {pool.name: pool for pool in state.pools}
    found: list[Violation] = []
    for service, its_plan in _pairs(state, plan):
        if its_plan.outcome in DECIDED:
            serving = Serving(service, its_plan, pools, capacity_of)
            found += [*_accounting(service, its_plan, pools), *check_serving(serving, queueing=False)]
    return tuple(found)


def check_mix(state: FleetState, plan: FleetPlan, name: str) -> tuple[Violation, ...]:
    """What is wrong with the mix of one service *now*, kept or decided: its bounds, its cap, its spread, its demand,
    the fleet's cap, and stock that does not hold what all services together have in its pools."""
    pools = {pool.name: pool for pool in state.pools}
    service = next(service for service in state.services if service.name == name)
    its_plan = plan.service(name)
    found = [
        *_allowed(service, its_plan, pools),
        *_bounds(service, its_plan),
        *_cap(service, its_plan),
        *_spread(service, its_plan, pools),
        *_survives(service, its_plan),
        *(replace(each, subject=name) for each in _fleet_cap(state, plan)),
    ]
    if its_plan.served_share < 1.0:
        detail = (
            f"{mix_text(its_plan.mix)} serves only {100 * its_plan.served_share:.1f} % of {service.rate_rps:.4g} req/s"
        )
        found.append(Violation("demand", name, detail))
    here = {entry.variant.pool for entry in its_plan.mix}
    mixes = [its_plan.mix for its_plan in plan.services]
    found += [violation for violation in _stock(state.pools, mixes, ()) if violation.subject in here]
    return tuple(found)


def _violations(state: FleetState, plan: FleetPlan, capacity_of: CapacityFunction) -> Iterator[Violation]:
    pools = {pool.name: pool for pool in state.pools}
    names = sorted(service.name for service in state.services)
    if names != [its_plan.name for its_plan in plan.services]:
        yield Violation("accounting", "plan", f"has plans of {[its.name for its in plan.services]}, not of {names}")
        return
    for service, its_plan in _pairs(state, plan):
        yield from _accounting(service, its_plan, pools)
        if its_plan.outcome in DECIDED:
            yield from _allowed(service, its_plan, pools)
            serving = Serving(service, its_plan, pools, capacity_of)
            yield from check_serving(serving)
            yield from check_losses(serving)
            yield from _cap(service, its_plan)
            yield from _bounds(service, its_plan)
            yield from _spread(service, its_plan, pools)
        else:
            yield from _unchanged(service, its_plan)
    decided = [its_plan.mix for its_plan in plan.services if its_plan.outcome in DECIDED]
    held = [its_plan.mix for its_plan in plan.services if its_plan.outcome not in DECIDED]
    yield from _stock(state.pools, decided, held)
    if any(its_plan.cost_usd_per_hour > 0 for its_plan in plan.services if its_plan.outcome in DECIDED):
        yield from _fleet_cap(state, plan)
    yield from _totals(plan)


def _pairs(state: FleetState, plan: FleetPlan) -> list[tuple[Service, ServicePlan]]:
    return [(service, plan.service(service.name)) for service in sorted(state.services, key=lambda each: each.name)]


def _accounting(service: Service, plan: ServicePlan, pools: Mapping[str, Pool]) -> Iterator[Violation]:
    """Entries sorted and positive, GPUs and prices those of the pools, the sum the sum."""
    variants = [entry.variant for entry in plan.mix]
    if variants != sorted(set(variants)):
        yield Violation("accounting", service.name, f"its mix is not sorted: {mix_text(plan.mix)}")
    for entry in plan.mix:
        if entry.replicas < 1 or entry.gpus != entry.replicas * entry.variant.gpus:
            yield Violation(
                "accounting", service.name, f"{entry.variant}: {entry.replicas} replicas, {entry.gpus} GPUs"
            )
        price = _price(entry, pools.get(entry.variant.pool))
        said = (entry.cost_usd_per_hour, entry.reserved_usd_per_hour, entry.risk_usd_per_hour)
        if any(abs(one - other) > USD_TOLERANCE for one, other in zip(said, price, strict=True)):
            detail = f"{entry.variant}: {said} is not {price} $/h added, reserved and at risk"
            yield Violation("accounting", service.name, detail)
    for figure in ("cost_usd_per_hour", "reserved_usd_per_hour", "risk_usd_per_hour"):
        total, told = math.fsum(getattr(entry, figure) for entry in plan.mix), getattr(plan, figure)
        if abs(total - told) > USD_TOLERANCE:
            yield Violation("accounting", service.name, f"{figure} {told} is not the sum {total} of its mix")
    if (
        plan.outcome is Outcome.PLANNED
        and plan.lower_bound_usd_per_hour > plan.cost_usd_per_hour + plan.risk_usd_per_hour + USD_TOLERANCE
    ):
        detail = f"{plan.expected_usd_per_hour} $/h is below its lower bound of {plan.lower_bound_usd_per_hour}"
        yield Violation("lower_bound", service.name, detail)


def _price(entry: MixEntry, pool: Pool | None) -> tuple[float, float, float]:
    """What an entry adds to the bill, what of it is paid anyway, and what its interruptions are expected to cost."""
    if pool is None:
        return 0.0, 0.0, 0.0
    price = entry.replicas * entry.variant.gpus * pool.price_usd_per_gpu_hour
    if pool.capacity_type is CapacityType.RESERVED:
        return 0.0, price, 0.0
    if pool.capacity_type is CapacityType.SPOT:
        return price, 0.0, price * pool.interruptions_per_hour * pool.load_time_s / _SECONDS_PER_HOUR
    return price, 0.0, 0.0


def _allowed(service: Service, plan: ServicePlan, pools: Mapping[str, Pool]) -> Iterator[Violation]:
    for entry in plan.mix:
        pool = pools.get(entry.variant.pool)
        if pool is None:
            yield Violation("allowed", service.name, f"there is no pool {entry.variant.pool}")
        elif service.pools is not None and pool.name not in service.pools:
            yield Violation("allowed", service.name, f"{pool.name} is not among its pools")
        elif entry.variant.gpus > pool.gpus_per_node or not service.may_run(entry.variant):
            yield Violation("allowed", service.name, f"{entry.variant} is not among its variants")


def _cap(service: Service, plan: ServicePlan) -> Iterator[Violation]:
    cap = service.max_cost_usd_per_hour
    if cap is not None and plan.cost_usd_per_hour > cap + USD_TOLERANCE:
        yield Violation("cost_cap", service.name, f"{plan.cost_usd_per_hour:.2f} $/h is more than {cap:.2f}")


def _fleet_cap(state: FleetState, plan: FleetPlan) -> Iterator[Violation]:
    cap, cost = state.max_cost_usd_per_hour, math.fsum(each.cost_usd_per_hour for each in plan.services)
    if cap is not None and cost > cap + USD_TOLERANCE:
        yield Violation("fleet_cost_cap", "plan", f"all services together cost {cost:.2f} $/h, more than {cap:.2f}")


def _spread(service: Service, plan: ServicePlan, pools: Mapping[str, Pool]) -> Iterator[Violation]:
    """Not too large a share of the replicas in spot pools, nor in any one pool."""
    everything = sum(entry.replicas for entry in plan.mix)
    by_pool: dict[str, int] = {}
    for entry in plan.mix:
        by_pool[entry.variant.pool] = by_pool.get(entry.variant.pool, 0) + entry.replicas
    spot = sum(
        count for name, count in by_pool.items() if name in pools and pools[name].capacity_type is CapacityType.SPOT
    )
    if spot > service.availability.spot_max_share * everything + LOAD_TOLERANCE:
        asked = f"at most {100 * service.availability.spot_max_share:g} % may be"
        yield Violation("spot_share", service.name, f"{spot} of {plural(everything, 'replica')} are spot, {asked}")
    for name, count in sorted(by_pool.items()):
        if count > service.availability.pool_max_share * everything + LOAD_TOLERANCE:
            asked = f"at most {100 * service.availability.pool_max_share:g} % may be"
            detail = f"{count} of {plural(everything, 'replica')} are in {name}, {asked}"
            yield Violation("pool_share", service.name, detail)


def _survives(service: Service, plan: ServicePlan) -> Iterator[Violation]:
    """What a loss leaves, as the plan says it."""
    wanted = service.availability.survivable_share
    for fallback in plan.fallbacks:
        if fallback.served_share < wanted - LOAD_TOLERANCE:
            served = f"{100 * fallback.served_share:.1f} % of the demand is served without {fallback.pool}"
            yield Violation("survivable", service.name, f"{served}, {100 * wanted:g} % must be")


def _bounds(service: Service, plan: ServicePlan) -> Iterator[Violation]:
    """Upper bounds always; lower ones where stock is not short."""
    by_pool: dict[str, int] = {}
    for entry in plan.mix:
        by_pool[entry.variant.pool] = by_pool.get(entry.variant.pool, 0) + entry.replicas
    checks: list[tuple[str, str, ReplicaBounds, int]] = [("replicas", "", service.replicas, sum(by_pool.values()))]
    for pool, bounds in sorted(service.replicas_by_pool.items()):
        checks.append(("pool_replicas", f" in {pool}", bounds, by_pool.get(pool, 0)))
    for name, where, bounds, count in checks:
        if count < bounds.minimum and plan.outcome not in _SHORT:
            yield Violation(
                f"{name}_min", service.name, f"{count} replicas{where}, at least {bounds.minimum} are asked for"
            )
        if bounds.maximum is not None and count > bounds.maximum:
            yield Violation(
                f"{name}_max", service.name, f"{count} replicas{where}, at most {bounds.maximum} are allowed"
            )


def _unchanged(service: Service, plan: ServicePlan) -> Iterator[Violation]:
    mix = {entry.variant: entry.replicas for entry in plan.mix}
    running = {variant: count for variant, count in service.running.items() if count > 0}
    if mix != running:
        yield Violation("accounting", service.name, f"{plan.outcome.value} does not keep what runs")


def _stock(
    pools: Iterable[Pool], decided: Iterable[tuple[MixEntry, ...]], held: Iterable[tuple[MixEntry, ...]]
) -> Iterator[Violation]:
    """In every pool, replicas of at least k GPUs fit into groups of k, largest first; what is held comes off before."""
    wanted, taken = _gpus_by_size(decided), _gpus_by_size(held)
    for pool in sorted(pools, key=lambda pool: pool.name):
        sizes = sorted(size for name, size in wanted if name == pool.name)
        for size in sizes:
            groups = pool.stock.gpus_in_groups_of
            room = min(groups[k] - _at_least(taken, pool.name, k) for k in groups if k <= size)
            use = _at_least(wanted, pool.name, size)
            if use > max(0, room):
                groups_of = f" in groups of {size} and more" if size > 1 else ""
                detail = f"{plural(use, 'GPU')} of {pool.name}{groups_of} asked for, {max(0, room)} to be had"
                yield Violation("stock", pool.name, detail)


def _gpus_by_size(mixes: Iterable[tuple[MixEntry, ...]]) -> dict[tuple[str, int], int]:
    gpus: dict[tuple[str, int], int] = {}
    for mix in mixes:
        for entry in mix:
            key = (entry.variant.pool, entry.variant.gpus)
            gpus[key] = gpus.get(key, 0) + entry.replicas * entry.variant.gpus
    return gpus


def _at_least(gpus: Mapping[tuple[str, int], int], pool: str, size: int) -> int:
    return sum(count for (name, each), count in gpus.items() if name == pool and each >= size)


def _totals(plan: FleetPlan) -> Iterator[Violation]:
    for figure in ("cost_usd_per_hour", "reserved_usd_per_hour", "risk_usd_per_hour"):
        total, told = math.fsum(getattr(its_plan, figure) for its_plan in plan.services), getattr(plan, figure)
        if abs(total - told) > USD_TOLERANCE:
            yield Violation("accounting", "plan", f"{figure} {told} is not the sum {total} of its services")
    expected = math.fsum(its_plan.expected_usd_per_hour for its_plan in plan.services)
    if plan.lower_bound_usd_per_hour > expected + USD_TOLERANCE:
        yield Violation("lower_bound", "plan", f"{expected} $/h is below {plan.lower_bound_usd_per_hour}")
    by_pool: dict[str, int] = {}
    for its_plan in plan.services:
        for entry in its_plan.mix:
            by_pool[entry.variant.pool] = by_pool.get(entry.variant.pool, 0) + entry.gpus
    if dict(plan.gpus_by_pool) != by_pool:
        yield Violation("accounting", "plan", f"GPUs by pool are {by_pool}, not {dict(plan.gpus_by_pool)}")
