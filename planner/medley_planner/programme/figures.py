"""From a service and what it may run on to figures: loads, prices, what interruptions and changes cost, queues."""

from __future__ import annotations

import math
from collections.abc import Mapping

from medley_planner.capacities.variants import Candidate, Candidates
from medley_planner.fleet import CapacityType, Pool, ReplicaBounds, Service
from medley_planner.programme.headroom import Queue, queue_of
from medley_planner.programme.problem import SWITCH_USD_PER_HOUR, PoolBounds, ServiceProblem

_SECONDS_PER_HOUR = 3600.0


def service_problem(
    service: Service, candidates: Candidates, pools: Mapping[str, Pool], *, switching_horizon_s: float
) -> ServiceProblem:
    """A service in figures. Buckets without demand are left out; headroom is inside the loads.

    A replica that is added runs beside what it replaces while it loads: price · load time, spread over the horizon.
    A service of which nothing runs is placed by price alone.

    Args:
        service: The service.
        candidates: What it may run on.
        pools: The fleet's pools by name.
        switching_horizon_s: Time over which a change must pay for itself; 0 ignores what runs.
    """
    usable = candidates.usable
    demanded = [index for index, bucket in enumerate(candidates.buckets) if service.rate_rps * bucket.weight > 0]
    rates = tuple(service.rate_rps * candidates.buckets[index].weight for index in demanded)
    moves = any(service.running.values()) and switching_horizon_s > 0
    billed = tuple(billed_usd_per_hour(candidate, pools[candidate.variant.pool]) for candidate in usable)
    risks = (
        interruption_usd_per_hour(candidate.price_usd_per_hour, pools[candidate.variant.pool]) for candidate in usable
    )
    return ServiceProblem(
        variants=tuple(candidate.variant for candidate in usable),
        gpus=tuple(candidate.gpus for candidate in usable),
        prices=tuple(price + risk for price, risk in zip(billed, risks, strict=True)),
        billed=billed,
        switching=tuple(
            _switching(price, candidate.load_time_s, switching_horizon_s) if moves else 0.0
            for price, candidate in zip(billed, usable, strict=True)
        ),
        running=tuple(service.running.get(candidate.variant, 0) if moves else 0 for candidate in usable),
        rates=rates,
        loads=tuple(
            tuple(_load(rate, candidate, index, service.headroom) for candidate in usable)
            for rate, index in zip(rates, demanded, strict=True)
        ),
        buckets=tuple(demanded),
        cost_cap=service.max_cost_usd_per_hour,
        replicas_min=service.replicas.minimum,
        replicas_max=service.replicas.maximum,
        pool_bounds=_pool_bounds(service.replicas_by_pool),
        availability=service.availability,
        spot_pools=_spot_pools(candidates, pools),
        queues=_queues(service, candidates),
        priority=service.priority,
    )


def billed_usd_per_hour(candidate: Candidate, pool: Pool) -> float:
    """What a replica adds to the bill: its price, or nothing where it is reserved and paid for anyway."""
    return 0.0 if pool.capacity_type is CapacityType.RESERVED else candidate.price_usd_per_hour


def interruption_usd_per_hour(price_usd_per_hour: float, pool: Pool) -> float:
    """What the interruptions of spot replicas are expected to cost per hour that they serve; 0 in other pools.

    Each time, a replacement is paid for while it loads and does not serve: interruptions per hour · load time · price
    (docs/formulation.md derives it).

    Args:
        price_usd_per_hour: Price of the replicas.
        pool: Their pool.
    """
    if pool.capacity_type is not CapacityType.SPOT:
        return 0.0
    return pool.interruptions_per_hour * pool.load_time_s / _SECONDS_PER_HOUR * price_usd_per_hour


def _spot_pools(candidates: Candidates, pools: Mapping[str, Pool]) -> tuple[str, ...]:
    used = {candidate.variant.pool for candidate in candidates.usable}
    return tuple(sorted(pool for pool in used if pools[pool].capacity_type is CapacityType.SPOT))


def _queues(service: Service, candidates: Candidates) -> tuple[Queue, ...]:
    if service.queueing_quantile <= 0.0:
        return ()
    rates = [service.rate_rps * bucket.weight for bucket in candidates.buckets]
    return tuple(
        queue_of(
            rates,
            candidate.capacities.rates,
            candidate.capacities.concurrencies,
            interarrival_cv=service.interarrival_cv,
            quantile=service.queueing_quantile,
        )
        for candidate in candidates.usable
    )


def _switching(price_usd_per_hour: float, load_time_s: float, horizon_s: float) -> float:
    return max(SWITCH_USD_PER_HOUR, price_usd_per_hour * load_time_s / horizon_s)


def _load(rate_rps: float, candidate: Candidate, bucket: int, headroom: float) -> float:
    capacity_rps = candidate.capacities.rates[bucket]
    return rate_rps / (capacity_rps * (1.0 - headroom)) if capacity_rps > 0 else math.inf


def _pool_bounds(bounds: Mapping[str, ReplicaBounds]) -> tuple[PoolBounds, ...]:
    return tuple(PoolBounds(pool, bounds[pool].minimum, bounds[pool].maximum) for pool in sorted(bounds))
