"""Generated specs against the real API server: it refuses what the models refuse, by a field; nothing stays stuck."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import httpx
import pytest

from medley_cluster.cluster import Cluster
from medley_cluster.waiting import wait_until
from medley_operator.api.crd import RESOURCES
from medley_operator.api.manifest import InvalidManifestError, parse_any
from medley_scenarios.installation import CHECKOUT

pytestmark = pytest.mark.cluster

COUNT = 2_000
WITH_OPERATOR = 90
PLURALS = {resource.kind: resource.plural for resource in RESOURCES}
NAMESPACED = {resource.kind for resource in RESOURCES if resource.namespaced}
UNKNOWN_FIELD = re.compile(r'unknown field "([^"]+)"')


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("spec_generator", CHECKOUT / "tests" / "spec_generator.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["spec_generator"] = module
    spec.loader.exec_module(module)
    return module


spec_generator = load_generator()


@pytest.fixture(scope="module")
def seed() -> int:
    """Fixed, unless MEDLEY_SEED asks for another."""
    chosen = int(os.environ.get("MEDLEY_SEED", "20260402"))
    sys.stdout.write(f"MEDLEY_SEED={chosen}\n")
    return chosen


@pytest.fixture
def namespace(medley: Cluster) -> Iterator[str]:
    """A namespace of the test's own; after it, every object of our kinds that the test made is deleted, and gone."""
    before = {kind: names(medley, kind) for kind in PLURALS}
    name = f"specs-{uuid.uuid4().hex[:8]}"
    medley.kubectl("create", "namespace", name)
    yield name
    for kind in PLURALS:
        made = names(medley, kind) - before[kind]
        for place in sorted(made):
            medley.api.delete(place)
        wait_until(lambda kind=kind, made=made: not names(medley, kind) & made, 60.0, f"every {kind} is gone")
    medley.kubectl("delete", "namespace", name, "--wait=false")


def collection(kind: str, namespace: str) -> str:
    scope = f"namespaces/{namespace}/" if kind in NAMESPACED else ""
    return f"/apis/medley.dev/v1alpha1/{scope}{PLURALS[kind]}"


def names(cluster: Cluster, kind: str) -> set[str]:
    """Paths of all objects of a kind, in all namespaces."""
    listed = cluster.api.get(f"/apis/medley.dev/v1alpha1/{PLURALS[kind]}")["items"]
    return {f"{collection(kind, item['metadata'].get('namespace', ''))}/{item['metadata']['name']}" for item in listed}


def as_kubectl_sends(value: Any) -> Any:
    """Kubectl makes JSON of YAML with Go's encoder, which writes 4.0 as 4. CEL refuses a raw 4.0 for an integer."""
    if isinstance(value, dict):
        return {key: as_kubectl_sends(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_kubectl_sends(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def refusal(cluster: Cluster, manifest: dict[str, Any], namespace: str) -> tuple[str, set[str]] | None:
    """What the API server says against a new object and the fields it names; None where it accepts it."""
    path = f"{collection(manifest['kind'], namespace)}?fieldValidation=Strict"
    try:
        cluster.api.post(path, as_kubectl_sends(manifest))
    except httpx.HTTPStatusError as error:
        assert error.response.status_code in {400, 422}, error
        status = error.response.json()
        causes = status.get("details", {}).get("causes") or []
        fields = {cause["field"] for cause in causes if cause.get("field")}
        fields |= set(UNKNOWN_FIELD.findall(status["message"]))
        return status["message"], fields
    return None


def our_fields(manifest: dict[str, Any]) -> set[str]:
    try:
        parse_any(manifest)
    except InvalidManifestError as error:
        return {error.field for error in error.errors}
    return set()


def same_place(ours: str, theirs: str) -> bool:
    """Whether two paths lead to the same field, or one to something within the other."""
    one, other = (path.replace("[", ".").replace("]", "").replace("<nil>", "") for path in (ours, theirs))
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.") or other == ""


def test_the_api_server_judges_as_the_models_do(medley: Cluster, namespace: str, seed: int) -> None:
    accepted = refused = 0
    for made in spec_generator.generate(seed, COUNT):
        ours = our_fields(made.manifest)
        theirs = refusal(medley, made.manifest, namespace)
        shown = json.dumps(made.manifest)
        if theirs is None:
            accepted += 1
            assert not ours, f"accepted by the API server, refused by the models for {ours}: {shown}"
            assert made.kind != "broken", f"accepted though {made.mistake}: {shown}"
            continue
        refused += 1
        message, fields = theirs
        assert ours, f"refused by the API server only: {message}: {shown}"
        assert made.kind != "valid", f"{message}: {shown}"
        assert fields, f"the refusal names no field: {message}"
        assert any(same_place(one, other) for one in ours for other in fields), f"{ours} against {fields}: {message}"
    assert accepted > COUNT / 3
    assert refused > COUNT / 3


def test_a_model_name_cannot_be_changed(medley: Cluster, namespace: str) -> None:
    manifest = next(
        made.manifest
        for made in spec_generator.generate(1, 50)
        if made.kind == "valid" and made.manifest["kind"] == "LLMService"
    )
    assert refusal(medley, manifest, namespace) is None
    name = manifest["metadata"]["name"]
    change = json.dumps({"spec": {"model": {"name": "another/model"}}})
    said = medley.kubectl("patch", "llm", name, "-n", namespace, "--type=merge", "-p", change, check=False)
    kept = medley.get_json("llm", name, "-n", namespace)
    assert kept["spec"]["model"]["name"] == manifest["spec"]["model"]["name"], said


def test_every_accepted_object_gets_a_condition(
    medley: Cluster, namespace: str, seed: int, start_operator: Callable[..., Any]
) -> None:
    """Valid and wild specs with a running operator: each is judged, whatever it says, and each can be deleted."""
    start_operator()
    made = [
        generated.manifest
        for generated in spec_generator.generate(seed + 1, WITH_OPERATOR)
        if refusal(medley, generated.manifest, namespace) is None
    ]
    assert len(made) > WITH_OPERATOR / 3

    def judged(manifest: dict[str, Any]) -> bool:
        path = f"{collection(manifest['kind'], namespace)}/{manifest['metadata']['name']}"
        status = medley.api.get(path).get("status") or {}
        wanted = "Planned" if manifest["kind"] == "LLMService" else "Ready"
        return any(condition["type"] == wanted and condition["reason"] for condition in status.get("conditions", []))

    def unjudged() -> list[str]:
        return [manifest["metadata"]["name"] for manifest in made if not judged(manifest)]

    wait_until(lambda: not unjudged(), 120.0, "every object has a condition")
