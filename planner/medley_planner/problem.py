"""The planning problem in figures: replicas needed, prices, bounds and stock, and nothing of models or GPUs.

Every value here is a tuple of plain numbers, so that problems compare and hash by value: two services that need the
same are the same problem, and a solution can be kept under the problem it solves.

Symbols of docs/formulation.md: service s, bucket b, variant v, group size k.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from medley_planner.fleet import ReplicaBounds, Service, Stock, Variant
from medley_planner.variants import Candidate, Candidates

LOAD_TOLERANCE = 1e-6
"""A replica may be loaded by so much beyond its capacity: the accuracy of floating-point solvers."""

TIE_USD_PER_GPU_HOUR = 1e-5
"""Between mixes of equal price, the one with fewer GPUs is better by so much per GPU."""

SWITCH_USD_PER_HOUR = 1e-4
"""A replica that does not run yet costs at least so much more than one that runs: between equals, what runs stays."""


@dataclass(frozen=True)
class PoolBounds:
    """At least and at most so many replicas in a pool."""

    pool: str
    minimum: int
    maximum: int | None


@dataclass(frozen=True)
class ServiceProblem:
    """One service in figures.

    Args:
        variants: v, sorted; the same order in all of the following.
        gpus: g[v], GPUs of a replica.
        prices: c[v], USD per hour of a replica.
        switching: w[v], USD per hour that one replica more than `running` costs on top, to pay for its loading.
        running: r[v], replicas that run.
        rates: λ[b], requests per second of a bucket; all positive.
        loads: ℓ[b][v] = λ[b] / (μ[b,v] · (1 − headroom)): replicas of v that serve the bucket; infinite where v cannot.
        buckets: Index of each bucket in the service's histogram.
        cost_cap: Highest price of the mix, USD per hour; None is no cap.
        replicas_min: Fewest replicas in all.
        replicas_max: Most replicas in all; None is no bound.
        pool_bounds: Bounds by pool, sorted by pool.
    """

    variants: tuple[Variant, ...]
    gpus: tuple[int, ...]
    prices: tuple[float, ...]
    switching: tuple[float, ...]
    running: tuple[int, ...]
    rates: tuple[float, ...]
    loads: tuple[tuple[float, ...], ...]
    buckets: tuple[int, ...]
    cost_cap: float | None
    replicas_min: int
    replicas_max: int | None
    pool_bounds: tuple[PoolBounds, ...]

    def __hash__(self) -> int:
        """Cheap and good enough to tell problems apart; equality compares everything."""
        return hash((self.variants, self.prices, self.running, self.rates, self.cost_cap, self.loads[:1]))

    def cost(self, replicas: Sequence[int]) -> float:
        """USD per hour of so many replicas by variant."""
        return math.fsum(price * count for price, count in zip(self.prices, replicas, strict=True))

    def switching_cost(self, replicas: Sequence[int]) -> float:
        """USD per hour that loading the replicas beyond `running` costs."""
        added = (max(0, count - runs) for count, runs in zip(replicas, self.running, strict=True))
        return math.fsum(weight * more for weight, more in zip(self.switching, added, strict=True))

    @functools.cached_property
    def useful(self) -> tuple[int, ...]:
        """More replicas of v than this are never better: for all the demand that v can serve, and lower bounds."""
        most = []
        for v, variant in enumerate(self.variants):
            total = math.fsum(load[v] for load in self.loads if load[v] < math.inf)
            in_pool = (bounds.minimum for bounds in self.pool_bounds if bounds.pool == variant.pool)
            most.append(math.ceil(total - LOAD_TOLERANCE) + max(self.replicas_min, *in_pool, 0))
        return tuple(most)

    def only(self, keep: Iterable[int]) -> ServiceProblem:
        """The same problem with these variants only, by index."""
        kept = sorted(keep)
        return replace(
            self,
            variants=tuple(self.variants[v] for v in kept),
            gpus=tuple(self.gpus[v] for v in kept),
            prices=tuple(self.prices[v] for v in kept),
            switching=tuple(self.switching[v] for v in kept),
            running=tuple(self.running[v] for v in kept),
            loads=tuple(tuple(load[v] for v in kept) for load in self.loads),
        )

    def fresh(self) -> ServiceProblem:
        """The same problem where nothing runs yet."""
        zeros = (0,) * len(self.variants)
        return replace(self, running=zeros, switching=tuple(0.0 for _ in zeros))


@dataclass(frozen=True)
class StockLimit:
    """The constraint `stock[pool,k]`: replicas of at least `group` GPUs in `pool` use at most `gpus` GPUs together."""

    pool: str
    group: int
    gpus: int

    def used_by(self, service: ServiceProblem, replicas: Sequence[int]) -> int:
        """GPUs under this limit that so many replicas use."""
        return sum(
            gpus * count
            for variant, gpus, count in zip(service.variants, service.gpus, replicas, strict=True)
            if variant.pool == self.pool and gpus >= self.group
        )


@dataclass(frozen=True)
class FleetProblem:
    """Services that share stock."""

    services: tuple[ServiceProblem, ...]
    stock: tuple[StockLimit, ...]


def service_problem(service: Service, candidates: Candidates, *, switching_horizon_s: float) -> ServiceProblem:
    """A service in figures. Buckets without demand are left out; headroom is inside the loads.

    A replica that is added runs beside what it replaces while it loads: price · load time, spread over the horizon.
    A service of which nothing runs is placed by price alone.
    """
    usable = candidates.usable
    running = tuple(service.running.get(candidate.variant, 0) for candidate in usable)
    demanded = [index for index, bucket in enumerate(candidates.buckets) if service.rate_rps * bucket.weight > 0]
    rates = tuple(service.rate_rps * candidates.buckets[index].weight for index in demanded)
    moves = any(service.running.values()) and switching_horizon_s > 0
    return ServiceProblem(
        variants=tuple(candidate.variant for candidate in usable),
        gpus=tuple(candidate.gpus for candidate in usable),
        prices=tuple(candidate.price_usd_per_hour for candidate in usable),
        switching=tuple(_switching(candidate, switching_horizon_s) if moves else 0.0 for candidate in usable),
        running=running if moves else (0,) * len(usable),
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
    )


def _switching(candidate: Candidate, horizon_s: float) -> float:
    return max(SWITCH_USD_PER_HOUR, candidate.price_usd_per_hour * candidate.load_time_s / horizon_s)


def _load(rate_rps: float, candidate: Candidate, bucket: int, headroom: float) -> float:
    capacity_rps = candidate.capacities[bucket].requests_per_second
    return rate_rps / (capacity_rps * (1.0 - headroom)) if capacity_rps > 0 else math.inf


def _pool_bounds(bounds: Mapping[str, ReplicaBounds]) -> tuple[PoolBounds, ...]:
    return tuple(PoolBounds(pool, bounds[pool].minimum, bounds[pool].maximum) for pool in sorted(bounds))


def stock_limits(services: Iterable[ServiceProblem], stock: Mapping[str, Stock]) -> tuple[StockLimit, ...]:
    """The stock constraints that could bind these services together, sorted by pool and group size.

    Only sizes that some variant has need a limit: what replicas of k GPUs use together is also what those of at least
    j < k use where there are none between, so the limit for k is the smallest one up to k.
    A limit that holds even if every service took all the replicas it could use is left out.
    Neither changes the solution, and services with ample stock are the same problem whatever others hold.
    """
    wanted: dict[tuple[str, int], int] = {}
    for service in services:
        for v, variant in enumerate(service.variants):
            key = (variant.pool, service.gpus[v])
            wanted[key] = wanted.get(key, 0) + service.gpus[v] * service.useful[v]
    limits = []
    for pool, group in sorted(wanted):
        most = sum(gpus for (other, size), gpus in wanted.items() if other == pool and size >= group)
        available = min(gpus for size, gpus in stock[pool].gpus_in_groups_of.items() if size <= group)
        if available < most:
            limits.append(StockLimit(pool, group, available))
    return tuple(limits)


def held_stock(held: Iterable[Mapping[Variant, int]], pools: Iterable[str]) -> dict[tuple[str, int], int]:
    """GPUs that mixes hold in these pools, by (pool, GPUs of a replica)."""
    known = set(pools)
    gpus: dict[tuple[str, int], int] = {}
    for mix in held:
        for variant, count in mix.items():
            if variant.pool in known:
                key = (variant.pool, variant.gpus)
                gpus[key] = gpus.get(key, 0) + variant.gpus * count
    return gpus


def remaining_stock(stock: Mapping[str, Stock], held: Iterable[Mapping[Variant, int]]) -> dict[str, Stock]:
    """The stock that is left when these mixes keep what they hold; nothing is left, not less, where they hold more."""
    gpus = held_stock(held, stock)
    return {
        pool: Stock(
            {
                group: max(0, available - sum(n for (p, size), n in gpus.items() if p == pool and size >= group))
                for group, available in stock[pool].gpus_in_groups_of.items()
            }
        )
        for pool in sorted(stock)
    }


def crowded_pools(stock: Mapping[str, Stock], held: Iterable[Mapping[Variant, int]]) -> set[str]:
    """Known pools that do not hold all these mixes at once."""
    gpus = held_stock(held, stock)
    return {
        pool
        for pool, group in gpus
        if sum(n for (p, size), n in gpus.items() if p == pool and size >= group)
        > min(available for size, available in stock[pool].gpus_in_groups_of.items() if size <= group)
    }
