"""Manifests, as YAML or JSON hold them, to API models: the object, or every field that is wrong with it (pure).

Messages are the models' own where those are for people, and Medley's where they are for programmers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from medley_operator.api import API_VERSION
from medley_operator.api.base import BROKEN_RULE, ApiModel
from medley_operator.api.crd import RESOURCES, Schema, structural_schema
from medley_operator.api.problems import hint

FieldPath = tuple[str | int, ...]
M = TypeVar("M", bound=ApiModel)

MODELS: Mapping[str, type[ApiModel]] = {resource.kind: resource.model for resource in RESOURCES}
"""The kinds of the API."""


@dataclass(frozen=True)
class FieldError:
    """A field of a manifest that is wrong.

    Args:
        path: The field, from the object's root; of a missing field, where it should be.
        message: What is wrong and what would be right, as a sentence without the field.
    """

    path: FieldPath
    message: str

    @property
    def field(self) -> str:
        """The path as people write it, such as `spec.gpus.pools[1]`."""
        return path_text(self.path)

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class InvalidManifestError(ValueError):
    """A manifest that the API server would refuse too; `errors` names every field, at least one."""

    def __init__(self, errors: tuple[FieldError, ...]) -> None:
        super().__init__("; ".join(str(error) for error in errors))
        self.errors = errors


def parse(model: type[M], manifest: Any) -> M:
    """The object that a manifest describes. Names are those of the API (camelCase) only.

    Raises:
        InvalidManifestError: The API server would refuse it.
    """
    try:
        return model.model_validate(manifest, by_alias=True, by_name=False)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=True)
        raise InvalidManifestError(tuple(_field_error(model, detail) for detail in details)) from None


def parse_any(manifest: Mapping[str, Any]) -> ApiModel:
    """The object of any kind of the API that a manifest describes.

    Raises:
        InvalidManifestError: The API server would refuse it, or the kind is not of the API.
    """
    kind = manifest.get("kind")
    if not isinstance(kind, str) or kind not in MODELS:
        message = f"{API_VERSION} has no kind {kind!r}{hint(str(kind), MODELS)}"
        raise InvalidManifestError((FieldError(("kind",), message),))
    if manifest.get("apiVersion") != API_VERSION:
        message = f"must be {API_VERSION}, is {manifest.get('apiVersion')!r}"
        raise InvalidManifestError((FieldError(("apiVersion",), message),))
    return parse(MODELS[kind], manifest)


def path_text(path: FieldPath) -> str:
    """A path as people write it: `spec.gpus.pools[1]`; keys with dots or slashes in brackets."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier():
            text += f".{part}" if text else part
        else:
            text += f"[{part}]" if text else part
    return text or "object"


def path_of(text: str) -> FieldPath:
    """The path that `path_text` wrote, for paths of plain names and indices."""
    parts: list[str | int] = []
    for name in text.replace("[", ".[").split("."):
        parts.append(int(name[1:-1]) if name.startswith("[") and name[1:-1].isdigit() else name.strip("[]"))
    return tuple(parts)


def _field_error(model: type[ApiModel], detail: ErrorDetails) -> FieldError:
    path: FieldPath = tuple(part for part in detail["loc"] if part != "[key]")
    if detail["type"] == BROKEN_RULE and detail["ctx"]["field"]:
        path += path_of(detail["ctx"]["field"])
    return FieldError(path, _message(model, path, detail))


def _message(model: type[ApiModel], path: FieldPath, detail: ErrorDetails) -> str:
    """What is wrong with a field: in our words for the mistakes people make, else in Pydantic's."""
    context, shown = detail.get("ctx", {}), _shown(detail["input"])
    words = {
        "missing": "is required",
        "value_error": str(context.get("error")),
        BROKEN_RULE: str(context.get("message")),
        "literal_error": f"must be {context.get('expected')}, is {shown}",
        "string_pattern_mismatch": f"{shown} does not match {context.get('pattern')}",
        "model_type": f"must be an object, is {shown}",
        "dict_type": f"must be an object, is {shown}",
        "tuple_type": f"must be a list, is {shown}",
        "too_short": f"must have at least {context.get('min_length')} entries, has {context.get('actual_length')}",
        "too_long": f"must have at most {context.get('max_length')} entries, has {context.get('actual_length')}",
    }
    if detail["type"] == "extra_forbidden":
        return f"there is no such field{hint(str(path[-1]), _fields_beside(model, path))}"
    said = detail["msg"].replace("Input should", "must").replace("String should", "must").replace(" valid ", " ")
    return words.get(detail["type"], f"{said}, is {shown}")


def _shown(value: Any) -> str:
    """A value as a message shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _fields_beside(model: type[ApiModel], path: FieldPath) -> list[str]:
    """The fields that an object at the parent of this path may have."""
    schema = _schema(model)
    for part in path[:-1]:
        schema = schema.get("items", {}) if isinstance(part, int) else schema.get("properties", {}).get(part, {})
    return sorted(schema.get("properties", {}))


@cache
def _schema(model: type[ApiModel]) -> Schema:
    return structural_schema(model)
