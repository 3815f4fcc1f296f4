"""`medley discover`: pools from the nodes of a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from fake_api_server import FakeApiServer, medley
from medley_operator.api.gpupool import GPUPool
from medley_operator.api.manifest import parse


def node(name: str, product: str, gpus: int, *, label: str = "nvidia.com/gpu.product", **labels: str) -> dict[str, Any]:
    resource = label.partition("/")[0].removeprefix("beta.") + "/gpu"
    return {
        "metadata": {"name": name, "labels": {label: product, **labels}},
        "spec": {"taints": [{"key": resource, "effect": "NoSchedule"}, {"key": "node.kubernetes.io/unreachable"}]},
        "status": {"capacity": {resource: str(gpus), "cpu": "8"}},
    }


NODES = [
    node("a-1", "NVIDIA-A100-SXM4-80GB", 8),
    node("a-0", "NVIDIA-A100-SXM4-80GB", 8),
    node("l-0", "NVIDIA-L4", 1),
    node("l-1", "NVIDIA-L4", 4),
    node("s-0", "NVIDIA-L4", 1, **{"karpenter.sh/capacity-type": "spot"}),
    node("m-0", "AMD_Instinct_MI300X_OAM", 8, label="amd.com/gpu.product-name"),
    node("x-0", "NVIDIA-Future-9000", 2, **{"nvidia.com/gpu.memory": "98304"}),
    {"metadata": {"name": "cpu", "labels": {}}, "spec": {}, "status": {"capacity": {"cpu": "8"}}},
    node("broken", "NVIDIA-L4", 0),
]


def test_discover_makes_a_pool_for_each_kind_of_node(server: FakeApiServer, kubeconfig: Path) -> None:
    server.lists["/api/v1/nodes"] = NODES
    result = medley(kubeconfig, "discover")
    assert result.exit_code == 0, result.output
    pools = {made["metadata"]["name"]: made["spec"] for made in yaml.safe_load_all(result.stdout)}
    assert sorted(pools) == ["a100-80gb", "future-9000", "l4-1x", "l4-4x", "l4-spot", "mi300x"]
    assert pools["a100-80gb"]["pricePerGPUHour"] == 3.43125
    assert pools["a100-80gb"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert pools["l4-4x"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.count": "4"}
    assert "karpenter.sh/capacity-type" in pools["l4-spot"]["nodeSelector"]
    assert "pricePerGPUHour" not in pools["l4-spot"]
    assert pools["mi300x"]["resourceName"] == "amd.com/gpu"
    assert pools["future-9000"]["gpu"] == {"type": "NVIDIA-Future-9000", "memoryGiB": 96}
    assert "# 2 nodes with 8 × NVIDIA-A100-SXM4-80GB: a-0, a-1" in result.stdout


def test_spot_nodes_and_others_are_told_apart_where_a_label_does(server: FakeApiServer, kubeconfig: Path) -> None:
    spot = node("s", "NVIDIA-L4", 1, **{"karpenter.sh/capacity-type": "spot"})
    labelled = node("o", "NVIDIA-L4", 1, **{"karpenter.sh/capacity-type": "on-demand"})
    server.lists["/api/v1/nodes"] = [spot, labelled]
    pools = {
        made["metadata"]["name"]: made["spec"] for made in yaml.safe_load_all(medley(kubeconfig, "discover").stdout)
    }
    assert pools["l4"]["nodeSelector"]["karpenter.sh/capacity-type"] == "on-demand"
    assert pools["l4-spot"]["nodeSelector"]["karpenter.sh/capacity-type"] == "spot"
    server.lists["/api/v1/nodes"] = [spot, node("o", "NVIDIA-L4", 1)]
    assert "# The selector matches spot nodes (karpenter.sh/capacity-type) too" in medley(kubeconfig, "discover").stdout


def test_discovered_pools_are_valid_once_what_is_missing_is_filled_in(server: FakeApiServer, kubeconfig: Path) -> None:
    server.lists["/api/v1/nodes"] = NODES
    listed = json.loads(medley(kubeconfig, "discover", "-o", "json").stdout)
    for item in listed["items"]:
        item["spec"].setdefault("pricePerGPUHour", 1)
        if item["spec"]["gpu"]["type"] == "NVIDIA-Future-9000":
            item["spec"]["gpu"] |= {"memoryBandwidthGBps": 8000, "teraflops": 2500}
        assert parse(GPUPool, item).name == item["metadata"]["name"]


def test_the_yaml_and_the_json_of_discover_say_the_same(server: FakeApiServer, kubeconfig: Path) -> None:
    server.lists["/api/v1/nodes"] = NODES
    listed = json.loads(medley(kubeconfig, "discover", "-o", "json").stdout)
    assert list(yaml.safe_load_all(medley(kubeconfig, "discover").stdout)) == listed["items"]


def test_discover_as_a_table(server: FakeApiServer, kubeconfig: Path) -> None:
    server.lists["/api/v1/nodes"] = NODES
    shown = medley(kubeconfig, "discover", "-o", "table").stdout
    assert "NVIDIA-Future-9000 (not in the catalogue)" in shown
    assert "to fill in" in shown


def test_a_cluster_without_labelled_gpus(server: FakeApiServer, kubeconfig: Path) -> None:
    server.lists["/api/v1/nodes"] = [NODES[-2]]
    result = medley(kubeconfig, "discover")
    assert result.exit_code == 1
    assert "is GPU feature discovery installed?" in result.stderr
