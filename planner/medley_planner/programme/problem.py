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

import numpy as np
import numpy.typing as npt

from medley_planner.fleet import Availability, Role, Stock, Variant
from medley_planner.programme.headroom import Queue, Step, replicas_for, steps, usable_by_steps, usable_replicas

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
class CountRow:
    """A linear constraint on one service's replicas: lower ≤ Σ_v weights[v]·n[v] ≤ upper.

    Args:
        constraint: Its name in docs/formulation.md.
        subject: The pool that it concerns; empty where it concerns all.
        weights: By variant.
        lower: None is no lower bound. Only minima of replicas have one, and only they give way where stock is short.
        upper: None is no upper bound.
    """

    constraint: str
    subject: str
    weights: tuple[float, ...]
    lower: float | None = None
    upper: float | None = None

    def holds(self, replicas: Sequence[int]) -> bool:
        """Whether so many replicas by variant keep it."""
        value = math.fsum(weight * count for weight, count in zip(self.weights, replicas, strict=True))
        above = self.lower is None or value >= self.lower - LOAD_TOLERANCE
        return above and (self.upper is None or value <= self.upper + LOAD_TOLERANCE)


@dataclass(frozen=True)
class ServiceProblem:
    """One service in figures.

    Args:
        variants: v, sorted; the same order in all of the following.
        gpus: g[v], GPUs of a replica.
        prices: c[v], USD per hour of a replica as it decides: what it adds to the bill and what its interruptions are
            expected to cost.
        billed: d[v], USD per hour that a replica adds to the bill: its price, 0 where it is reserved. Caps are on it.
        switching: w[v], USD per hour that one replica more than `running` costs on top, to pay for its loading.
        running: r[v], replicas that run.
        rates: λ[b], requests per second of a bucket; all positive.
        loads: ℓ[b][v] = λ[b] / (μ[b,v] · (1 − headroom)): replicas of v that serve the bucket; infinite where v cannot.
        buckets: Index of each bucket in the service's histogram.
        cost_cap: Highest price of the mix, USD per hour; None is no cap.
        replicas_min: Fewest replicas in all.
        replicas_max: Most replicas in all; None is no bound.
        pool_bounds: Bounds by pool, sorted by pool.
        availability: How replicas must be spread.
        spot_pools: Pools of `variants` that may be taken away, sorted.
        queues: How requests wait for replicas of v; empty where nothing is kept free for that.
        priority: Where stock is short, services of higher priority are served first.
    """

    variants: tuple[Variant, ...]
    gpus: tuple[int, ...]
    prices: tuple[float, ...]
    billed: tuple[float, ...]
    switching: tuple[float, ...]
    running: tuple[int, ...]
    rates: tuple[float, ...]
    loads: tuple[tuple[float, ...], ...]
    buckets: tuple[int, ...]
    cost_cap: float | None
    replicas_min: int
    replicas_max: int | None
    pool_bounds: tuple[PoolBounds, ...]
    availability: Availability
    spot_pools: tuple[str, ...] = ()
    queues: tuple[Queue, ...] = ()
    priority: int = 0

    def __hash__(self) -> int:
        """Cheap and good enough to tell problems apart; equality compares everything."""
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.variants, self.prices, self.running, self.rates, self.cost_cap, self.loads[:1]))

    def cost(self, replicas: Sequence[int]) -> float:
        """USD per hour of so many replicas by variant, as it decides: interruptions included."""
        return math.fsum(price * count for price, count in zip(self.prices, replicas, strict=True))

    def bill(self, replicas: Sequence[int]) -> float:
        """USD per hour that so many replicas by variant add to the bill: what caps are on."""
        return math.fsum(price * count for price, count in zip(self.billed, replicas, strict=True))

    def switching_cost(self, replicas: Sequence[int]) -> float:
        """USD per hour that loading the replicas beyond `running` costs."""
        added = (max(0, count - runs) for count, runs in zip(replicas, self.running, strict=True))
        return math.fsum(weight * more for weight, more in zip(self.switching, added, strict=True))

    @functools.cached_property
    def rows(self) -> tuple[CountRow, ...]:
        """The constraints on numbers of replicas: bounds, the cap and the shares of spot and of every pool."""
        ones = (1.0,) * len(self.variants)
        rows = [CountRow("replicas_min", "", ones, lower=self.replicas_min)] if self.replicas_min > 0 else []
        if self.replicas_max is not None:
            rows.append(CountRow("replicas_max", "", ones, upper=self.replicas_max))
        for bounds in self.pool_bounds:
            here = self._in_pools((bounds.pool,))
            if bounds.minimum > 0:
                rows.append(CountRow("pool_replicas_min", bounds.pool, here, lower=bounds.minimum))
            if bounds.maximum is not None:
                rows.append(CountRow("pool_replicas_max", bounds.pool, here, upper=bounds.maximum))
        if self.cost_cap is not None:
            rows.append(CountRow("cost_cap", "", self.billed, upper=self.cost_cap))
        spot_share, pool_share = self.availability.spot_max_share, self.availability.pool_max_share
        if spot_share < 1.0 and self.spot_pools:
            weights = tuple(spot - spot_share for spot in self._in_pools(self.spot_pools))
            rows.append(CountRow("spot_share", "", weights, upper=0.0))
        if pool_share < 1.0:
            for pool in sorted({variant.pool for variant in self.variants}):
                weights = tuple(here - pool_share for here in self._in_pools((pool,)))
                rows.append(CountRow("pool_share", pool, weights, upper=0.0))
        return tuple(rows)

    @functools.cached_property
    def parts(self) -> tuple[tuple[int, ...], ...]:
        """For each part of a request, the variants that compute it: one part, or prompt and output tokens where some
        variant computes only one of them."""
        roles = [variant.role for variant in self.variants]
        if all(role is Role.SHARED for role in roles):
            return (tuple(range(len(roles))),)
        return tuple(
            tuple(v for v, role in enumerate(roles) if role in (Role.SHARED, part))
            for part in (Role.PREFILL, Role.DECODE)
        )

    @functools.cached_property
    def losses(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The spot pools whose loss must be survived, each with the variants that are left."""
        if self.availability.survivable_share <= 0.0:
            return ()
        return tuple(
            (pool, tuple(v for v, variant in enumerate(self.variants) if variant.pool != pool))
            for pool in self.spot_pools
        )

    def usable(self, v: int, replicas: int) -> float:
        """What so many replicas of v can be loaded with together, in replicas."""
        return usable_replicas(replicas, self.queues[v]) if self.queues else float(replicas)

    def steps(self, v: int) -> tuple[Step, ...]:
        """The same as steps, up to the replicas that do all that v can do; only with queues."""
        return steps(self.queues[v], self.fewest(v))

    @functools.cached_property
    def usable_by_steps(self) -> tuple[npt.NDArray[np.float64], ...]:
        """By variant: what 0, 1, … `useful` replicas can be loaded with by the steps, never more than `usable`."""
        if not self.queues:
            return tuple(np.arange(most + 1, dtype=np.float64) for most in self.useful)
        return tuple(
            usable_by_steps(queue, self.fewest(v), most)
            for v, (queue, most) in enumerate(zip(self.queues, self.useful, strict=True))
        )

    def keeps_rows(self, replicas: Sequence[int]) -> bool:
        """Whether so many replicas by variant keep bounds, cap and shares."""
        return all(row.holds(replicas) for row in self.rows)

    def _in_pools(self, pools: Sequence[str]) -> tuple[float, ...]:
        return tuple(float(variant.pool in pools) for variant in self.variants)

    @functools.cached_property
    def useful(self) -> tuple[int, ...]:
        """More replicas of v than this are never better: for all the demand that v can serve, lower bounds, and shares
        of all replicas, which more replicas of one kind allow more of another."""
        needed = [self._needed(v) for v in range(len(self.variants))]
        shares = (self.availability.spot_max_share, self.availability.pool_max_share)
        least = min((share for share in shares if 0.0 < share < 1.0), default=1.0)
        beside = math.ceil(sum(needed) / least) if least < 1.0 else 0
        return tuple(most + beside for most in needed)

    def _needed(self, v: int) -> int:
        pool = self.variants[v].pool
        in_pool = (bounds.minimum for bounds in self.pool_bounds if bounds.pool == pool)
        return self.fewest(v) + max(self.replicas_min, *in_pool, 0)

    def fewest(self, v: int) -> int:
        """Replicas of v that do all of the demand that v can serve."""
        return self._fewest[v]

    @functools.cached_property
    def _fewest(self) -> tuple[int, ...]:
        columns = zip(*self.loads, strict=True) if self.loads else ((),) * len(self.variants)
        totals = [math.fsum(load for load in column if load < math.inf) - LOAD_TOLERANCE for column in columns]
        if self.queues:
            return tuple(replicas_for(total, queue) for total, queue in zip(totals, self.queues, strict=True))
        return tuple(math.ceil(total) for total in totals)

    def only(self, keep: Iterable[int]) -> ServiceProblem:
        """The same problem with these variants only, by index."""
        kept = sorted(keep)
        return replace(
            self,
            variants=tuple(self.variants[v] for v in kept),
            gpus=tuple(self.gpus[v] for v in kept),
            prices=tuple(self.prices[v] for v in kept),
            billed=tuple(self.billed[v] for v in kept),
            switching=tuple(self.switching[v] for v in kept),
            running=tuple(self.running[v] for v in kept),
            loads=tuple(tuple(load[v] for v in kept) for load in self.loads),
            spot_pools=tuple(pool for pool in self.spot_pools if any(self.variants[v].pool == pool for v in kept)),
            queues=tuple(self.queues[v] for v in kept) if self.queues else (),
        )

    def fresh(self) -> ServiceProblem:
        """The same problem where nothing runs yet."""
        return self._fresh

    @functools.cached_property
    def _fresh(self) -> ServiceProblem:
        zeros = (0,) * len(self.variants)
        if self.running == zeros and not any(self.switching):
            return self
        return replace(self, running=zeros, switching=tuple(0.0 for _ in zeros))


@dataclass(frozen=True)
class StockLimit:
    """The constraint `stock[pool,k]`: replicas of at least `group` GPUs in `pool` use at most `gpus` GPUs together."""

    pool: str
    group: int
    gpus: int

    @property
    def most(self) -> float:
        """The right-hand side: GPUs."""
        return float(self.gpus)

    def weights(self, service: ServiceProblem) -> tuple[float, ...]:
        """GPUs under this limit that a replica uses, by variant."""
        return tuple(
            float(gpus) if variant.pool == self.pool and gpus >= self.group else 0.0
            for variant, gpus in zip(service.variants, service.gpus, strict=True)
        )

    def used_by(self, service: ServiceProblem, replicas: Sequence[int]) -> int:
        """GPUs under this limit that so many replicas use."""
        return sum(
            gpus * count
            for variant, gpus, count in zip(service.variants, service.gpus, replicas, strict=True)
            if variant.pool == self.pool and gpus >= self.group
        )


@dataclass(frozen=True)
class CostLimit:
    """The constraint `fleet_cost_cap`: all services together add at most so many USD per hour to the bill."""

    usd_per_hour: float

    @property
    def most(self) -> float:
        """The right-hand side: USD per hour."""
        return self.usd_per_hour

    def weights(self, service: ServiceProblem) -> tuple[float, ...]:
        """USD per hour that a replica adds to the bill, by variant."""
        return service.billed

    def used_by(self, service: ServiceProblem, replicas: Sequence[int]) -> float:
        """USD per hour that so many replicas add to the bill."""
        return service.bill(replicas)


SharedLimit = StockLimit | CostLimit
"""A constraint that services share: Σ_s Σ_v weights(s)[v]·n[s,v] ≤ most. Its dual is a price on what it limits."""


@dataclass(frozen=True)
class FleetProblem:
    """Services that share stock, and money where the fleet has a price cap."""

    services: tuple[ServiceProblem, ...]
    stock: tuple[StockLimit, ...]
    cost_limit: CostLimit | None = None

    @property
    def shared(self) -> tuple[SharedLimit, ...]:
        """All constraints that the services share."""
        return self.stock if self.cost_limit is None else (*self.stock, self.cost_limit)


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
