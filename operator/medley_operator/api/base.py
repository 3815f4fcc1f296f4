"""What all API models share: naming, strictness, and rules that hold in Python and on the API server alike.

A rule is written once, as a CEL expression for the API server and as a predicate for Python, side by side, so that a
specification that `medley plan` accepts is one that `kubectl apply` accepts, and the other way round.
A test runs both on the same generated specifications.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    Strict,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

Item = TypeVar("Item")

BROKEN_RULE = "broken_rule"
"""Type of the error that tells of a broken rule; its context holds the rule's `message` and `field`."""


@dataclass(frozen=True)
class Rule:
    """A condition on one object that spans several of its fields.

    Args:
        cel: The condition as the API server evaluates it (`x-kubernetes-validations`); `self` is the object.
        message: What is wrong and which field to change, for people.
        holds: The same condition in Python.
        field: The field to blame, from the object; empty where it is the object.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]
    field: str = ""


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) if isinstance(item, float) else item for item in value]
    return value


class ApiModel(BaseModel):
    """Base of every object within a `spec`: camelCase outside, snake_case inside, frozen, unknown fields refused.

    As on the API server, a null is the same as an absent field where the field is known (it prunes nulls of fields
    that are not nullable), and as for kubectl, 4.0 is the same as 4.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = {field.alias for field in cls.model_fields.values()}
            return {key: _whole(value) for key, value in data.items() if value is not None or key not in known}
        return data

    @model_validator(mode="after")
    def _check_rules(self) -> ApiModel:
        for rule in self.rules:
            if not rule.holds(self):
                raise PydanticCustomError(BROKEN_RULE, "{message}", {"message": rule.message, "field": rule.field})
        return self

    def to_manifest(self) -> dict[str, Any]:
        """The object as it stands in YAML or JSON: camelCase names, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema of the fields, with the rules as `x-kubernetes-validations`.

        An object that is made up of defaults where it is absent gets them spelled out: the API server judges a default
        by the CEL rules before it fills in the defaults of its fields.
        """
        reference = handler(schema)
        made = handler.resolve_ref_schema(reference)
        for name, field in cls.model_fields.items():
            factory = field.default_factory
            if isinstance(factory, type) and issubclass(factory, ApiModel):
                default = factory().model_dump(by_alias=True, exclude_none=True, mode="json")
                made["properties"][field.alias or to_camel(name)]["default"] = _without_empty_lists(default)
        if cls.rules:
            made["x-kubernetes-validations"] = [
                {"rule": rule.cel, "message": f"{rule.field} {rule.message}".strip()} for rule in cls.rules
            ]
        return reference


class StatusModel(ApiModel):
    """Base of every object within a `status`: fields of another release are ignored, never an error."""

    model_config = ConfigDict(extra="ignore")


def _without_empty_lists(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != []}


def _camel_names(names: tuple[str, ...]) -> list[str]:
    return [to_camel(name) for name in names]


def _given(model: BaseModel, names: tuple[str, ...]) -> int:
    return sum(getattr(model, name) is not None for name in names)


def _count_cel(names: tuple[str, ...]) -> str:
    return " + ".join(f"(has(self.{name}) ? 1 : 0)" for name in _camel_names(names))


def exactly_one_of(*names: str) -> Rule:
    """The rule that exactly one of these optional fields (Python names) is given."""
    listed = ", ".join(_camel_names(names))
    return Rule(
        cel=f"{_count_cel(names)} == 1",
        message=f"exactly one of {listed} must be given",
        holds=lambda model: _given(model, names) == 1,
    )


def at_most_one_of(*names: str) -> Rule:
    """The rule that these optional fields (Python names) exclude one another."""
    listed = " and ".join(_camel_names(names))
    return Rule(
        cel=f"{_count_cel(names)} <= 1",
        message=f"{listed} are mutually exclusive: give one of them or none",
        holds=lambda model: _given(model, names) <= 1,
    )


def at_least_one_of(*names: str) -> Rule:
    """The rule that one or more of these optional fields (Python names) are given."""
    listed = ", ".join(_camel_names(names))
    return Rule(
        cel=" || ".join(f"has(self.{name})" for name in _camel_names(names)),
        message=f"at least one of {listed} must be given",
        holds=lambda model: _given(model, names) >= 1,
    )


def ordered(low: str, high: str) -> Rule:
    """The rule that, where both are given, the field `low` is at most the field `high` (Python names)."""
    low_name, high_name = to_camel(low), to_camel(high)

    def holds(model: BaseModel) -> bool:
        least, most = getattr(model, low), getattr(model, high)
        return least is None or most is None or least <= most

    return Rule(
        cel=f"!has(self.{low_name}) || !has(self.{high_name}) || self.{low_name} <= self.{high_name}",
        message=f"{low_name} must not be larger than {high_name}",
        holds=holds,
    )


Integer = Annotated[int, Strict()]
"""A whole number. No strings and no booleans."""

Number = Annotated[float, Strict()]
"""A finite number. No strings and no booleans."""

Boolean = Annotated[bool, Strict()]
"""true or false, and nothing that looks like it."""

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
OBJECT_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"

DnsLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
"""A name that may also be a label's value, such as a GPUPool's."""

ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=OBJECT_NAME)]
"""The name of a Kubernetes object."""

DataKey = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
"""A key within a Secret or a ConfigMap."""

Quantity = Annotated[str, Field(min_length=1, max_length=32, pattern=QUANTITY)]
"""A Kubernetes quantity, written as a string: "4", "500m", "32Gi"."""

LabelKey = Annotated[str, Field(min_length=1, max_length=317, pattern=LABEL_KEY)]
LabelValue = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE)]


def _unique(values: tuple[Item, ...]) -> tuple[Item, ...]:
    seen: set[Item] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"Duplicate value: {value}")
        seen.add(value)
    return values


UniqueItems = AfterValidator(_unique)
"""Annotates a tuple of scalars that holds each value once; the API server's `x-kubernetes-list-type: set`."""

SET_LIST: dict[str, JsonValue] = {"x-kubernetes-list-type": "set"}
ATOMIC_LIST: dict[str, JsonValue] = {"x-kubernetes-list-type": "atomic"}


def unique_by(*keys: str) -> AfterValidator:
    """Annotates a tuple of objects of which no two agree in these fields (Python names)."""

    def check(values: tuple[Any, ...]) -> tuple[Any, ...]:
        seen: set[tuple[Any, ...]] = set()
        for value in values:
            identity = tuple(getattr(value, key) for key in keys)
            if identity in seen:
                named = ", ".join(f"{to_camel(key)}={part}" for key, part in zip(keys, identity, strict=True))
                raise ValueError(f"Duplicate value: {named}")
            seen.add(identity)
        return values

    return AfterValidator(check)


def map_list(*keys: str) -> dict[str, JsonValue]:
    """The list annotations of the API server for a list whose items are told apart by these fields (Python names)."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [to_camel(key) for key in keys]}


FreeObject = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
"""An object whose fields Medley does not look at."""
