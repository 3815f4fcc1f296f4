"""What the operator's tests do and wait for: services made, changed and looked at."""

from __future__ import annotations

import copy
import json
from typing import Any

from medley_cluster.cluster import Cluster
from medley_cluster.waiting import wait_until

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
NAMESPACE = "default"
PATH = f"/apis/medley.dev/v1alpha1/namespaces/{NAMESPACE}/llmservices"
POOLS = "/apis/medley.dev/v1alpha1/gpupools"
SETTLE_TIMEOUT_S = 60.0


def llm(name: str, *, rate: float = 4.0, pools: list[str] | None = None, **spec: Any) -> dict[str, Any]:
    """An LLMService of the sample model that decides without waiting for prices to stay."""
    base: dict[str, Any] = {
        "model": {"name": MODEL, "maxContextTokens": 16384},
        "objectives": {"timePerOutputToken": {"milliseconds": 60}, "timeToFirstToken": {"milliseconds": 2000}},
        "workload": {"rate": rate, "sizes": {"preset": "azure-conversation-2023"}},
        "disruption": {"stabilizationSeconds": 0, "drainTimeoutSeconds": 60},
    }
    if pools is not None:
        base["gpus"] = {"pools": pools}
    return {
        "apiVersion": "medley.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {**base, **copy.deepcopy(spec)},
    }


def gpu_pool(name: str, gpu: str, selector: dict[str, str]) -> dict[str, Any]:
    """A GPUPool of simulated nodes with these labels, cheaper than all others."""
    return {
        "apiVersion": "medley.dev/v1alpha1",
        "kind": "GPUPool",
        "metadata": {"name": name},
        "spec": {
            "gpu": {"type": gpu},
            "gpusPerNode": 8,
            "nodeSelector": selector,
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "pricePerGPUHour": 0.5,
        },
    }


def create(cluster: Cluster, manifest: dict[str, Any]) -> None:
    """Create an LLMService or a GPUPool."""
    cluster.api.post(POOLS if manifest["kind"] == "GPUPool" else PATH, manifest)


def get(cluster: Cluster, name: str) -> dict[str, Any]:
    """The LLMService as it is."""
    found: dict[str, Any] = cluster.api.get(f"{PATH}/{name}")
    return found


def change(cluster: Cluster, name: str, spec: dict[str, Any]) -> int:
    """Merge into the specification; gives the generation that this made."""
    return _merge(cluster, "llmservice", name, {"spec": spec})


def set_price(cluster: Cluster, pool: str, price: float) -> None:
    """Change what a GPU of a pool costs."""
    _merge(cluster, "gpupool", pool, {"spec": {"pricePerGPUHour": price}})


def _merge(cluster: Cluster, kind: str, name: str, patch: dict[str, Any]) -> int:
    words = ("patch", kind, name, "-n", NAMESPACE, "--type=merge", "-p", json.dumps(patch), "-o", "json")
    generation: int = json.loads(cluster.kubectl(*words))["metadata"]["generation"]
    return generation


def condition(service: dict[str, Any], kind: str) -> dict[str, Any]:
    """One condition; empty where there is none."""
    conditions = service.get("status", {}).get("conditions", [])
    return next((item for item in conditions if item["type"] == kind), {})


def settled(service: dict[str, Any]) -> bool:
    """Whether the service was planned as it is specified now, and its replicas are as planned."""
    status = service.get("status", {})
    return (
        status.get("observedGeneration") == service["metadata"]["generation"]
        and condition(service, "Planned").get("status") == "True"
        and condition(service, "Ready").get("status") == "True"
        and condition(service, "Progressing").get("reason") == "Settled"
        and "transition" not in status
    )


def wait_settled(cluster: Cluster, name: str, *, timeout_s: float = SETTLE_TIMEOUT_S) -> dict[str, Any]:
    """Wait until a service is settled; gives it."""
    wait_until(
        lambda: settled(get(cluster, name)),
        timeout_s,
        lambda: f"{name} is settled: {get(cluster, name).get('status')}",
    )
    return get(cluster, name)


def wait_condition(
    cluster: Cluster, name: str, kind: str, *, status: str, reason: str, timeout_s: float = SETTLE_TIMEOUT_S
) -> dict[str, Any]:
    """Wait until a condition says this of the present specification; gives the service."""

    def says_so() -> bool:
        service = get(cluster, name)
        found = condition(service, kind)
        current = found.get("observedGeneration") == service["metadata"]["generation"]
        return current and (found["status"], found["reason"]) == (status, reason)

    wait_until(says_so, timeout_s, lambda: f"{name}: {kind} is {status} ({reason}): {get(cluster, name).get('status')}")
    return get(cluster, name)


def mix(service: dict[str, Any]) -> dict[str, int]:
    """The replicas that are planned, by pool."""
    found: dict[str, int] = {}
    for entry in service["status"]["plan"]["entries"]:
        found[entry["pool"]] = found.get(entry["pool"], 0) + entry["replicas"]
    return found


def pods(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    """The service's pods that are not being deleted, sorted by name."""
    items = cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/pods", labelSelector=f"medley.dev/service={name}")["items"]
    alive = [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]
    return sorted(alive, key=lambda pod: pod["metadata"]["name"])


def pods_by_pool(cluster: Cluster, name: str) -> dict[str, int]:
    """How many pods the service has in each pool."""
    found: dict[str, int] = {}
    for pod in pods(cluster, name):
        pool = pod["metadata"]["labels"]["medley.dev/pool"]
        found[pool] = found.get(pool, 0) + 1
    return found


def is_draining(pod: dict[str, Any]) -> bool:
    """Whether the pod is marked as draining."""
    return "medley.dev/draining" in pod["metadata"].get("annotations", {})


def events(cluster: Cluster, name: str) -> dict[str, str]:
    """The messages of a service's events by reason; the last of each."""
    items = cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/events")["items"]
    about = [event for event in items if event["involvedObject"]["name"] == name]
    about.sort(key=lambda event: event["metadata"]["creationTimestamp"])
    return {event["reason"]: event["message"] for event in about}


def delete_services(cluster: Cluster, *, timeout_s: float = 60.0) -> None:
    """Delete every LLMService, and wait until nothing of them is left."""
    cluster.kubectl("delete", "llmservices", "--all", "--all-namespaces")
    kinds = "deployments,replicasets,pods,services,poddisruptionbudgets"

    def nothing_left() -> bool:
        return not cluster.get_json(kinds, "-A", "-l", "app.kubernetes.io/managed-by=medley")["items"]

    wait_until(nothing_left, timeout_s, "everything of the services is gone")
