"""docs/api.md from the same schemas as the CRDs (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medley_operator.api import API_VERSION
from medley_operator.api.crd import RESOURCES, Resource, Schema, structural_schema

_INTRODUCTION = f"""\
# API reference

API version `{API_VERSION}`. Generated from the API models by `python -m medley_operator.api.generate`; do not edit.

`kubectl explain llmservice.spec` shows the same on a cluster. Unknown fields are refused. Fields marked **required**
have no default; the others may be left out. `[]` after a name is a list, `{{}}` a map.
"""


def api_reference() -> str:
    """The reference of all kinds, as Markdown."""
    return "\n".join([_INTRODUCTION, *(_kind(resource) for resource in RESOURCES)])


def _kind(resource: Resource) -> str:
    schema = structural_schema(resource.model)
    scope = "namespaced" if resource.namespaced else "cluster-scoped"
    names = ", ".join(f"`{name}`" for name in (resource.plural, *resource.short_names))
    parts = [
        f"## {resource.kind}",
        "",
        f"{schema['description']} {scope.capitalize()}; `kubectl get` takes {names}.",
        "",
        *_rules(schema),
        "### Spec",
        "",
        *_table("spec", schema["properties"]["spec"]),
        "### Status",
        "",
        "Written by the operator.",
        "",
        *_table("status", schema["properties"]["status"], with_constraints=False),
        "### Columns",
        "",
        "| column | path | meaning |",
        "|---|---|---|",
        *(
            f"| {column.name}{' (wide)' if column.wide else ''} | `{_cell(column.json_path)}` | {column.description} |"
            for column in resource.columns
        ),
        "",
    ]
    return "\n".join(parts)


def _rules(schema: Schema) -> list[str]:
    rules = [f"- {rule['message']}." for rule in schema.get("x-kubernetes-validations", [])]
    return [*rules, ""] if rules else []


def _table(path: str, schema: Schema, *, with_constraints: bool = True) -> list[str]:
    """A Markdown table of all fields below an object."""
    if not with_constraints:
        rows = [
            f"| `{name}` | {_type(field)} | {_cell(field.get('description', ''))} |"
            for name, field, _ in _fields(path, schema)
        ]
        return ["| field | type | meaning |", "|---|---|---|", *rows, ""]
    rows = [
        f"| `{name}` | {_type(field)} | {_default(field, required)} | {_cell(field.get('description', ''))} | "
        f"{_cell(_constraints(field))} |"
        for name, field, required in _fields(path, schema)
    ]
    return ["| field | type | default | meaning | constraints |", "|---|---|---|---|---|", *rows, ""]


def _fields(path: str, schema: Schema) -> Iterator[tuple[str, Schema, bool]]:
    """Every field below an object, depth first: its path, its schema, and whether it is required."""
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        suffix = "[]" if field.get("type") == "array" else "{}" if "additionalProperties" in field else ""
        yield f"{path}.{name}{suffix}", field, name in required
        yield from _fields(f"{path}.{name}{suffix}", field.get("items", field))


def _type(field: Schema) -> str:
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    if "additionalProperties" in field:
        return f"map to {_type(field['additionalProperties'])}"
    return str(field.get("format") if field.get("format") == "date-time" else field["type"])


def _default(field: Schema, required: bool) -> str:
    if required:
        return "**required**"
    default = field.get("default")
    return "" if default in (None, {}) else f"`{default}`"


def _constraints(field: Schema) -> str:
    """The field's constraints, for people; patterns are left to the API server's messages."""
    parts = [*_bounds(field)]
    for subject in (field, field.get("items", {})):
        if "enum" in subject:
            parts.append("one of " + ", ".join(f"`{value}`" for value in subject["enum"]))
    if field.get("x-kubernetes-list-type") == "set":
        parts.append("each value once")
    if "x-kubernetes-list-map-keys" in field:
        parts.append("unique by " + ", ".join(f"`{key}`" for key in field["x-kubernetes-list-map-keys"]))
    for subject in (field, field.get("items", {})):
        parts += [rule["message"] for rule in subject.get("x-kubernetes-validations", [])]
    return "; ".join(parts)


def _bounds(field: Schema) -> Iterator[str]:
    if "minimum" in field:
        yield f"{'>' if field.get('exclusiveMinimum') else '≥'} {_figure(field['minimum'])}"
    if "maximum" in field:
        yield f"{'<' if field.get('exclusiveMaximum') else '≤'} {_figure(field['maximum'])}"
    if "maxLength" in field:
        yield f"at most {field['maxLength']} characters"
    for least, most in (("minItems", "maxItems"), ("minProperties", "maxProperties")):
        if most in field:
            low = field.get(least, 0)
            yield f"{low} to {field[most]} entries" if low else f"at most {field[most]} entries"


def _figure(value: Any) -> str:
    return f"{value:,}".replace(",", " ")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
