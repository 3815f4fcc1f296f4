"""The recorded manifests on a real API server: accepted, not changed by a second apply, and as strict as documented."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from medley_cluster.cluster import Cluster
from medley_cluster.waiting import wait_until

pytestmark = pytest.mark.cluster

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "golden" / "workloads"
RECORDED = sorted(FOLDER.glob("*.output.yaml"))
RUN_AS_THEIR_IMAGES_USER = {"custom", "sglang-stages-ranks", "sglang-tp2", "vllm-amd"}
"""Refused where restricted pods are enforced: their image knows no other user, or the template is the user's own."""


def case_of(path: Path) -> str:
    return path.name.removesuffix(".output.yaml")


def manifests(path: Path, namespace: str) -> list[dict[str, Any]]:
    """The recorded manifests in a namespace, owned by nobody: their LLMService is not on this cluster."""
    values = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    for value in values:
        value["metadata"]["namespace"] = namespace
        value["metadata"]["ownerReferences"] = []
    return values


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    name = f"workloads-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(made))
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def applied(cluster: Cluster, values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the API server holds after a server-side apply of each of these manifests."""
    command = ("apply", "--server-side", "--field-manager=medley", "-f", "-", "-o", "json")
    return [json.loads(cluster.kubectl(*command, stdin=json.dumps(value))) for value in values]


@pytest.mark.parametrize("path", RECORDED, ids=case_of)
def test_applying_again_changes_nothing(cluster: Cluster, namespace: str, path: Path) -> None:
    """A field that the server normalises would make every round of the operator a write, and wake it again."""
    values = manifests(path, namespace)
    values[0]["spec"]["replicas"] = 0
    first = applied(cluster, values)
    second = applied(cluster, values)
    assert [item["kind"] for item in first] == ["Deployment", "Service", "PodDisruptionBudget"]
    for before, after in zip(first, second, strict=True):
        assert after["metadata"].get("generation") == before["metadata"].get("generation"), before["kind"]
    assert second[1]["metadata"]["resourceVersion"] == first[1]["metadata"]["resourceVersion"]


@pytest.mark.parametrize("path", RECORDED, ids=case_of)
def test_pods_are_as_strict_as_documented(cluster: Cluster, namespace: str, path: Path) -> None:
    """A namespace that enforces restricted pods takes vLLM's, and refuses those that the README says need more."""
    deployment = manifests(path, namespace)[0]
    deployment["spec"]["replicas"] = 1
    name = applied(cluster, [deployment])[0]["metadata"]["name"]

    def conditions() -> dict[str, dict[str, Any]]:
        status = cluster.get_json("deployment", name, "-n", namespace).get("status", {})
        return {condition["type"]: condition for condition in status.get("conditions", ())}

    def judged() -> bool:
        created = cluster.get_json("pods", "-n", namespace)["items"]
        return bool(created) or "ReplicaFailure" in conditions()

    wait_until(judged, 30.0, f"the pod of {name} is there or refused")
    if case_of(path) in RUN_AS_THEIR_IMAGES_USER:
        assert "runAsNonRoot" in conditions()["ReplicaFailure"]["message"]
    else:
        assert "ReplicaFailure" not in conditions()


def test_a_pod_is_no_endpoint_until_its_gate_opens(cluster: Cluster, namespace: str) -> None:
    """Loaded is not serving: the Service sends requests only to pods whose gate the operator opened."""
    values = manifests(FOLDER / "vllm-hub-l4.output.yaml", namespace)
    values[0]["spec"]["replicas"] = 1
    applied(cluster, values)

    def pods() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = cluster.get_json("pods", "-n", namespace)["items"]
        return found

    def condition(kind: str) -> str | None:
        conditions = [item for pod in pods() for item in pod["status"].get("conditions", ()) if item["type"] == kind]
        return conditions[0]["status"] if conditions else None

    def ready_endpoints() -> int:
        slices = cluster.get_json("endpointslices", "-n", namespace)["items"]
        return sum(bool(item["conditions"].get("ready")) for one in slices for item in one.get("endpoints") or ())

    wait_until(lambda: condition("ContainersReady") == "True", 60.0, "the container is ready")
    assert condition("Ready") == "False"
    assert ready_endpoints() == 0

    gate = {"status": {"conditions": [{"type": "medley.dev/serving", "status": "True"}]}}
    name = pods()[0]["metadata"]["name"]
    cluster.kubectl(
        "patch", "pod", name, "-n", namespace, "--subresource=status", "--type=strategic", "-p", json.dumps(gate)
    )
    wait_until(lambda: condition("Ready") == "True", 30.0, "the pod is Ready")
    wait_until(lambda: ready_endpoints() == 1, 30.0, "the pod is an endpoint")
