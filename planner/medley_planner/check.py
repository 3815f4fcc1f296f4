"""Whether a plan keeps what it promises, worked out again from the fleet's own figures.

Nothing of the solver, of the problem in figures or of the split is used here, only the fleet, the plan and the
capacity of a replica: a mistake in the model cannot hide behind itself. Every plan passes here before it leaves the
planner.

Each violation names the constraint of docs/formulation.md that is broken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from medley_planner.capacity import Capacity
from medley_planner.fleet import FleetState, Pool, ReplicaBounds, Service, Variant
from medley_planner.result import BucketShare, FleetPlan, MixEntry, Outcome, ServicePlan
from medley_planner.variants import CapacityFunction
from medley_planner.wording import mix_text, plural

LOAD_TOLERANCE = 1e-5
"""A replica may be loaded a hundred-thousandth beyond its capacity: far below what any measurement can tell."""

USD_TOLERANCE = 1e-4

DECIDED = (Outcome.PLANNED, Outcome.STOCK_SHORT)


@dataclass(frozen=True)
class Violation:
    """A constraint that does not hold.

    Args:
        constraint: Its name: `demand`, `capacity`, `stock`, `cost_cap`, `replicas_min`, `replicas_max`,
            `pool_replicas_min`, `pool_replicas_max`, `allowed`, `lower_bound` or `accounting`.
        subject: The service, or for `stock` the pool, that it concerns.
        detail: A sentence with figures.
    """

    constraint: str
    subject: str
    detail: str


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
            found += [*_accounting(service, its_plan, pools), *_demand(service, its_plan, pools, capacity_of)]
    return tuple(found)


def check_mix(state: FleetState, plan: FleetPlan, name: str) -> tuple[Violation, ...]:
    """What is wrong with the mix of one service *now*, kept or decided: its bounds, its cap, its demand, and stock
    that does not hold what all services together have in its pools."""
    pools = {pool.name: pool for pool in state.pools}
    service = next(service for service in state.services if service.name == name)
    its_plan = plan.service(name)
    found = [*_allowed(service, its_plan, pools), *_bounds(service, its_plan), *_cap(service, its_plan)]
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
            yield from _demand(service, its_plan, pools, capacity_of)
            yield from _cap(service, its_plan)
            yield from _bounds(service, its_plan)
        else:
            yield from _unchanged(service, its_plan)
    decided = [its_plan.mix for its_plan in plan.services if its_plan.outcome in DECIDED]
    held = [its_plan.mix for its_plan in plan.services if its_plan.outcome not in DECIDED]
    yield from _stock(state.pools, decided, held)
    yield from _totals(plan)


def _pairs(state: FleetState, plan: FleetPlan) -> list[tuple[Service, ServicePlan]]:
    return [(service, plan.service(service.name)) for service in sorted(state.services, key=lambda each: each.name)]


def _accounting(service: Service, plan: ServicePlan, pools: Mapping[str, Pool]) -> Iterator[Violation]:
    """Entries sorted and positive, GPUs and prices those of the pools, the sum the sum."""
    variants = [entry.variant for entry in plan.mix]
    if variants != sorted(set(variants)):
        yield Violation("accounting", service.name, f"its mix is not sorted: {mix_text(plan.mix)}")
    total = 0.0
    for entry in plan.mix:
        pool = pools.get(entry.variant.pool)
        price = entry.variant.gpus * pool.price_usd_per_gpu_hour * entry.replicas if pool else 0.0
        total += price
        if entry.replicas < 1 or entry.gpus != entry.replicas * entry.variant.gpus:
            yield Violation(
                "accounting", service.name, f"{entry.variant}: {entry.replicas} replicas, {entry.gpus} GPUs"
            )
        if abs(entry.cost_usd_per_hour - price) > USD_TOLERANCE:
            yield Violation(
                "accounting", service.name, f"{entry.variant}: {entry.cost_usd_per_hour} is not {price} $/h"
            )
    if abs(total - plan.cost_usd_per_hour) > USD_TOLERANCE:
        yield Violation("accounting", service.name, f"{plan.cost_usd_per_hour} $/h is not the sum {total} of its mix")
    if plan.outcome is Outcome.PLANNED and plan.lower_bound_usd_per_hour > total + USD_TOLERANCE:
        detail = f"{total} $/h is below its lower bound of {plan.lower_bound_usd_per_hour}"
        yield Violation("lower_bound", service.name, detail)


def _allowed(service: Service, plan: ServicePlan, pools: Mapping[str, Pool]) -> Iterator[Violation]:
    for entry in plan.mix:
        pool = pools.get(entry.variant.pool)
        size = entry.variant.gpus
        if pool is None:
            yield Violation("allowed", service.name, f"there is no pool {entry.variant.pool}")
        elif service.pools is not None and pool.name not in service.pools:
            yield Violation("allowed", service.name, f"{pool.name} is not among its pools")
        elif size > pool.gpus_per_node or not service.may_run(entry.variant):
            yield Violation("allowed", service.name, f"{entry.variant} is not among its variants")


def _demand(
    service: Service, plan: ServicePlan, pools: Mapping[str, Pool], capacity_of: CapacityFunction
) -> Iterator[Violation]:
    """Every bucket served as far as promised, by replicas that have room for it."""
    shares: dict[tuple[int, int], list[BucketShare]] = {}
    for share in plan.shares:
        shares.setdefault((share.input_tokens, share.output_tokens), []).append(share)
    busy: dict[Variant, list[float]] = {entry.variant: [] for entry in plan.mix}
    served: list[float] = []
    for bucket in service.sizes.buckets if service.rate_rps > 0 else ():
        size = (bucket.input_tokens, bucket.output_tokens)
        parts = shares.pop(size, [])
        total = math.fsum(part.share for part in parts)
        served.append(bucket.weight * total)
        if any(part.share < 0 for part in parts) or total > 1 + LOAD_TOLERANCE:
            yield Violation("demand", service.name, f"{size}: shares {[part.share for part in parts]}")
        if plan.outcome is Outcome.PLANNED and total < 1 - LOAD_TOLERANCE:
            yield Violation("demand", service.name, f"{size}: only {total} of it is served")
        for part in parts:
            capacity = _capacity(service, part, pools, capacity_of).requests_per_second
            if part.variant not in busy or capacity <= 0 or not math.isclose(part.capacity_rps, capacity):
                yield Violation(
                    "capacity", service.name, f"{size} on {part.variant}: {capacity} req/s, not {part.capacity_rps}"
                )
            else:
                busy[part.variant].append(service.rate_rps * bucket.weight * part.share / capacity)
    if shares:
        yield Violation("demand", service.name, f"sizes that nobody sends are served: {sorted(shares)}")
    if abs(math.fsum(served) - plan.served_share) > LOAD_TOLERANCE and service.rate_rps > 0:
        yield Violation("demand", service.name, f"{math.fsum(served)} is served, not {plan.served_share}")
    for entry in plan.mix:
        room = entry.replicas * (1 - service.headroom)
        load = math.fsum(busy[entry.variant])
        if load > room * (1 + LOAD_TOLERANCE):
            yield Violation("capacity", service.name, f"{entry.variant}: load {load} of {room}")
        if abs(load / entry.replicas - entry.utilisation) > LOAD_TOLERANCE:
            yield Violation("accounting", service.name, f"{entry.variant}: utilisation is not {entry.utilisation}")


def _capacity(
    service: Service, share: BucketShare, pools: Mapping[str, Pool], capacity_of: CapacityFunction
) -> Capacity:
    return capacity_of(
        model=service.model,
        measurements=service.measurements,
        engine=service.engine,
        gpu=pools[share.variant.pool].gpu,
        parallelism=share.variant.parallelism,
        role=share.variant.role,
        sizes=((share.input_tokens, share.output_tokens),),
        objectives=service.objectives,
        max_context_tokens=service.max_context_tokens,
        correction=service.correction(pools[share.variant.pool].gpu, share.variant.parallelism),
    )[0]


def _cap(service: Service, plan: ServicePlan) -> Iterator[Violation]:
    cap = service.max_cost_usd_per_hour
    if cap is not None and plan.cost_usd_per_hour > cap + USD_TOLERANCE:
        yield Violation("cost_cap", service.name, f"{plan.cost_usd_per_hour:.2f} $/h is more than {cap:.2f}")


def _bounds(service: Service, plan: ServicePlan) -> Iterator[Violation]:
    """Upper bounds always; lower ones where stock is not short."""
    by_pool: dict[str, int] = {}
    for entry in plan.mix:
        by_pool[entry.variant.pool] = by_pool.get(entry.variant.pool, 0) + entry.replicas
    checks: list[tuple[str, str, ReplicaBounds, int]] = [("replicas", "", service.replicas, sum(by_pool.values()))]
    for pool, bounds in sorted(service.replicas_by_pool.items()):
        checks.append(("pool_replicas", f" in {pool}", bounds, by_pool.get(pool, 0)))
    for name, where, bounds, count in checks:
        if count < bounds.minimum and plan.outcome is not Outcome.STOCK_SHORT:
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
    total = math.fsum(its_plan.cost_usd_per_hour for its_plan in plan.services)
    if abs(total - plan.cost_usd_per_hour) > USD_TOLERANCE:
        yield Violation("accounting", "plan", f"{plan.cost_usd_per_hour} $/h is not the sum {total} of its services")
    if plan.lower_bound_usd_per_hour > total + USD_TOLERANCE:
        yield Violation("lower_bound", "plan", f"{total} $/h is below {plan.lower_bound_usd_per_hour}")
    by_pool: dict[str, int] = {}
    for its_plan in plan.services:
        for entry in its_plan.mix:
            by_pool[entry.variant.pool] = by_pool.get(entry.variant.pool, 0) + entry.gpus
    if dict(plan.gpus_by_pool) != by_pool:
        yield Violation("accounting", "plan", f"GPUs by pool are {by_pool}, not {dict(plan.gpus_by_pool)}")
