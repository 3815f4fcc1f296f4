"""The CRDs are what the models say, and structural in the API server's sense."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from medley_operator.api.crd import RESOURCES, custom_resource_definition, structural_schema
from medley_operator.api.generate import main, stale_files

CHECKOUT = Path(__file__).resolve().parents[2]
KINDS = [resource.kind for resource in RESOURCES]


def schemas(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema within one, with its path."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from schemas(inner, f"{path}.{name}")
    if "items" in schema:
        yield from schemas(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from schemas(schema["additionalProperties"], f"{path}{{}}")


@pytest.fixture(params=RESOURCES, ids=KINDS)
def schema(request: pytest.FixtureRequest) -> dict[str, Any]:
    return structural_schema(request.param.model)


def test_generated_files_are_up_to_date() -> None:
    assert stale_files(CHECKOUT) == []


def test_the_chart_ships_the_same_bytes() -> None:
    for path in sorted((CHECKOUT / "crds").glob("*.yaml")):
        assert (CHECKOUT / "helm/medley/crds" / path.name).read_bytes() == path.read_bytes()


def test_generating_into_an_empty_folder_makes_everything_and_check_then_passes(tmp_path: Path) -> None:
    assert main([str(tmp_path), "--check"]) == 1
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--check"]) == 0
    (tmp_path / "crds" / "llmservices.medley.dev.yaml").write_text("changed")
    (tmp_path / "crds" / "old.yaml").write_text("not generated any more")
    assert stale_files(tmp_path) == ["crds/llmservices.medley.dev.yaml", "crds/old.yaml"]


def test_schemas_are_structural(schema: dict[str, Any]) -> None:
    """Every value has a type, and nothing is left that the API server forbids."""
    forbidden = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "const", "title", "patternProperties", "propertyNames"}
    for path, inner in schemas(schema):
        assert "type" in inner, path
        assert not forbidden & inner.keys(), path
        assert not ({"properties", "additionalProperties"} <= inner.keys()), path
        assert "x-kubernetes-int-or-string" not in inner, path


def test_everything_is_bounded(schema: dict[str, Any]) -> None:
    """The cost of CEL rules is estimated from the bounds, and an object without bounds has none."""
    for path, inner in schemas(schema):
        if path in {".apiVersion", ".kind", ".metadata"} or inner.get("x-kubernetes-preserve-unknown-fields"):
            continue
        if inner["type"] == "string":
            assert inner.keys() & {"maxLength", "enum"}, path
        if inner["type"] == "array":
            assert "maxItems" in inner, path
            assert "x-kubernetes-list-type" in inner, path
        if "additionalProperties" in inner:
            assert "maxProperties" in inner, path


def test_everything_is_described(schema: dict[str, Any]) -> None:
    for path, inner in schemas(schema):
        if path in {".apiVersion", ".kind", ".metadata"} or path.endswith(("[]", "{}")):
            continue
        assert inner.get("description", "").endswith("."), path
        assert "\n" not in inner["description"], path


def test_every_list_map_key_is_a_required_or_defaulted_field(schema: dict[str, Any]) -> None:
    for path, inner in schemas(schema):
        for key in inner.get("x-kubernetes-list-map-keys", []):
            item = inner["items"]
            assert key in item["required"] or "default" in item["properties"][key], path


@pytest.mark.parametrize("resource", RESOURCES, ids=KINDS)
def test_columns_show_fields_that_exist(resource: Any) -> None:
    schema = structural_schema(resource.model)
    for column in resource.columns:
        at = schema
        for part in column.json_path.removeprefix(".").split("[?")[0].split("."):
            if part == "creationTimestamp" or (at.get("type") == "object" and not at.get("properties")):
                break
            at = at["properties"][part.removesuffix("[*]")]
            at = at.get("items", at) if part.endswith("[*]") else at


@pytest.mark.parametrize("resource", RESOURCES, ids=KINDS)
def test_yaml_reads_back_as_the_definition(resource: Any) -> None:
    text = (CHECKOUT / "crds" / f"{resource.name}.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == custom_resource_definition(resource)


def test_a_defaulted_object_spells_its_defaults_out() -> None:
    """The API server judges a default by the CEL rules before it fills in the defaults of its fields."""
    schema = structural_schema(RESOURCES[1].model)
    assert schema["properties"]["spec"]["properties"]["engine"]["default"] == {"type": "vllm", "port": 8000}
