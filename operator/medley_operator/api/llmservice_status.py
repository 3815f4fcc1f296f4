"""The status of an LLMService: its plan with reasons, its replicas, and the transition under way."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medley_operator.api.base import ATOMIC_LIST, Integer, Number, StatusModel, map_list
from medley_operator.api.conditions import Condition
from medley_planner.fleet import Parallelism, Role, Variant

Timestamp = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]
Sentence = Annotated[str, Field(max_length=4096)]
Word = Annotated[str, Field(max_length=253)]
ReplicasByDeployment = Annotated[dict[Word, Annotated[Integer, Field(ge=0)]], Field(max_length=128)]


class VariantRow(StatusModel):
    """A row that is about one variant."""

    pool: Word
    """Name of the GPUPool."""
    tensor_parallel: Integer = Field(ge=1, le=16)
    """GPUs of one replica that share every matrix product."""
    pipeline_parallel: Integer = Field(1, ge=1, le=16)
    """Stages of its pipeline."""
    data_parallel: Integer = Field(1, ge=1, le=16)
    """Its data parallel ranks."""
    role: Literal["prefill", "decode"] | None = None
    """The part of requests that it computes: the prompt, or the output tokens after the first. Default: all of it."""

    @property
    def parallelism(self) -> Parallelism:
        """How the replica's GPUs share the work."""
        return Parallelism(self.tensor_parallel, self.pipeline_parallel, self.data_parallel)

    @property
    def variant(self) -> Variant:
        """The variant."""
        return Variant.of(self.pool, self.parallelism, Role.SHARED if self.role is None else Role(self.role))


class PlanEntry(VariantRow):
    """Replicas of one variant."""

    gpu: Word
    """Type of its GPUs."""
    replicas: Integer = Field(ge=0)
    """Number of replicas."""
    gpus: Integer = Field(ge=0)
    """GPUs of all these replicas."""
    cost_per_hour: Number
    """What all these replicas add to the bill in one hour: their price, 0 where they are reserved."""
    reserved_per_hour: Number | None = None
    """Where they are reserved: their price for one hour, paid whether they are used or not."""
    interruption_cost_per_hour: Number | None = None
    """What interruptions of these replicas are expected to cost per hour. It decides, but is no part of the price."""
    utilisation: Number
    """Share of these replicas' capacity that the workload uses."""


class PlanBinding(StatusModel):
    """A constraint without which the plan would be cheaper."""

    constraint: Word
    """The constraint's name, as in the formulation."""
    subject: Word
    """What it is about, such as a pool."""
    detail: Sentence
    """What it costs, as a sentence."""
    saves_per_hour: Number | None = None
    """How much less the plan would cost per hour without it, expected interruptions included."""


class PlanAlternative(StatusModel):
    """Another mix, and what it would cost."""

    name: Sentence
    """What the other mix is."""
    cost_per_hour: Number | None = None
    """Its price for one hour; absent where it cannot serve the workload."""
    extra_per_hour: Number | None = None
    """How much more it costs than the plan; absent where it cannot serve the workload."""
    detail: Sentence
    """What it consists of, or why it cannot serve."""


class PlanRejection(VariantRow):
    """A variant that is not in the mix, and why."""

    reason: Word
    """Why, as one word to search for."""
    detail: Sentence
    """Why, with figures."""


class PlanCapacitySource(VariantRow):
    """Where the capacity of a variant comes from."""

    source: Word
    """measured, roofline, or measured and scaled."""


class PlanStatus(StatusModel):
    """A plan: which replicas, what they cost, how good the plan is, and why."""

    mix: str = Field(max_length=4096)
    """The mix in short, such as `2×l4 + 1×a100/tp2`."""
    entries: tuple[PlanEntry, ...] = Field(
        (), max_length=320, json_schema_extra=map_list("pool", "tensor_parallel", "pipeline_parallel", "data_parallel")
    )
    """Replicas by pool and parallelism."""
    cost_per_hour: Number
    """What the mix adds to the bill in one hour: its price without what is reserved."""
    reserved_per_hour: Number | None = None
    """Price of its reserved replicas for one hour, paid whether they are used or not."""
    interruption_cost_per_hour: Number | None = None
    """What interruptions of Spot replicas are expected to cost per hour. It decides, but is no part of the price."""
    lower_bound: Number
    """Proven: no mix of this service costs less per hour, interruptions included."""
    gap_percent: Number
    """How far the mix is at most from the cheapest possible, in percent of what it costs, interruptions included."""
    outcome: Word
    """How planning ended: Planned, StockShort, FleetCostCapTooLow, CostCapTooLow, SpotShareTooLow, PoolShareTooLow,
    SurvivableShareTooHigh, ReplicaBoundsTooTight, NoGPUFits, Pinned or SolverTimeLimit."""
    reason: Sentence
    """Why this mix, as a sentence."""
    served_percent: Number = 100.0
    """Share of the workload that the mix serves within the objectives, in percent."""
    binding: tuple[PlanBinding, ...] = Field((), max_length=256, json_schema_extra=ATOMIC_LIST)
    """Constraints without which the plan would be cheaper."""
    alternatives: tuple[PlanAlternative, ...] = Field((), max_length=256, json_schema_extra=ATOMIC_LIST)
    """Other mixes and what they would cost, cheapest first."""
    rejected: tuple[PlanRejection, ...] = Field((), max_length=320, json_schema_extra=ATOMIC_LIST)
    """Variants that are not in the mix, and why."""
    capacity_sources: tuple[PlanCapacitySource, ...] = Field((), max_length=320, json_schema_extra=ATOMIC_LIST)
    """Where the capacities come from."""
    model_source: Annotated[str, Field(max_length=320)] | None = None
    """Where the model's facts come from: the ModelProfile, or the catalogue where there is none."""
    nearest_feasible_cost_cap: Number | None = None
    """Where the price cap is too low: the lowest that would do."""
    nearest_feasible_share: Number | None = None
    """Where a share of replicas or of the requests cannot be kept: the nearest that can."""


class ReplicasStatus(StatusModel):
    """Counts of the service's replicas."""

    summary: Word
    """Serving and desired replicas, as `3/3`."""
    desired: Integer = Field(ge=0)
    """Replicas that are to be there."""
    ready: Integer = Field(ge=0)
    """Replicas whose containers are ready."""
    serving: Integer = Field(ge=0)
    """Replicas that get requests."""
    draining: Integer = Field(ge=0)
    """Replicas that finish their last requests."""


class Transition(StatusModel):
    """A change of replicas that is under way. Kept here so that a restarted operator goes on with it."""

    id: Word
    """Names this transition; draining pods carry it."""
    phase: Literal["Adding", "Draining", "Removing"]
    """Adding: new replicas start. Draining: surplus replicas finish their requests. Removing: they go."""
    reason: Word
    """Why, as one word to search for."""
    message: Sentence = ""
    """What is going on, as a sentence."""
    started_at: Timestamp
    """When it began."""
    phase_started_at: Timestamp | None = None
    """When its present phase began."""
    from_: ReplicasByDeployment = Field(default_factory=dict, alias="from")
    """Replicas by Deployment before."""
    to: ReplicasByDeployment = Field(default_factory=dict)
    """Replicas by Deployment when it is done."""


class LastTransition(StatusModel):
    """The last change of replicas that ended."""

    id: Word
    """Named this transition."""
    reason: Word
    """Why, as one word to search for."""
    outcome: Word
    """How it ended: Completed, or Superseded by a later one."""
    message: Sentence = ""
    """What was done, as a sentence."""
    started_at: Timestamp
    """When it began."""
    ended_at: Timestamp
    """When it ended."""


class Candidate(StatusModel):
    """A cheaper mix that must stay cheaper for a while before replicas are moved."""

    mix: str = Field(max_length=4096)
    """The cheaper mix."""
    cost_per_hour: Number
    """Its price for one hour."""
    since: Timestamp
    """Since when some cheaper mix has been there."""


class LLMServiceStatus(StatusModel):
    """What the operator planned and did."""

    observed_generation: Integer | None = Field(None, ge=0)
    """The generation of the spec that this status is about."""
    conditions: tuple[Condition, ...] = Field((), max_length=16, json_schema_extra=map_list("type"))
    """Ready, Planned, CapacityAvailable and Progressing."""
    plan: PlanStatus | None = None
    """The plan that is acted on."""
    planned_generation: Integer | None = Field(None, ge=0)
    """The generation of the spec that `plan` was made for."""
    recommended: PlanStatus | None = None
    """The plan that is not acted on: in mode Recommend, or while it cannot be met."""
    candidate: Candidate | None = None
    """A cheaper mix that must stay cheaper for a while before replicas are moved."""
    replicas: ReplicasStatus | None = None
    """Counts of replicas."""
    transition: Transition | None = None
    """The change that is under way."""
    last_transition: LastTransition | None = None
    """The last change that ended."""
    endpoint: str | None = Field(None, max_length=512)
    """URL of the service within the cluster."""
