"""The engine of an LLMService: what runs in its pods."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from medley_operator.api.base import (
    ATOMIC_LIST,
    ApiModel,
    Boolean,
    DataKey,
    FreeObject,
    Integer,
    ObjectName,
    Quantity,
    Rule,
    at_most_one_of,
    exactly_one_of,
    map_list,
    unique_by,
)


class KeyReference(ApiModel):
    """A key of a Secret or ConfigMap in the service's namespace."""

    name: ObjectName
    """Name of the Secret or ConfigMap."""
    key: DataKey
    """Key within it."""
    optional: Boolean = False
    """Whether pods start without it."""


class FieldReference(ApiModel):
    """A field of the pod."""

    field_path: str = Field(min_length=1, max_length=253)
    """The field, such as status.podIP."""


class EnvVarSource(ApiModel):
    """Where the value of an environment variable comes from."""

    rules: ClassVar[tuple[Rule, ...]] = (exactly_one_of("secret_key_ref", "config_map_key_ref", "field_ref"),)

    secret_key_ref: KeyReference | None = None
    """A key of a Secret."""
    config_map_key_ref: KeyReference | None = None
    """A key of a ConfigMap."""
    field_ref: FieldReference | None = None
    """A field of the pod."""


class EnvVar(ApiModel):
    """An environment variable of the engine."""

    rules: ClassVar[tuple[Rule, ...]] = (at_most_one_of("value", "value_from"),)

    name: str = Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")
    """Name of the variable."""
    value: str | None = Field(None, max_length=8192)
    """Its value."""
    value_from: EnvVarSource | None = None
    """Where its value comes from."""


class ComputeAmounts(ApiModel):
    """Amounts of CPU and memory."""

    cpu: Quantity | None = None
    """CPU cores, such as "8"."""
    memory: Quantity | None = None
    """Memory, such as "64Gi"."""


class EngineResources(ApiModel):
    """CPU and memory of the engine's container. GPUs come from the plan."""

    requests: ComputeAmounts | None = None
    """What a pod is guaranteed."""
    limits: ComputeAmounts | None = None
    """What a pod may use at most."""


class CacheClaim(ApiModel):
    """A PersistentVolumeClaim that keeps downloaded weights."""

    claim_name: ObjectName
    """Name of the PersistentVolumeClaim, in the service's namespace. It must be mountable by many pods."""


class CacheEmptyDir(ApiModel):
    """A folder on the node that keeps downloaded weights while the pod lives."""

    size_limit: Quantity | None = None
    """Size limit, such as "100Gi"."""


class ModelCache(ApiModel):
    """Where downloaded weights are kept."""

    rules: ClassVar[tuple[Rule, ...]] = (exactly_one_of("persistent_volume_claim", "empty_dir"),)

    persistent_volume_claim: CacheClaim | None = None
    """A PersistentVolumeClaim shared by the service's pods, so that each model is downloaded once."""
    empty_dir: CacheEmptyDir | None = None
    """A folder on the node, that lives as long as the pod."""


class Engine(ApiModel):
    """The inference engine that serves the model."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(self.type == 'custom') == has(self.podTemplate)",
            message="podTemplate is required where engine.type is custom, and must be absent where it is not",
            holds=lambda engine: (engine.type == "custom") == (engine.pod_template is not None),
        ),
        Rule(
            cel="self.type != 'custom' || !(has(self.image) || has(self.args) || has(self.env) || has(self.cache) "
            "|| has(self.resources))",
            message="image, args, env, cache and resources must be absent where engine.type is custom: "
            "podTemplate holds them",
            holds=lambda engine: (
                engine.type != "custom"
                or all(
                    value is None for value in (engine.image, engine.args, engine.env, engine.cache, engine.resources)
                )
            ),
        ),
    )

    type: Literal["vllm", "sglang", "custom"] = "vllm"
    """vllm, sglang, or custom: a pod template of your own that serves the OpenAI API."""
    image: str | None = Field(None, min_length=1, max_length=512, pattern=r"^\S+$")
    """Image of the engine. Default: the release that this version of Medley was tested with."""
    args: Annotated[
        tuple[Annotated[str, Field(max_length=4096)], ...] | None,
        Field(max_length=128, json_schema_extra=ATOMIC_LIST),
    ] = None
    """Further arguments of the engine. They come last, so they win over Medley's own."""
    env: Annotated[
        tuple[EnvVar, ...] | None, Field(max_length=128, json_schema_extra=map_list("name")), unique_by("name")
    ] = None
    """Further environment variables of the engine."""
    pod_template: FreeObject | None = None
    """For type custom: the pod template (metadata and spec). Medley adds labels, node selector, tolerations, GPUs and
    the readiness gate. The container that serves is the one named `engine`, or the first."""
    port: Integer = Field(8000, ge=1, le=65_535)
    """Port on which the engine serves HTTP, and the port of the Service."""
    cache: ModelCache | None = None
    """Where downloaded weights are kept. Default: a folder on the node, that lives as long as the pod."""
    resources: EngineResources | None = None
    """CPU and memory of the engine's container."""

    @property
    def template(self) -> dict[str, Any]:
        """The pod template of a custom engine; empty for others."""
        return self.pod_template or {}
