"""LLMService: a model to serve, the latency it must keep, and the GPUs it may use."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from medley_operator.api.base import (
    ATOMIC_LIST,
    SET_LIST,
    ApiModel,
    DataKey,
    DnsLabel,
    Integer,
    LabelKey,
    LabelValue,
    Number,
    ObjectName,
    Rule,
    UniqueItems,
    at_least_one_of,
    at_most_one_of,
    exactly_one_of,
    map_list,
    ordered,
    unique_by,
)
from medley_operator.api.engine import Engine
from medley_operator.api.llmservice_status import LLMServiceStatus
from medley_operator.api.margins import Margins
from medley_operator.api.metadata import ObjectMeta
from medley_operator.api.modelprofile import MAX_TOKENS, TensorParallelSize

MAX_REPLICAS = 10_000
SERVICE_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"


class SecretKeyReference(ApiModel):
    """A key of a Secret in the service's namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: DataKey
    """Key within the Secret."""


class HuggingFaceSource(ApiModel):
    """Weights from a repository of the Hugging Face hub."""

    repository: str | None = Field(None, min_length=1, max_length=253)
    """Repository on the hub. Default: model.name."""
    revision: str | None = Field(None, min_length=1, max_length=253)
    """Branch, tag or commit. Default: the repository's main branch."""
    token_secret: SecretKeyReference | None = None
    """The hub's access token, for gated or private repositories."""


class VolumeSource(ApiModel):
    """Weights from a PersistentVolumeClaim, mounted read-only."""

    claim_name: ObjectName
    """Name of the PersistentVolumeClaim, in the service's namespace. It must be mountable by many pods."""
    path: str = Field("", max_length=1024, pattern=r"^([^/.][^/]*(/[^/.][^/]*)*)?$")
    """Folder of the model within the volume, without a leading slash. Default: the volume's root."""


class ModelSource(ApiModel):
    """Where the weights come from."""

    rules: ClassVar[tuple[Rule, ...]] = (exactly_one_of("hugging_face", "persistent_volume_claim"),)

    hugging_face: HuggingFaceSource | None = None
    """Weights from a repository of the Hugging Face hub."""
    persistent_volume_claim: VolumeSource | None = None
    """Weights from a PersistentVolumeClaim, mounted read-only."""


class Model(ApiModel):
    """The model to serve."""

    name: str = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z0-9][-A-Za-z0-9_./:]*$",
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self == oldSelf",
                    "message": "spec.model.name is immutable: clients send it, and pods of both names would answer "
                    "while replicas move; create a second LLMService and move the clients to it",
                }
            ]
        },
    )
    """The model's id: what clients send as `model`, and, unless source says otherwise, its repository on the Hugging
    Face hub. Immutable."""
    profile: ObjectName | None = None
    """Name of the ModelProfile. Default: the one whose spec.model is this name, else what Medley's catalogue of models
    has for the repository."""
    source: ModelSource | None = None
    """Where the weights come from. Default: the repository `name` of the Hugging Face hub."""
    max_context_tokens: Integer | None = Field(None, ge=1, le=MAX_TOKENS)
    """Longest input plus output that the engine is configured for. Shorter needs less memory. Default: the
    model's own."""

    @property
    def effective_source(self) -> ModelSource:
        """The source, with its defaults filled in."""
        source = self.source or ModelSource(hugging_face=HuggingFaceSource())
        if source.hugging_face is not None and source.hugging_face.repository is None:
            return ModelSource(hugging_face=source.hugging_face.model_copy(update={"repository": self.name}))
        return source


class Latency(ApiModel):
    """A latency objective."""

    milliseconds: Number = Field(gt=0, le=3_600_000)
    """What must not be exceeded, in milliseconds: by the mean over requests, or by percentile of them."""
    percentile: Number | None = Field(None, gt=0, lt=100)
    """The share of the requests that must keep it, in percent, such as 95. Default: the mean over requests must."""


class Objectives(ApiModel):
    """Latency objectives. At least one is given."""

    rules: ClassVar[tuple[Rule, ...]] = (at_least_one_of("time_per_output_token", "time_to_first_token"),)

    time_per_output_token: Latency | None = None
    """Time between output tokens, after the first: a request's own mean."""
    time_to_first_token: Latency | None = None
    """Time from a request's arrival to its first output token."""


class HistogramEntry(ApiModel):
    """Requests of one size."""

    input_tokens: Integer = Field(ge=1, le=MAX_TOKENS)
    """Input tokens of these requests."""
    output_tokens: Integer = Field(ge=1, le=MAX_TOKENS)
    """Output tokens of these requests."""
    weight: Number = Field(gt=0, le=1e15)
    """Their share of all requests, in any unit: weights are divided by their sum."""


class ConfigMapKeyReference(ApiModel):
    """A key of a ConfigMap in the service's namespace."""

    name: ObjectName
    """Name of the ConfigMap."""
    key: DataKey
    """Key within the ConfigMap."""


class Sizes(ApiModel):
    """Joint distribution of input and output sizes of requests."""

    rules: ClassVar[tuple[Rule, ...]] = (exactly_one_of("preset", "histogram", "trace_config_map", "marginals"),)

    preset: DnsLabel | None = None
    """A histogram made of a public trace: azure-conversation-2023, azure-code-2023 or mooncake-conversation-2024."""
    histogram: tuple[HistogramEntry, ...] | None = Field(
        None, min_length=1, max_length=256, json_schema_extra=ATOMIC_LIST
    )
    """The histogram itself; `medley workload` makes one of a trace."""
    trace_config_map: ConfigMapKeyReference | None = None
    """A trace of requests as CSV in a ConfigMap, in one of the layouts that `medley workload` reads."""
    marginals: Margins | None = None
    """Histograms of input sizes and of output sizes, as engines export them, fitted to a preset; `medley workload
    --marginals` shows what comes out."""


class Workload(ApiModel):
    """The requests to plan for."""

    rate: Number = Field(gt=0, le=1_000_000)
    """Arrivals, in requests per second."""
    sizes: Sizes
    """Joint distribution of input and output sizes of requests."""
    interarrival_cv: Number = Field(1, alias="interarrivalCV", ge=0, le=100)
    """Standard deviation of the times between arrivals over their mean: 1 for arrivals at random (Poisson), more for
    bursts. Only scaling.noWaitShare looks at it."""


class PoolSelector(ApiModel):
    """GPUPools by their labels."""

    match_labels: Annotated[dict[LabelKey, LabelValue], Field(min_length=1, max_length=16)]
    """Labels that a GPUPool must have, all of them."""


class Spot(ApiModel):
    """How much may depend on capacity that can be taken away at any moment."""

    max_share: Number = Field(1, ge=0, le=1)
    """At most this share of the replicas is in Spot pools: 0.5 is one half, 0 is none."""
    survivable_share: Number = Field(0, ge=0, le=1)
    """After the loss of all replicas in any one Spot pool, the others still serve this share of the requests within the
    objectives."""


class GPUs(ApiModel):
    """The GPUs that may be used. Neither pools nor poolSelector: all pools."""

    rules: ClassVar[tuple[Rule, ...]] = (at_most_one_of("pools", "pool_selector"),)

    pools: Annotated[
        tuple[DnsLabel, ...] | None, Field(min_length=1, max_length=64, json_schema_extra=SET_LIST), UniqueItems
    ] = None
    """Names of the GPUPools that may be used."""
    pool_selector: PoolSelector | None = None
    """Labels of the GPUPools that may be used."""
    max_cost_per_hour: Number | None = Field(None, gt=0, le=1_000_000_000)
    """Price cap: all replicas together cost no more per hour, in the currency of the pools' prices. Reserved capacity
    is paid for anyway and does not count."""
    max_share_per_pool: Number = Field(1, gt=0, le=1)
    """At most this share of the replicas is in any one pool: 0.5 spreads them over two pools at least."""
    spot: Spot = Field(default_factory=Spot)
    """How much may depend on capacity that can be taken away at any moment."""
    tensor_parallel: Annotated[
        tuple[TensorParallelSize, ...] | None,
        Field(min_length=1, max_length=5, json_schema_extra=SET_LIST),
        UniqueItems,
    ] = None
    """GPUs that may share every matrix product. Default: 1, 2, 4, 8 and 16, as far as a node of the pool holds them."""
    pipeline_parallel: Annotated[
        tuple[TensorParallelSize, ...] | None,
        Field(min_length=1, max_length=5, json_schema_extra=SET_LIST),
        UniqueItems,
    ] = None
    """Stages of consecutive layers that a replica may have. It has as many GPUs as all its sizes multiplied. Default: 1
    alone."""
    data_parallel: Annotated[
        tuple[TensorParallelSize, ...] | None,
        Field(min_length=1, max_length=5, json_schema_extra=SET_LIST),
        UniqueItems,
    ] = None
    """Ranks of a replica that may attend to requests of their own; a mixture of experts is spread over all of them
    (expert parallelism). Default: 1 alone."""


class PoolScaling(ApiModel):
    """Bounds on the replicas in one pool."""

    rules: ClassVar[tuple[Rule, ...]] = (ordered("min_replicas", "max_replicas"),)

    name: DnsLabel
    """Name of the GPUPool."""
    min_replicas: Integer | None = Field(None, ge=0, le=MAX_REPLICAS)
    """At least so many replicas are in this pool. Default: 0."""
    max_replicas: Integer | None = Field(None, ge=0, le=MAX_REPLICAS)
    """At most so many replicas are in this pool. Default: no bound."""


class Scaling(ApiModel):
    """Bounds on the number of replicas, and spare capacity."""

    rules: ClassVar[tuple[Rule, ...]] = (ordered("min_replicas", "max_replicas"),)

    min_replicas: Integer = Field(1, ge=1, le=MAX_REPLICAS)
    """At least so many replicas in all."""
    max_replicas: Integer | None = Field(None, ge=1, le=MAX_REPLICAS)
    """At most so many replicas in all. Default: no bound."""
    pools: Annotated[
        tuple[PoolScaling, ...], Field(max_length=64, json_schema_extra=map_list("name")), unique_by("name")
    ] = ()
    """Bounds on the replicas in single pools."""
    headroom: Number = Field(0.1, ge=0, lt=1)
    """Share of every replica's capacity that is kept free, for bursts and failures: 0.1 is 10 %."""
    no_wait_share: Number = Field(0, ge=0, lt=1)
    """Also keep so much capacity free that this share of the requests need not wait for a place in a batch, by
    estimate: 0.9 is nine of ten. The more replicas there are, the smaller the share of their capacity that this takes.
    0 keeps nothing."""


class Disruption(ApiModel):
    """How replicas are moved under live traffic."""

    drain_timeout_seconds: Integer = Field(300, ge=1, le=86_400)
    """How long a replica that is to go may finish its requests, in seconds."""
    min_savings_percent: Number = Field(5, ge=0, le=100)
    """A cheaper mix is taken up only where it saves at least so much of the present cost, in percent."""
    stabilization_seconds: Integer = Field(60, ge=0, le=86_400)
    """A cheaper mix is taken up only after it has been cheaper for so long, in seconds."""


class LLMServiceSpec(ApiModel):
    """A model to serve, the latency it must keep, and the GPUs it may use."""

    model: Model
    """The model to serve."""
    engine: Engine = Field(default_factory=Engine)
    """The inference engine that serves it."""
    objectives: Objectives
    """Latency objectives."""
    workload: Workload
    """The requests to plan for."""
    gpus: GPUs = Field(default_factory=GPUs)
    """The GPUs that may be used."""
    scaling: Scaling = Field(default_factory=Scaling)
    """Bounds on the number of replicas, and spare capacity."""
    disruption: Disruption = Field(default_factory=Disruption)
    """How replicas are moved under live traffic."""
    priority: Integer = Field(0, ge=-1_000_000_000, le=1_000_000_000)
    """Where GPUs or money do not suffice for all, services of higher priority are served first."""
    mode: Literal["Auto", "Recommend", "Paused"] = "Auto"
    """Auto: plan and act. Recommend: plan, show the plan in the status, touch nothing. Paused: neither plan nor act."""


class LLMService(ApiModel):
    """A large language model, served on the cheapest mix of GPUs that meets its latency objectives."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"size(self.metadata.name) <= 63 && self.metadata.name.matches('{SERVICE_NAME}')",
            message="must be at most 63 lower-case letters, digits and '-', and start with a letter: "
            "the Service has the same name",
            field="metadata.name",
            holds=lambda service: (
                len(service.metadata.name) <= 63
                and "." not in service.metadata.name
                and service.metadata.name[0].isalpha()
            ),
        ),
    )

    api_version: Literal["medley.dev/v1alpha1"] = "medley.dev/v1alpha1"
    kind: Literal["LLMService"] = "LLMService"
    metadata: ObjectMeta
    spec: LLMServiceSpec
    """What to serve, and how."""
    status: LLMServiceStatus | None = None
    """What the operator planned and did."""

    @property
    def name(self) -> str:
        """The service's name."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """The service's namespace; `default` in a file that names none."""
        return self.metadata.namespace or "default"

    @property
    def key(self) -> str:
        """`namespace/name`: the service's name in the planner's fleet."""
        return f"{self.namespace}/{self.name}"
