"""What is planned for: services, the pools they may use, and what runs today.

These values are the whole input of a plan.
They are frozen, hold no clock and no cluster object, and compare by value, so that the same fleet gives the same plan.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from medley_planner.catalogue.gpus import GPUType
from medley_planner.catalogue.models import ModelArchitecture, ThroughputPoint
from medley_planner.workload.sizes import SizeHistogram


class Role(enum.StrEnum):
    """Which part of a request a replica computes."""

    SHARED = "shared"
    """The prompt and all output tokens."""
    PREFILL = "prefill"
    """The prompt and the first output token; a decode replica goes on from its cache."""
    DECODE = "decode"
    """The output tokens after the first."""


@dataclass(frozen=True, order=True)
class Parallelism:
    """How a replica's GPUs share the work; a replica has tensor · pipeline · data of them, all on one node.

    Args:
        tensor: GPUs that share every matrix product.
        pipeline: Stages of consecutive layers.
        data: Ranks that attend to requests of their own; with experts, all of a stage's GPUs share them (expert
            parallelism), without, the ranks are whole copies.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1

    @property
    def gpus(self) -> int:
        """GPUs of a replica."""
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        stages = f"/pp{self.pipeline}" if self.pipeline > 1 else ""
        ranks = f"/dp{self.data}" if self.data > 1 else ""
        return f"tp{self.tensor}{stages}{ranks}"


@functools.lru_cache(maxsize=1_024)
def _parallelism(tensor: int, pipeline: int, data: int) -> Parallelism:
    return Parallelism(tensor, pipeline, data)


@dataclass(frozen=True, order=True)
class Variant:
    """One way to run a replica: a pool's GPUs, how they share the work, and which part of it they do."""

    pool: str
    tensor_parallel: int
    pipeline_parallel: int = 1
    data_parallel: int = 1
    role: Role = Role.SHARED

    @classmethod
    def of(cls, pool: str, parallelism: Parallelism, role: Role = Role.SHARED) -> Variant:
        """The variant of this pool's GPUs that share the work like this."""
        return cls(pool, parallelism.tensor, parallelism.pipeline, parallelism.data, role)

    @property
    def parallelism(self) -> Parallelism:
        """How the replica's GPUs share the work."""
        return _parallelism(self.tensor_parallel, self.pipeline_parallel, self.data_parallel)

    @property
    def gpus(self) -> int:
        """GPUs of a replica."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    def __str__(self) -> str:
        part = "" if self.role is Role.SHARED else f"/{self.role}"
        return f"{self.pool}/{self.parallelism}{part}"


@dataclass(frozen=True)
class Stock:
    """How many GPUs of a pool may be used, and how they lie on nodes.

    `gpus_in_groups_of[k]` is Σ over nodes of k·⌊free/k⌋: the GPUs that replicas of k GPUs can use, as none spans nodes.
    With power-of-two sizes the constraints Σ_{g ≥ k} g·n ≤ gpus_in_groups_of[k] for every k are exact.
    """

    gpus_in_groups_of: Mapping[int, int]

    @classmethod
    def from_nodes(cls, free_gpus: tuple[int, ...], *, limit: int | None = None) -> Stock:
        """The stock of nodes with so many free GPUs each, of which at most `limit` may be used in all."""
        groups = {size: sum(size * (free // size) for free in free_gpus) for size in GROUP_SIZES}
        if limit is not None:
            groups = {size: min(gpus, size * (limit // size)) for size, gpus in groups.items()}
        return cls(gpus_in_groups_of=groups)

    @classmethod
    def of(cls, gpus: int, *, gpus_per_node: int = 8) -> Stock:
        """The stock of `gpus` GPUs on as many full nodes as they fill and one partly filled."""
        full, rest = divmod(gpus, gpus_per_node)
        return cls.from_nodes((gpus_per_node,) * full + ((rest,) if rest else ()))

    @property
    def gpus(self) -> int:
        """All GPUs that may be used."""
        return self.gpus_in_groups_of[1]

    def in_groups_of(self, size: int) -> int:
        """The GPUs that replicas of at least `size` GPUs may use together."""
        return self.gpus_in_groups_of[size]


GROUP_SIZES = (1, 2, 4, 8, 16)
"""The numbers of GPUs of a replica that Medley plans with."""


class CapacityType(enum.StrEnum):
    """How a pool's GPUs are paid for, and whether they can be taken away."""

    ON_DEMAND = "OnDemand"
    SPOT = "Spot"
    """Cheaper, and may be taken away at any moment."""
    RESERVED = "Reserved"
    """Paid for whether used or not: using them costs nothing more."""


@dataclass(frozen=True)
class Pool:
    """GPUs of one type at one price, shared by all services.

    Args:
        name: The GPUPool's name.
        gpu: The type of its GPUs.
        price_usd_per_gpu_hour: Price of one GPU for one hour.
        gpus_per_node: GPUs on one node; a replica never spans nodes.
        stock: What services may use now: free, or held by services of this fleet.
        load_time_s: From asking for a replica until it serves: provisioning of the node and loading of the model.
        exhausted: Why nothing more can be had here for now (pods stayed Pending); empty where that is not so.
            `stock` is then only what services hold Ready.
        capacity_type: How the GPUs are paid for.
        interruptions_per_hour: How often a spot replica is taken away, on average; 0 for others.
    """

    name: str
    gpu: GPUType
    price_usd_per_gpu_hour: float
    stock: Stock
    gpus_per_node: int = 8
    load_time_s: float = 0.0
    exhausted: str = ""
    capacity_type: CapacityType = CapacityType.ON_DEMAND
    interruptions_per_hour: float = 0.0


@dataclass(frozen=True)
class Objectives:
    """Latency objectives of a service; None where there is none.

    Args:
        time_per_output_token_s: Time between output tokens after the first.
        time_to_first_token_s: Time from arrival to the first output token.
        time_per_output_token_percentile: Share of the requests that must keep it, in per cent, below 100; None is the
            mean over requests.
        time_to_first_token_percentile: The same for the first token.
    """

    time_per_output_token_s: float | None = None
    time_to_first_token_s: float | None = None
    time_per_output_token_percentile: float | None = None
    time_to_first_token_percentile: float | None = None

    @property
    def at_percentiles(self) -> bool:
        """Whether an objective is at a percentile of requests, not of their mean."""
        per_token = self.time_per_output_token_s is not None and self.time_per_output_token_percentile is not None
        first_token = self.time_to_first_token_s is not None and self.time_to_first_token_percentile is not None
        return per_token or first_token


@dataclass(frozen=True)
class Availability:
    """How a service's replicas must be spread, so that a loss does not take it down.

    Args:
        spot_max_share: At most this share of the replicas are spot, in [0, 1].
        pool_max_share: At most this share of the replicas are in one pool, in (0, 1].
        survivable_share: After the loss of any one spot pool the rest still serves this share of the demand, in [0, 1].
    """

    spot_max_share: float = 1.0
    pool_max_share: float = 1.0
    survivable_share: float = 0.0


@dataclass(frozen=True)
class ReplicaBounds:
    """At least and at most so many replicas; `maximum` None is no upper bound."""

    minimum: int = 0
    maximum: int | None = None


@dataclass(frozen=True)
class Service:
    """One LLM service: what it must serve, within what, and on what it may run.

    Args:
        name: Unique in the fleet, `namespace/name` in a cluster.
        model: Architecture of the model.
        rate_rps: Arrivals, in requests per second.
        sizes: Joint histogram of input and output sizes; its weights add up to 1.
        objectives: Latency objectives.
        measurements: Measured throughput, used before any estimate.
        engine: `vllm`, `sglang` or `custom`: picks measurements that name an engine.
        pools: Names of the pools that may be used; None is all.
        tensor_parallel: Sizes that may be used; empty is all of `GROUP_SIZES` that the pool's nodes hold.
        max_context_tokens: Longest input + output that the engine is configured for; None is the model's own.
        max_cost_usd_per_hour: Price cap; None is no cap.
        replicas: Bounds on all replicas of the service.
        replicas_by_pool: Bounds on the replicas in a pool.
        headroom: Share of every replica's capacity that is kept free, in [0, 1).
        queueing_quantile: Also keep free what random arrivals need, so that with this probability no request waits for
            a place in a batch, in [0, 1); 0 keeps nothing. The share shrinks as replicas grow.
        interarrival_cv: Standard deviation of times between arrivals over their mean; 1 for Poisson arrivals.
        priority: When stock is short, services of higher priority are served first.
        availability: How replicas must be spread.
        pipeline_parallel: Pipeline sizes that may be used.
        data_parallel: Data parallel sizes that may be used.
        disaggregated: Prefill and decode may run on replicas of their own.
        corrections: Live correction factors on capacity, by (GPU type's name, parallelism); 1 where there is none.
        running: Replicas that run (or were asked for) now, by variant.
        pinned: Keep `running` as it is; only account for what it holds.
    """

    name: str
    model: ModelArchitecture
    rate_rps: float
    sizes: SizeHistogram
    objectives: Objectives = Objectives()
    measurements: tuple[ThroughputPoint, ...] = ()
    engine: str = "vllm"
    pools: tuple[str, ...] | None = None
    tensor_parallel: tuple[int, ...] = ()
    max_context_tokens: int | None = None
    max_cost_usd_per_hour: float | None = None
    replicas: ReplicaBounds = ReplicaBounds(minimum=1)
    replicas_by_pool: Mapping[str, ReplicaBounds] = field(default_factory=dict)
    headroom: float = 0.0
    queueing_quantile: float = 0.0
    interarrival_cv: float = 1.0
    priority: int = 0
    availability: Availability = Availability()
    pipeline_parallel: tuple[int, ...] = (1,)
    data_parallel: tuple[int, ...] = (1,)
    disaggregated: bool = False
    corrections: Mapping[tuple[str, Parallelism], float] = field(default_factory=dict)
    running: Mapping[Variant, int] = field(default_factory=dict)
    pinned: bool = False

    def correction(self, gpu: GPUType, parallelism: Parallelism) -> float:
        """The factor on the capacity of such a replica that was learnt live; 1 where nothing was."""
        return self.corrections.get((gpu.name, parallelism), 1.0)

    def may_run(self, variant: Variant) -> bool:
        """Whether the service's own choices of parallelism and role, its pools left aside, allow this variant."""
        return (
            (not self.tensor_parallel or variant.tensor_parallel in self.tensor_parallel)
            and variant.pipeline_parallel in self.pipeline_parallel
            and variant.data_parallel in self.data_parallel
            and (variant.role is Role.SHARED or self.disaggregated)
        )


class Formulation(enum.Enum):
    """Which integer programme decides."""

    MEDLEY = "medley"
    """All services jointly, fractional shares of buckets, shared stock, caps and bounds."""
    MELANGE = "melange"
    """Mélange's own (arXiv 2404.14527): each service alone, binary slices of buckets, no stock and no caps."""


class Method(enum.Enum):
    """How integer programmes are solved. Both give plans of equal cost, within the gap."""

    FAST = "fast"
    """Over replicas alone, with cuts; services that share stock one by one, at prices of what they share."""
    REFERENCE = "reference"
    """One model with all shares, as docs/formulation.md writes it: to compare with."""


@dataclass(frozen=True)
class PlanOptions:
    """How to plan; every field has a default that suits production.

    Args:
        formulation: Which integer programme decides.
        slice_factor: Mélange's slices per bucket; used in that mode only.
        time_limit_s: Bound on the solver's time; the best plan so far is used, its gap recorded.
        relative_gap: Proven distance from the optimum at which the solver may stop.
        shared_gap: The same for services that compete for what does not suffice for all, where they are too many for
            one programme.
        switching_horizon_s: Time over which the cost of a change (both replicas running while the new one loads) must
            pay for itself; 0 ignores what runs today.
        explain: Also say why: what binds, what else there is.
        method: How integer programmes are solved.
    """

    formulation: Formulation = Formulation.MEDLEY
    slice_factor: int = 4
    time_limit_s: float = 30.0
    relative_gap: float = 1e-6
    shared_gap: float = 0.005
    switching_horizon_s: float = 3600.0
    explain: bool = True
    method: Method = Method.FAST


@dataclass(frozen=True)
class FleetState:
    """Everything that a plan depends on.

    Args:
        services: The services, in any order.
        pools: The pools, in any order.
        max_cost_usd_per_hour: Price cap for all services together; None is no cap.
    """

    services: tuple[Service, ...]
    pools: tuple[Pool, ...]
    max_cost_usd_per_hour: float | None = None
