"""ModelProfile: what the planner has to know of a model."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from medley_operator.api.base import ATOMIC_LIST, ApiModel, Integer, Number, Rule, StatusModel, map_list, ordered
from medley_operator.api.conditions import Condition
from medley_operator.api.metadata import ObjectMeta
from medley_planner.fleet import Parallelism

DataType = Literal["bf16", "fp16", "fp8", "int8", "int4", "mxfp4", "nvfp4"]
CacheType = Literal["bf16", "fp16", "fp8", "int8", "int4"]


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, is {value}")  # noqa: TRY004 - pydantic reports ValueErrors
    return value


TensorParallelSize = Annotated[Literal[1, 2, 4, 8, 16], BeforeValidator(_no_boolean)]
"""GPUs of one replica. To Python, True is 1; to the API server it is not."""

MAX_TOKENS = 10_000_000


class Architecture(ApiModel):
    """Facts of a model's architecture, as in its config.json."""

    rules: ClassVar[tuple[Rule, ...]] = (
        ordered("active_parameters", "parameters"),
        ordered("active_experts", "experts"),
        Rule(
            cel="has(self.experts) == has(self.activeExperts)",
            message="experts and activeExperts must be given together, or neither for a dense model",
            holds=lambda made: (made.experts is None) == (made.active_experts is None),
        ),
        Rule(
            cel="has(self.experts) == has(self.activeParameters)",
            message="activeParameters is required where experts is given, and must be absent for a dense model",
            holds=lambda made: (made.experts is None) == (made.active_parameters is None),
        ),
        Rule(
            cel="self.attentionHeads % self.keyValueHeads == 0",
            message="keyValueHeads must divide attentionHeads",
            holds=lambda made: made.attention_heads % made.key_value_heads == 0,
        ),
        Rule(
            cel="!has(self.latentSize) || self.keyValueHeads == 1",
            message="keyValueHeads must be 1 where latentSize is given: all heads share what is cached",
            holds=lambda made: made.latent_size is None or made.key_value_heads == 1,
        ),
        Rule(
            cel="has(self.windowLayers) == has(self.windowTokens)",
            message="windowLayers and windowTokens must be given together, or neither",
            holds=lambda made: (made.window_layers is None) == (made.window_tokens is None),
        ),
        Rule(
            cel="(has(self.windowLayers) ? self.windowLayers : 0) "
            "+ (has(self.constantLayers) ? self.constantLayers : 0) <= self.layers "
            "&& (!has(self.constantLayers) || self.constantLayers < self.layers)",
            message="windowLayers and constantLayers add up to at most layers, and constantLayers is less",
            holds=lambda made: (
                (made.window_layers or 0) + (made.constant_layers or 0) <= made.layers
                and (made.constant_layers or 0) < made.layers
            ),
        ),
    )

    parameters: Integer = Field(ge=1_000_000, le=100_000_000_000_000)
    """All parameters."""
    active_parameters: Integer | None = Field(None, ge=1_000_000, le=100_000_000_000_000)
    """Parameters that one token uses. Default: all."""
    layers: Integer = Field(ge=1, le=10_000)
    """Transformer layers (num_hidden_layers)."""
    hidden_size: Integer = Field(ge=1, le=1_000_000)
    """Width of the residual stream (hidden_size)."""
    attention_heads: Integer = Field(ge=1, le=10_000)
    """Query heads of a layer (num_attention_heads)."""
    key_value_heads: Integer = Field(ge=1, le=10_000)
    """Key and value heads of a layer (num_key_value_heads)."""
    head_size: Integer = Field(ge=1, le=10_000)
    """Width of one head (head_dim)."""
    experts: Integer | None = Field(None, ge=2, le=100_000)
    """Routed experts of a layer, for a mixture of experts."""
    active_experts: Integer | None = Field(None, ge=1, le=100_000)
    """Routed experts that one token uses."""
    data_type: DataType = "bf16"
    """Data type of the weights."""
    bytes_per_parameter: Number | None = Field(None, gt=0, le=8)
    """Bytes of a stored parameter outside of routed experts, on average, where some are stored in another type than
    dataType, as embeddings are in quantised checkpoints. Default: those of dataType."""
    bytes_per_expert_parameter: Number | None = Field(None, gt=0, le=8)
    """Bytes of a stored parameter of routed experts. Default: those of the others."""
    lookup_parameters: Integer | None = Field(None, ge=0, le=100_000_000_000_000)
    """Parameters that are only looked up: an input embedding that is not also the output's. Default: 0."""
    latent_size: Integer | None = Field(None, ge=1, le=1_000_000)
    """Elements that a layer caches for a token with latent attention (kv_lora_rank + qk_rope_head_dim), for all heads
    together. Default: keys and values of each head."""
    window_layers: Integer | None = Field(None, ge=1, le=10_000)
    """Layers that attend to the last windowTokens tokens only."""
    window_tokens: Integer | None = Field(None, ge=1, le=MAX_TOKENS)
    """Tokens that such a layer attends to (sliding_window)."""
    constant_layers: Integer | None = Field(None, ge=1, le=10_000)
    """Layers that cache nothing per token: linear attention, state spaces, and feed-forward layers of their own."""
    state_bytes_per_request: Number | None = Field(None, ge=0, le=1e12)
    """Bytes that those keep for a request, whatever its length. Default: 0."""
    key_value_data_type: CacheType | None = None
    """Data type of the key-value cache. Default: bf16 where the weights are quantised, else that of the weights."""
    max_context_tokens: Integer = Field(ge=1, le=MAX_TOKENS)
    """Longest input plus output (max_position_embeddings)."""


class MeasuredPoint(ApiModel):
    """One load at which one replica was measured, at requests of one size."""

    input_tokens: Integer = Field(ge=1, le=MAX_TOKENS)
    """Input tokens of each request."""
    output_tokens: Integer = Field(ge=1, le=MAX_TOKENS)
    """Output tokens of each request."""
    requests_per_second: Number = Field(gt=0, le=1_000_000)
    """Requests that the replica finished per second, in a steady state."""
    time_per_output_token_ms: Number = Field(gt=0, le=3_600_000)
    """Mean time per output token at this load, in milliseconds."""
    time_to_first_token_ms: Number = Field(gt=0, le=3_600_000)
    """Mean time to first token at this load, in milliseconds."""


class Measurement(ApiModel):
    """A table of measured points of one replica on one type of GPU."""

    gpu: str = Field(min_length=1, max_length=63)
    """GPU type, as in a GPUPool's spec.gpu.type."""
    tensor_parallel: TensorParallelSize
    """GPUs of the replica that shared every matrix product."""
    pipeline_parallel: TensorParallelSize | None = None
    """Stages of its pipeline. Default: 1."""
    data_parallel: TensorParallelSize | None = None
    """Its data parallel ranks; rates are the whole replica's. Default: 1."""
    engine: Literal["vllm", "sglang", "custom"] | None = None
    """Engine that was measured. Default: used for every engine."""
    points: tuple[MeasuredPoint, ...] = Field(min_length=1, max_length=1024, json_schema_extra=ATOMIC_LIST)
    """The measured points."""
    source: str = Field("", max_length=1024)
    """Where the figures come from: command, date, engine version."""

    @property
    def parallelism(self) -> Parallelism:
        """How the replica's GPUs shared the work."""
        return Parallelism(self.tensor_parallel, self.pipeline_parallel or 1, self.data_parallel or 1)


class ModelProfileSpec(ApiModel):
    """What the planner has to know of a model."""

    model: str = Field(min_length=1, max_length=253)
    """The model's id, as services name it."""
    architecture: Architecture
    """Facts of the model's architecture, from which throughput is estimated where it was not measured."""
    measurements: tuple[Measurement, ...] = Field((), max_length=128, json_schema_extra=ATOMIC_LIST)
    """Measured throughput, which goes before every estimate."""


class ModelProfileStatus(StatusModel):
    """What the operator made of the profile."""

    observed_generation: Integer | None = Field(None, ge=0)
    """The generation of the spec that this status is about."""
    conditions: tuple[Condition, ...] = Field((), max_length=16, json_schema_extra=map_list("type"))
    """Ready: the profile's spec makes sense, and services may use it."""
    measured_variants: tuple[Annotated[str, Field(max_length=80)], ...] = Field(
        (), max_length=256, json_schema_extra=ATOMIC_LIST
    )
    """GPU types and parallelisms with measurements, such as H100-80GB/tp1."""
    source: str | None = Field(None, max_length=64)
    """Where capacities come from: `measured`, `roofline`, or `measured and roofline`."""


class ModelProfile(ApiModel):
    """What the planner has to know of a model: its architecture, and measured throughput where there is any."""

    api_version: Literal["medley.dev/v1alpha1"] = "medley.dev/v1alpha1"
    kind: Literal["ModelProfile"] = "ModelProfile"
    metadata: ObjectMeta
    spec: ModelProfileSpec
    """What the model is."""
    status: ModelProfileStatus | None = None
    """What the operator made of the profile."""

    @property
    def name(self) -> str:
        """The profile's name."""
        return self.metadata.name
