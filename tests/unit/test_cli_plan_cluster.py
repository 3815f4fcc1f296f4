"""`medley plan --cluster`: the fleet of a cluster, and what a change would cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fake_api_server import FakeApiServer, medley
from medley_operator.workloads import naming

API = "/apis/medley.dev/v1alpha1"
POOL = {
    "metadata": {"name": "l4", "uid": "p"},
    "spec": {
        "gpu": {"type": "L4"},
        "gpusPerNode": 4,
        "pricePerGPUHour": 0.8,
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    },
}
PROFILE = {
    "metadata": {"name": "eight", "uid": "m"},
    "spec": {
        "model": "org/eight",
        "architecture": {
            "parameters": 8_000_000_000,
            "layers": 32,
            "hiddenSize": 4096,
            "attentionHeads": 32,
            "keyValueHeads": 8,
            "headSize": 128,
            "maxContextTokens": 8192,
        },
    },
}


def live_service(name: str, rate: float, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "medley.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": name, "namespace": "web", "generation": 1, "uid": name},
        "spec": {
            "model": {"name": "org/eight"},
            "objectives": {"timePerOutputToken": {"milliseconds": 120}},
            "workload": {
                "rate": rate,
                "sizes": {"histogram": [{"inputTokens": 400, "outputTokens": 100, "weight": 1}]},
            },
            "gpus": {"tensorParallel": [1]},
        }
        | spec,
    }


def live_node(name: str, gpus: int) -> dict[str, Any]:
    status = {"allocatable": {"nvidia.com/gpu": str(gpus)}, "conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": {"name": name, "labels": {"nvidia.com/gpu.product": "NVIDIA-L4"}}, "spec": {}, "status": status}


def live_pod(name: str, node_name: str, gpus: int) -> dict[str, Any]:
    """A pod of somebody else that holds GPUs."""
    container = {"name": "c", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}
    return {
        "metadata": {"name": name, "namespace": "other", "uid": name},
        "spec": {"nodeName": node_name, "containers": [container]},
        "status": {"phase": "Running"},
    }


@pytest.fixture
def live(server: FakeApiServer) -> FakeApiServer:
    """Two nodes of four L4, of which others hold three; one service."""
    server.lists |= {
        f"{API}/llmservices": [live_service("chat", 2.0)],
        f"{API}/gpupools": [POOL],
        f"{API}/modelprofiles": [PROFILE],
        "/api/v1/nodes": [live_node("n-0", 4), live_node("n-1", 4)],
        "/api/v1/pods": [live_pod("theirs", "n-1", 3)],
        "/apis/apps/v1/deployments": [],
    }
    return server


def planned(kubeconfig: Path, *arguments: str) -> tuple[int, Any]:
    result = medley(kubeconfig, "plan", "--cluster", "-o", "json", *arguments)
    assert result.exit_code in {0, 1}, result.output
    return result.exit_code, json.loads(result.stdout)


def test_a_clusters_fleet_is_planned_within_what_is_free(live: FakeApiServer, kubeconfig: Path) -> None:
    status, found = planned(kubeconfig)
    assert status == 0
    assert [(pool["name"], pool["stock"]) for pool in found["pools"]] == [("l4", 5)]
    assert [each["name"] for each in found["services"]] == ["chat"]
    assert found["services"][0]["plan"]["outcome"] == "Planned"
    assert any("stock is what the cluster's nodes have free" in note for note in found["notes"])


def test_what_a_change_would_cost_before_it_is_applied(live: FakeApiServer, kubeconfig: Path, tmp_path: Path) -> None:
    _, before = planned(kubeconfig)
    change = tmp_path / "change.yaml"
    change.write_text(yaml.safe_dump(live_service("chat", 4.0)) + "---\n" + yaml.safe_dump(live_service("code", 0.5)))
    status, after = planned(kubeconfig, "-f", str(change))
    assert status == 0
    assert [(each["name"], each["rate"]) for each in after["services"]] == [("chat", 4.0), ("code", 0.5)]
    assert after["costPerHour"] > before["costPerHour"]


def test_what_runs_stays_unless_a_change_pays_for_itself(live: FakeApiServer, kubeconfig: Path) -> None:
    """A second pool of the same GPUs is cheaper by a tenth of a cent: enough for what is new, not for a move."""
    spec = POOL["spec"] | {"nodeSelector": {"pool": "other"}, "pricePerGPUHour": 0.799}
    live.lists[f"{API}/gpupools"] = [POOL, {"metadata": {"name": "other", "uid": "o"}, "spec": spec}]
    other = live_node("o-0", 4)
    other["metadata"]["labels"] = {"pool": "other"}
    live.lists["/api/v1/nodes"] = [*live.lists["/api/v1/nodes"], other]
    assert [entry["pool"] for entry in planned(kubeconfig)[1]["services"][0]["plan"]["entries"]] == ["other"]
    labels = {
        naming.LABEL_MANAGED_BY: naming.MANAGED_BY,
        naming.LABEL_SERVICE: "chat",
        naming.LABEL_POOL: "l4",
        naming.LABEL_TENSOR_PARALLEL: "1",
    }
    metadata = {"name": "chat-l4", "namespace": "web", "uid": "d", "labels": labels}
    live.lists["/apis/apps/v1/deployments"] = [{"metadata": metadata, "spec": {"replicas": 3}}]
    assert {entry["pool"] for entry in planned(kubeconfig)[1]["services"][0]["plan"]["entries"]} == {"l4"}


def test_a_service_of_the_cluster_that_cannot_be_planned_is_told_and_the_others_are(
    live: FakeApiServer, kubeconfig: Path
) -> None:
    live.lists[f"{API}/llmservices"].append(live_service("lost", 1.0, gpus={"pools": ["l5"]}))
    status, found = planned(kubeconfig)
    assert status == 1
    assert found["unplanned"] == ["web/lost"]
    assert any("web/lost cannot be planned" in note and "l5" in note for note in found["notes"])
    assert [each["name"] for each in found["services"]] == ["chat"]


def test_a_mistake_in_a_change_is_told_by_file_and_line(live: FakeApiServer, kubeconfig: Path, tmp_path: Path) -> None:
    change = tmp_path / "change.yaml"
    change.write_text(yaml.safe_dump(live_service("chat", 4.0, gpus={"pools": ["l5"]}), sort_keys=False))
    result = medley(kubeconfig, "plan", "--cluster", "-f", str(change))
    assert result.exit_code == 2
    assert "change.yaml:" in result.stderr
    assert "spec.gpus.pools[0]: there is no GPUPool 'l5'" in result.stderr


def test_the_trace_of_a_live_service_is_read(live: FakeApiServer, kubeconfig: Path) -> None:
    sizes = {"traceConfigMap": {"name": "trace", "key": "r.csv"}}
    live.lists[f"{API}/llmservices"] = [live_service("chat", 2.0, workload={"rate": 2, "sizes": sizes})]
    status, found = planned(kubeconfig)
    assert (status, found["unplanned"]) == (1, ["web/chat"])
    data = {"r.csv": "arrival_s,input_tokens,output_tokens\n0,400,80\n1,600,120\n"}
    live.objects["/api/v1/namespaces/web/configmaps/trace"] = {"data": data}
    status, found = planned(kubeconfig)
    assert (status, found["unplanned"]) == (0, [])


def test_a_cluster_without_services_and_one_that_refuses(live: FakeApiServer, kubeconfig: Path) -> None:
    live.lists[f"{API}/llmservices"] = []
    empty = medley(kubeconfig, "plan", "--cluster")
    assert (empty.exit_code, empty.stderr) == (2, "error: cluster: there is no LLMService to plan\n")
    live.refusal = (403, json.dumps({"kind": "Status", "message": "llmservices is forbidden"}).encode())
    refused = medley(kubeconfig, "plan", "--cluster")
    assert (refused.exit_code, refused.stderr) == (2, "error: llmservices is forbidden\n")


def test_without_files_and_without_a_cluster_there_is_nothing_to_plan(kubeconfig: Path) -> None:
    result = medley(kubeconfig, "plan")
    assert (result.exit_code, result.stderr) == (2, "error: nothing to plan: give files with -f, or --cluster\n")
