"""What a plan says: the mix of every service, its price, how good it is, and why.

Every field is a plain value, so that a plan can be compared, printed as a table, and written to a status or as JSON.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from medley_planner.fleet import Variant


class Outcome(enum.Enum):
    """How planning a service ended. Each value is a reason that users can search for."""

    PLANNED = "Planned"
    """Every bucket is served within the objectives and all bounds hold."""
    STOCK_SHORT = "StockShort"
    """The pools do not hold enough GPUs: the mix serves `served_share` of the demand, all that stock allows."""
    CAP_TOO_LOW = "CostCapTooLow"
    """No mix within the price cap serves the demand; `nearest_feasible_cap_usd_per_hour` would do."""
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
    """So many replicas of a variant, what they cost and how much of their capacity the plan uses."""

    variant: Variant
    replicas: int
    gpus: int
    cost_usd_per_hour: float
    utilisation: float


@dataclass(frozen=True)
class BucketShare:
    """The share of a bucket's requests that the replicas of a variant serve: the split a router has to realise."""

    input_tokens: int
    output_tokens: int
    variant: Variant
    share: float
    capacity_rps: float


@dataclass(frozen=True)
class Binding:
    """A constraint that costs money: without it the plan would be cheaper (or would exist).

    `constraint` is the formulation's name for it (`stock`, `cost_cap`, `replicas_max`, `replicas_min`,
    `pool_replicas_max`, `pool_replicas_min`, `demand`); `detail` is a sentence with names and figures.
    """

    constraint: str
    subject: str
    detail: str


@dataclass(frozen=True)
class Alternative:
    """What another fleet would cost: the best of a single variant's GPU type, or the best without a pool of the mix.

    `extra_usd_per_hour` is relative to the chosen mix; None where the alternative cannot serve the demand, with the
    reason in `detail`.
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
        cost_usd_per_hour: Price of `mix`.
        lower_bound_usd_per_hour: Proven: no plan of this service, alone with all stock, costs less.
        gap: (cost − lower bound) / cost; 0 for an empty mix.
        served_share: Share of the demand that `mix` serves within the objectives.
        shares: How buckets are split over variants.
        binding: Constraints that bind.
        alternatives: Other fleets and their price difference, cheapest first.
        rejected: Variants not in the mix, with reasons, sorted by variant.
        capacity_source: Where the capacities come from, by variant: `measured`, `roofline`, or `measured, scaled`.
        nearest_feasible_cap_usd_per_hour: With `CAP_TOO_LOW`: the lowest cap that would do.
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


class SolverStatus(enum.Enum):
    """How the fleet's integer programme ended."""

    OPTIMAL = "Optimal"
    TIME_LIMIT = "TimeLimit"
    HEURISTIC = "Heuristic"
    """The solver gave nothing that passed the check; a greedy plan was used instead."""


@dataclass(frozen=True)
class FleetPlan:
    """The plan of all services together."""

    services: tuple[ServicePlan, ...]
    cost_usd_per_hour: float
    lower_bound_usd_per_hour: float
    gap: float
    status: SolverStatus
    gpus_by_pool: tuple[tuple[str, int], ...] = field(default=())

    def service(self, name: str) -> ServicePlan:
        """The plan of the service with this name; KeyError where there is none."""
        for service_plan in self.services:
            if service_plan.name == name:
                return service_plan
        raise KeyError(name)
