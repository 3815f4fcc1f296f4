"""GPUPool: GPUs of one type, at one price, that LLM services may use."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from medley_operator.api.base import (
    ATOMIC_LIST,
    DNS_LABEL,
    ApiModel,
    Integer,
    LabelKey,
    LabelValue,
    Number,
    Rule,
    StatusModel,
    map_list,
)
from medley_operator.api.conditions import Condition
from medley_operator.api.metadata import ObjectMeta

MINIMUM_PENDING_DEADLINE_S = 600


def _figures_given(gpu: GPUSpec) -> int:
    figures = (gpu.memory_gib, gpu.memory_bandwidth_gbps, gpu.teraflops)
    return sum(figure is not None for figure in figures)


class GPUSpec(ApiModel):
    """A type of GPU: a name of Medley's catalogue, or a name of your own with its figures."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.memoryGiB) == has(self.memoryBandwidthGBps) && has(self.memoryGiB) == has(self.teraflops)",
            message="memoryGiB, memoryBandwidthGBps and teraflops must be given together, or none of them "
            "for a type in the catalogue",
            holds=lambda gpu: _figures_given(gpu) in {0, 3},
        ),
    )

    type: str = Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
    """Name of the GPU type, such as L4, A10G, A100-80GB or H100-80GB. One that is not in the catalogue needs the
    figures below."""
    memory_gib: Number | None = Field(None, alias="memoryGiB", gt=0, le=4096)
    """Memory of one GPU, in GiB. Overrides the catalogue."""
    memory_bandwidth_gbps: Number | None = Field(None, alias="memoryBandwidthGBps", gt=0, le=1_000_000)
    """Memory bandwidth of one GPU, in 10⁹ bytes per second. Overrides the catalogue."""
    teraflops: Number | None = Field(None, gt=0, le=1_000_000)
    """Dense (not sparse) 16-bit throughput of one GPU, in 10¹² operations per second. Overrides the catalogue."""

    @property
    def has_figures(self) -> bool:
        """Whether the figures are given here, so that the catalogue is not needed."""
        return self.memory_gib is not None


class Toleration(ApiModel):
    """A toleration, as in a pod."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.operator != 'Exists' || !has(self.value) || self.value == ''",
            message="value must be empty where operator is Exists",
            holds=lambda toleration: toleration.operator != "Exists" or not toleration.value,
        ),
        Rule(
            cel="(has(self.key) && self.key != '') || self.operator == 'Exists'",
            message="operator must be Exists where key is empty",
            holds=lambda toleration: bool(toleration.key) or toleration.operator == "Exists",
        ),
        Rule(
            cel="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            message="tolerationSeconds needs effect NoExecute",
            holds=lambda toleration: toleration.toleration_seconds is None or toleration.effect == "NoExecute",
        ),
    )

    key: LabelKey | None = None
    """Key of the taint. Empty, with operator Exists, is every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """How the value is compared: Equal, or Exists for any value."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Empty is every effect."""
    toleration_seconds: Integer | None = Field(None, ge=0, le=31_536_000)
    """How long a NoExecute taint is tolerated, in seconds."""


class Exhaustion(ApiModel):
    """When a pool counts as exhausted, and for how long."""

    pending_deadline_seconds: Integer | None = Field(None, ge=1, le=86_400)
    """Pods that stay Pending for so long mark the pool exhausted. Default: the larger of 600 and twice
    provisioningSeconds."""
    retry_after_seconds: Integer = Field(600, ge=1, le=604_800)
    """An exhausted pool is tried again after so many seconds."""


class GPUPoolSpec(ApiModel):
    """GPUs of one type, at one price."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.capacityType == 'Spot' || self.interruptionsPerHour == 0.0",
            message="must be 0 unless capacityType is Spot",
            field="interruptionsPerHour",
            holds=lambda spec: spec.capacity_type == "Spot" or spec.interruptions_per_hour == 0,
        ),
    )

    gpu: GPUSpec
    """The type of the pool's GPUs."""
    gpus_per_node: Integer = Field(ge=1, le=64)
    """GPUs on one node. A replica never spans nodes, so this bounds its tensor parallelism."""
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] = Field(default_factory=dict)
    """Labels of the pool's nodes, for example nvidia.com/gpu.product. A node counts in one pool only: the one that
    selects it by the most labels, between equals the first by name."""
    tolerations: tuple[Toleration, ...] = Field((), max_length=32, json_schema_extra=ATOMIC_LIST)
    """Tolerations that pods need on the pool's nodes."""
    resource_name: str = Field(
        "nvidia.com/gpu",
        min_length=3,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
    )
    """Name of the GPUs as a resource of the node."""
    price_per_gpu_hour: Number = Field(alias="pricePerGPUHour", ge=0, le=100_000)
    """Price of one GPU for one hour, in any currency that all pools share. Of Reserved capacity, what it costs whether
    it is used or not: plans use it as if it were free, and tell its price apart."""
    capacity_type: Literal["OnDemand", "Spot", "Reserved"] = "OnDemand"
    """How the GPUs are paid for. Spot: they may be taken away at any moment. Reserved: they are paid for whether they
    are used or not."""
    interruptions_per_hour: Number = Field(0, ge=0, le=3600)
    """How often a Spot replica is taken away, on average: 0.05 is once in 20 hours. Each time a replacement is paid for
    while it is provisioned and loads, which plans weigh; the price that is shown stays the real one."""
    limit: Integer | None = Field(None, ge=0, le=1_000_000)
    """At most so many GPUs are used here by all services together. Larger than what nodes hold: the rest is asked for,
    and a node autoscaler may provide it. Default: what the nodes hold."""
    provisioning_seconds: Integer = Field(0, ge=0, le=86_400)
    """How long the provider takes to bring a node, in seconds. 0 where nodes are there."""
    load_seconds: Integer = Field(120, ge=0, le=86_400)
    """How long a replica takes from its start until it serves, in seconds."""
    exhaustion: Exhaustion = Field(default_factory=Exhaustion)
    """When the pool counts as exhausted, and for how long."""

    @property
    def pending_deadline_s(self) -> int:
        """After how long Pending pods mark the pool exhausted, in seconds."""
        if self.exhaustion.pending_deadline_seconds is not None:
            return self.exhaustion.pending_deadline_seconds
        return max(MINIMUM_PENDING_DEADLINE_S, 2 * self.provisioning_seconds)


class ExhaustedStatus(StatusModel):
    """Why nothing more can be had from the pool, and until when."""

    until: str = Field(max_length=64, json_schema_extra={"format": "date-time"})
    """When the pool is tried again."""
    reason: str = Field(max_length=1024)
    """Why the pool counts as exhausted."""


class GPUPoolStatus(StatusModel):
    """What the operator sees of the pool."""

    observed_generation: Integer | None = Field(None, ge=0)
    """The generation of the spec that this status is about."""
    conditions: tuple[Condition, ...] = Field((), max_length=16, json_schema_extra=map_list("type"))
    """Ready: the pool's spec makes sense, and services may use it."""
    nodes: Integer | None = Field(None, ge=0)
    """Nodes of the pool that are Ready and schedulable."""
    allocatable: Integer | None = Field(None, ge=0)
    """GPUs of those nodes."""
    used_by_services: Integer | None = Field(None, ge=0)
    """GPUs that replicas of LLM services hold."""
    used_by_others: Integer | None = Field(None, ge=0)
    """GPUs that other pods hold; never planned with."""
    free: Integer | None = Field(None, ge=0)
    """GPUs that nobody holds."""
    exhausted: ExhaustedStatus | None = None
    """Set while nothing more can be had from the pool."""


class GPUPool(ApiModel):
    """GPUs of one type, at one price, that LLM services may use."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"size(self.metadata.name) <= 63 && self.metadata.name.matches('{DNS_LABEL}')",
            message="must be at most 63 lower-case letters, digits and '-': it is a label of pods",
            field="metadata.name",
            holds=lambda pool: len(pool.metadata.name) <= 63 and "." not in pool.metadata.name,
        ),
    )

    api_version: Literal["medley.dev/v1alpha1"] = "medley.dev/v1alpha1"
    kind: Literal["GPUPool"] = "GPUPool"
    metadata: ObjectMeta
    spec: GPUPoolSpec
    """What the pool is."""
    status: GPUPoolStatus | None = None
    """What the operator sees of the pool."""

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.metadata.name
