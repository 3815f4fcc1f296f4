"""From the pydantic models to CustomResourceDefinitions with structural schemas (pure).

Pydantic's JSON Schema is not what the API server takes: references are inlined, `anyOf` with null becomes an optional
field, numeric exclusive bounds become Kubernetes' booleans, and patterns of map keys become CEL rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from medley_operator.api import GROUP, VERSION
from medley_operator.api.base import ApiModel
from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.modelprofile import ModelProfile

Schema = dict[str, Any]
INT32_MAX = 2**31 - 1
_KEY_ORDER = ("type", "format", "description", "default", "enum")


@dataclass(frozen=True)
class Column:
    """A column of `kubectl get`; columns with `wide` show with `-o wide` only."""

    name: str
    type: str
    json_path: str
    description: str
    wide: bool = False

    def manifest(self) -> dict[str, Any]:
        """The column as `additionalPrinterColumns` takes it."""
        made = {
            "name": self.name,
            "type": self.type,
            "jsonPath": self.json_path,
            "description": self.description,
        }
        return made | ({"priority": 1} if self.wide else {})


@dataclass(frozen=True)
class Resource:
    """A kind of the API: its model, its names and its columns."""

    model: type[ApiModel]
    plural: str
    short_names: tuple[str, ...]
    namespaced: bool
    columns: tuple[Column, ...]

    @property
    def kind(self) -> str:
        """The kind, such as LLMService."""
        return self.model.__name__

    @property
    def name(self) -> str:
        """The name of the CustomResourceDefinition."""
        return f"{self.plural}.{GROUP}"


_AGE = Column("Age", "date", ".metadata.creationTimestamp", "When it was created")

RESOURCES: tuple[Resource, ...] = (
    Resource(
        model=GPUPool,
        plural="gpupools",
        short_names=("gp",),
        namespaced=False,
        columns=(
            Column("GPU", "string", ".spec.gpu.type", "Type of the GPUs"),
            Column("$/GPU-Hour", "number", ".spec.pricePerGPUHour", "Price of one GPU for one hour"),
            Column("Nodes", "integer", ".status.nodes", "Nodes that are Ready and schedulable"),
            Column("Allocatable", "integer", ".status.allocatable", "GPUs of those nodes"),
            Column("Used", "integer", ".status.usedByServices", "GPUs that LLM services hold"),
            Column("Free", "integer", ".status.free", "GPUs that nobody holds"),
            Column("Exhausted Until", "string", ".status.exhausted.until", "Until when no more is asked for"),
            Column("Limit", "integer", ".spec.limit", "At most so many GPUs are used", wide=True),
            Column("Others", "integer", ".status.usedByOthers", "GPUs that other pods hold", wide=True),
            Column("Why Exhausted", "string", ".status.exhausted.reason", "Why nothing more can be had", wide=True),
            _AGE,
        ),
    ),
    Resource(
        model=LLMService,
        plural="llmservices",
        short_names=("llm",),
        namespaced=True,
        columns=(
            Column("Model", "string", ".spec.model.name", "The model that is served"),
            Column("Mix", "string", ".status.plan.mix", "Replicas by pool"),
            Column("$/Hour", "number", ".status.plan.costPerHour", "Price of the mix for one hour"),
            Column("Ready", "string", ".status.replicas.summary", "Serving and desired replicas"),
            Column("Planned", "string", '.status.conditions[?(@.type=="Planned")].reason', "How planning ended"),
            Column("Rate", "number", ".spec.workload.rate", "Requests per second planned for", wide=True),
            Column("Gap", "number", ".status.plan.gapPercent", "Percent from the proven lower bound", wide=True),
            Column("Bound", "string", ".status.plan.binding[*].constraint", "Constraints that cost money", wide=True),
            Column("Phase", "string", ".status.transition.phase", "Phase of the change under way", wide=True),
            _AGE,
        ),
    ),
    Resource(
        model=ModelProfile,
        plural="modelprofiles",
        short_names=("mp",),
        namespaced=False,
        columns=(
            Column("Model", "string", ".spec.model", "The model's id"),
            Column("Parameters", "integer", ".spec.architecture.parameters", "All parameters of the model"),
            Column("Source", "string", ".status.source", "Where capacities come from"),
            _AGE,
        ),
    ),
)
"""Every kind of the API, sorted by name."""


def structural_schema(model: type[ApiModel]) -> Schema:
    """The OpenAPI v3 schema of a kind's objects, structural, with nothing but what the API server takes."""
    made = model.model_json_schema(by_alias=True)
    schema = _structural(_inline(made, made.get("$defs", {})))
    properties = schema["properties"]
    properties["metadata"] = {"type": "object"}
    for name in ("apiVersion", "kind"):
        properties[name] = {"type": "string"}
    schema["required"] = ["metadata", "spec"]
    return schema


def custom_resource_definition(resource: Resource) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind, as a manifest."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": resource.name, "labels": {"app.kubernetes.io/part-of": "medley"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": list(resource.short_names),
                "categories": ["medley"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [column.manifest() for column in resource.columns],
                    "schema": {"openAPIV3Schema": structural_schema(resource.model)},
                }
            ],
        },
    }


def crd_yaml(resource: Resource) -> str:
    """The CustomResourceDefinition of a kind as YAML, the same bytes for the same models."""
    header = "# Generated from the API models by `python -m medley_operator.api.generate`. Do not edit.\n"
    body = yaml.dump(
        custom_resource_definition(resource), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120
    )
    return header + body


class _Dumper(yaml.SafeDumper):
    """YAML without anchors: the same schema in two places is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _inline(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """The schema with every `$ref` replaced by what it refers to; keys beside the reference win."""
    if isinstance(schema, list):
        return [_inline(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    beside = {key: _inline(value, definitions) for key, value in schema.items() if key not in {"$ref", "$defs"}}
    if "$ref" in schema:
        target = definitions[schema["$ref"].removeprefix("#/$defs/")]
        return _inline(target, definitions) | beside
    return beside


def _structural(schema: Schema) -> Schema:
    """One level of `structural_schema`, and all below it."""
    made = _without_null(schema)
    made = {key: value for key, value in made.items() if key not in {"title", "additionalProperties", "const"}}
    if "const" in schema:
        made["enum"] = [schema["const"]]
    if made.get("default", ...) in (None, [], ()):
        del made["default"]
    for bound in ("Minimum", "Maximum"):
        if f"exclusive{bound}" in made:
            made[bound.lower()] = made[f"exclusive{bound}"]
            made[f"exclusive{bound}"] = True
    if made.get("type") == "integer" and "enum" not in made:
        made["format"] = "int32" if made.get("maximum", INT32_MAX + 1) <= INT32_MAX else "int64"
    if "description" in made:
        made["description"] = " ".join(made["description"].split())
    if "properties" in made:
        made["properties"] = {name: _structural(sub) for name, sub in made["properties"].items()}
    elif made.get("type") == "object" and "x-kubernetes-preserve-unknown-fields" not in made:
        made |= _map_schema(schema)
        made.pop("patternProperties", None)
        made.pop("propertyNames", None)
    if "items" in made:
        made["items"] = _structural(made["items"])
    return _ordered(made)


def _without_null(schema: Schema) -> Schema:
    """An optional field's schema without the null: absent and null are the same to the API server."""
    if "anyOf" not in schema:
        return schema
    (given,) = (option for option in schema["anyOf"] if option.get("type") != "null")
    beside = {key: value for key, value in schema.items() if key != "anyOf"}
    return dict(given) | beside


def _map_schema(schema: Schema) -> Schema:
    """The schema of a map's values, with the pattern of its keys as a CEL rule: CRDs know no `propertyNames`."""
    patterns: Mapping[str, Schema] = schema.get("patternProperties", {})
    if not patterns:
        return {"additionalProperties": _structural(schema["additionalProperties"])}
    ((pattern, values),) = patterns.items()
    longest = schema.get("propertyNames", {}).get("maxLength", 317)
    rule = {
        "rule": f"self.all(key, size(key) <= {longest} && key.matches('{pattern}'))",
        "message": "every key must be a label's name: letters, digits, '-', '_', '.', after an optional prefix and '/'",
    }
    return {"additionalProperties": _structural(values), "x-kubernetes-validations": [rule]}


def _ordered(schema: Schema) -> Schema:
    """The same schema, its keys in the order in which people read them."""
    first = {key: schema[key] for key in _KEY_ORDER if key in schema}
    last = {key: schema[key] for key in sorted(schema) if key not in first and key != "properties"}
    return first | last | ({"properties": schema["properties"]} if "properties" in schema else {})
