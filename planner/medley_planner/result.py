"""What a plan says: the mix of every service, its price, how good it is, and why.

Every field is a plain value, so that a plan can be compared, printed as a table, and written to a status or as JSON.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from medley_planner.fleet import Role, Variant


class Outcome(enum.Enum):
    """How planning a service ended. Each value is a reason that users can search for."""

    PLANNED = "Planned"
    """Every bucket is served within the objectives and all bounds hold."""
    STOCK_SHORT = "StockShort"
    """The pools do not hold enough GPUs: the mix serves `served_share` of the demand, all that stock allows."""
    CAP_TOO_LOW = "CostCapTooLow"
    """No mix within the price cap serves the demand; `nearest_feasible_cap_usd_per_hour` would do."""
    FLEET_CAP_TOO_LOW = "FleetCostCapTooLow"
    """The fleet's price cap does not pay for all: the mix serves `served_share` of the demand, all that is left for."""
    SPOT_SHARE_TOO_LOW = "SpotShareTooLow"
    """No mix with so few spot replicas serves the demand; `nearest_feasible_share` would do."""
    POOL_SHARE_TOO_LOW = "PoolShareTooLow"
    """No mix spread over pools like that serves the demand; `nearest_feasible_share` would do."""
    SURVIVABLE_SHARE_TOO_HIGH = "SurvivableShareTooHigh"
    """No mix serves that share of the demand after the loss of a spot pool; `nearest_feasible_share` can be had."""
    REPLICA_BOUNDS = "ReplicaBoundsTooTight"
    """The bounds on replicas exclude every mix that serves the demand."""
    NO_GPU_FITS = "NoGPUFits"
    """On every allowed pool some request size cannot be served: memory, context, objectives; `rejected` says which."""
    PINNED = "Pinned"
    """The service keeps what runs; nothing was decided."""
    TIME_LIMIT = "SolverTimeLimit"
    """The solver's time ended before it found any plan; the service keeps what runs."""


@dataclass(frozen=True)
class MixEntry:
    """So many replicas of a variant, what they cost and how much of their capacity the plan uses.

    Args:
        variant: The variant.
        replicas: How many.
        gpus: GPUs of all of them.
        cost_usd_per_hour: What they add to the bill: their price, 0 where they are reserved.
        utilisation: Share of their capacity that is used.
        reserved_usd_per_hour: Where they are reserved: their price, which is paid whether they are used or not.
        risk_usd_per_hour: What their interruptions are expected to cost; decides, but is no price.
    """

    variant: Variant
    replicas: int
    gpus: int
    cost_usd_per_hour: float
    utilisation: float
    reserved_usd_per_hour: float = 0.0
    risk_usd_per_hour: float = 0.0


@dataclass(frozen=True)
class BucketShare:
    """The share of a bucket's requests that the replicas of a variant serve: the split a router has to realise."""

    input_tokens: int
    output_tokens: int
    variant: Variant
    share: float
    capacity_rps: float

    @property
    def part(self) -> Role:
        """The part of these requests that is served: all of it, the prompt, or the output tokens after the first."""
        return self.variant.role


@dataclass(frozen=True)
class Fallback:
    """What is left after the loss of a spot pool still serves: `survivable_share` of the requests of every size.

    Args:
        pool: The pool that is lost.
        served_share: Share of the demand that the rest serves, within the objectives.
        shares: How the rest splits that; shares of a bucket add up to `served_share`.
    """

    pool: str
    served_share: float
    shares: tuple[BucketShare, ...]


@dataclass(frozen=True)
class Binding:
    """A constraint that costs money: without it the plan would be cheaper (or would exist).

    Args:
        constraint: The formulation's name for it: `stock`, `cost_cap`, `fleet_cost_cap`, `replicas_max`,
            `replicas_min`, `pool_replicas_max`, `pool_replicas_min`, `spot_share`, `pool_share`, `survivable`,
            `headroom`, `queueing` or `demand`.
        subject: The field, pool or variant that it is about.
        detail: A sentence with names and figures.
        saves_usd_per_hour: How much less the plan would cost without it, interruptions included; None where that is
            not what is told.
    """

    constraint: str
    subject: str
    detail: str
    saves_usd_per_hour: float | None = None


@dataclass(frozen=True)
class Alternative:
    """What another fleet would cost: the best of a pool alone, the best without a pool of the mix, without spot pools,
    or with requests served whole (or split into prompt and answer) only.

    `cost_usd_per_hour` is what it adds to the bill, `extra_usd_per_hour` how much more that is than the chosen mix
    adds; None where the alternative cannot serve the demand, with the reason in `detail`.
    """

    name: str
    mix: tuple[MixEntry, ...]
    cost_usd_per_hour: float | None
    extra_usd_per_hour: float | None
    detail: str


@dataclass(frozen=True)
class Rejection:
    """A variant that is not in the mix, and why: `MemoryTooSmall`, `ContextTooLong`, `ObjectiveNotMet`, `NoStock`,
    `PoolExhausted`, `NotAllowed`, `CostsMore`."""

    variant: Variant
    reason: str
    detail: str


@dataclass(frozen=True)
class ServicePlan:
    """The plan of one service.

    Args:
        name: The service's name.
        outcome: How planning ended. Where it is neither `PLANNED` nor `STOCK_SHORT`, `mix` is what runs today.
        reason: One sentence for people, with figures.
        mix: Replicas by variant, sorted by variant, none with zero replicas.
        cost_usd_per_hour: What `mix` adds to the bill: its price without what is reserved.
        lower_bound_usd_per_hour: Proven: no plan of this service, alone with all stock, costs less, what interruptions
            are expected to cost included.
        gap: (expected cost − lower bound) / expected cost; 0 for an empty mix.
        served_share: Share of the demand that `mix` serves within the objectives.
        shares: How buckets are split over variants.
        binding: Constraints that bind.
        alternatives: Other fleets and their price difference, cheapest first.
        rejected: Variants not in the mix, with reasons, sorted by variant.
        capacity_source: Where the capacities come from, by variant: `measured`, `roofline`, or `measured, scaled`.
        nearest_feasible_cap_usd_per_hour: With `CAP_TOO_LOW`: the lowest cap that would do.
        nearest_feasible_share: With `SPOT_SHARE_TOO_LOW` and `POOL_SHARE_TOO_LOW`: the lowest share that would do, in
            whole per cent; with `SURVIVABLE_SHARE_TOO_HIGH`: the highest that can be had.
        reserved_usd_per_hour: Price of the reserved part of `mix`, which is paid whether it is used or not.
        risk_usd_per_hour: What interruptions of spot replicas are expected to cost; decides, but is no price.
        fallbacks: For each spot pool of the mix whose loss must be survived, how the rest serves then.
    """

    name: str
    outcome: Outcome
    reason: str
    mix: tuple[MixEntry, ...] = ()
    cost_usd_per_hour: float = 0.0
    lower_bound_usd_per_hour: float = 0.0
    gap: float = 0.0
    served_share: float = 1.0
    shares: tuple[BucketShare, ...] = ()
    binding: tuple[Binding, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    capacity_source: tuple[tuple[Variant, str], ...] = ()
    nearest_feasible_cap_usd_per_hour: float | None = None
    nearest_feasible_share: float | None = None
    reserved_usd_per_hour: float = 0.0
    risk_usd_per_hour: float = 0.0
    fallbacks: tuple[Fallback, ...] = ()

    @property
    def expected_usd_per_hour(self) -> float:
        """What decides between mixes: the cost, and what interruptions are expected to cost on top."""
        return self.cost_usd_per_hour + self.risk_usd_per_hour


class SolverStatus(enum.Enum):
    """How the fleet's integer programme ended."""

    OPTIMAL = "Optimal"
    TIME_LIMIT = "TimeLimit"
    HEURISTIC = "Heuristic"
    """The solver gave nothing that passed the check; a greedy plan was used instead."""


@dataclass(frozen=True)
class ShadowPrice:
    """What one more GPU of a pool of which nothing is left would be worth to the fleet.

    Args:
        pool: The pool.
        usd_per_gpu_hour: What the fleet would pay less; with `served_rps`, what it pays less or (negative) more.
        served_rps: Requests per second more that would be served, where stock is short.
        detail: The same as a sentence.
    """

    pool: str
    usd_per_gpu_hour: float
    served_rps: float
    detail: str


@dataclass(frozen=True)
class FleetPlan:
    """The plan of all services together.

    Args:
        services: Their plans, sorted by name.
        cost_usd_per_hour: What all mixes together add to the bill: what the fleet's price cap is on.
        lower_bound_usd_per_hour: Proven: no plan costs less, what interruptions are expected to cost included.
        gap: (expected cost − lower bound) / expected cost.
        status: How the solver ended.
        gpus_by_pool: GPUs in use by pool, sorted.
        reserved_usd_per_hour: Price of the reserved GPUs in use, which are paid for whether they are used or not.
        risk_usd_per_hour: What interruptions of spot replicas are expected to cost.
        nearest_feasible_cap_usd_per_hour: Where the fleet's price cap is too low: the lowest that would do.
        shadow_prices: What one more GPU would be worth, by pool of which nothing is left, sorted; without pools where
            it would be worth nothing. Looked for where plans are explained, and where many services compete.
    """

    services: tuple[ServicePlan, ...]
    cost_usd_per_hour: float
    lower_bound_usd_per_hour: float
    gap: float
    status: SolverStatus
    gpus_by_pool: tuple[tuple[str, int], ...] = field(default=())
    reserved_usd_per_hour: float = 0.0
    risk_usd_per_hour: float = 0.0
    nearest_feasible_cap_usd_per_hour: float | None = None
    shadow_prices: tuple[ShadowPrice, ...] = ()

    @property
    def expected_usd_per_hour(self) -> float:
        """What decides between plans: the cost, and what interruptions are expected to cost on top."""
        return self.cost_usd_per_hour + self.risk_usd_per_hour

    def service(self, name: str) -> ServicePlan:
        """The plan of the service with this name; KeyError where there is none."""
        for service_plan in self.services:
            if service_plan.name == name:
                return service_plan
        raise KeyError(name)
