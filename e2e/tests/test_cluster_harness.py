"""The harness keeps its promises: what it starts behaves as a real cluster, and what it removes is gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from medley_cluster import Cluster, ClusterOptions, SimulatedPool, wait_until
from medley_cluster.images import VLLM_STANDIN_IMAGE
from medley_cluster.network import why_no_network
from medley_cluster.node_cleanup import leftovers
from medley_cluster.options import GPU_MODELS

# --- the control plane and simulated nodes ----------------------------------------------------------------------------

GATE = "medley.dev/serving"


def gpu_pod(name: str, gpu: str, *, gated: bool = False, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", **metadata},
        "spec": {
            "nodeSelector": {"nvidia.com/gpu.product": GPU_MODELS[gpu].product, "medley.dev/node": "simulated"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "readinessGates": [{"conditionType": GATE}] if gated else [],
            "containers": [{"name": "engine", "image": "x", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
        },
    }


def pod_condition(cluster: Cluster, name: str, kind: str) -> tuple[str, str]:
    pod = cluster.api.get(f"/api/v1/namespaces/default/pods/{name}")
    for condition in pod.get("status", {}).get("conditions", []):
        if condition["type"] == kind:
            return condition["status"], condition.get("reason", "")
    return "", ""


def set_gate(cluster: Cluster, name: str, status: str) -> None:
    change = {"status": {"conditions": [{"type": GATE, "status": status}]}}
    cluster.api.patch(f"/api/v1/namespaces/default/pods/{name}/status", change)


@pytest.fixture
def pods(cluster: Cluster, request: pytest.FixtureRequest) -> Any:
    """Create pods in the default namespace; they are deleted after the test."""
    names: list[str] = []

    def create(manifest: dict[str, Any]) -> str:
        cluster.api.create(manifest)
        names.append(manifest["metadata"]["name"])
        return names[-1]

    yield create
    for name in names:
        cluster.api.delete(f"/api/v1/namespaces/default/pods/{name}", grace_period_s=0)


@pytest.mark.cluster
def test_versions_are_those_of_a_release(cluster: Cluster) -> None:
    assert cluster.api.get("/version")["gitVersion"] == "v1.35.4"


@pytest.mark.cluster
def test_simulated_nodes_look_like_gpu_nodes(cluster: Cluster) -> None:
    node = cluster.api.get("/api/v1/nodes/sim-h100-0")
    assert node["metadata"]["labels"]["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    assert {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"} in node["spec"]["taints"]


@pytest.mark.cluster
def test_pod_is_ready_after_its_gpus_load_time(cluster: Cluster, pods: Any) -> None:
    started_s = time.monotonic()
    names = {gpu: pods(gpu_pod(f"load-{gpu}", gpu)) for gpu in ("l4", "h100")}
    took_s: dict[str, float] = {}
    for gpu, name in names.items():
        wait_until(lambda n=name: pod_condition(cluster, n, "Ready")[0] == "True", 15.0, f"{name} is Ready")
        took_s[gpu] = time.monotonic() - started_s
    assert GPU_MODELS["l4"].load_time_s - 0.7 < took_s["l4"] < took_s["h100"] < GPU_MODELS["h100"].load_time_s + 3.0


@pytest.mark.cluster
def test_readiness_follows_the_gate_both_ways(cluster: Cluster, pods: Any) -> None:
    name = pods(gpu_pod("gated", "l4", gated=True))
    wait_until(lambda: pod_condition(cluster, name, "ContainersReady")[0] == "True", 15.0, "the containers are ready")
    wait_until(lambda: pod_condition(cluster, name, "Ready") == ("False", "ReadinessGatesNotReady"), 5.0, "gated")
    for status, ready in (("True", "True"), ("False", "False"), ("True", "True")):
        set_gate(cluster, name, status)
        wait_until(lambda r=ready: pod_condition(cluster, name, "Ready")[0] == r, 5.0, f"Ready is {ready}")


@pytest.mark.cluster
def test_pod_can_crash_and_recover(cluster: Cluster, pods: Any) -> None:
    name = pods(gpu_pod("crasher", "l4"))
    wait_until(lambda: pod_condition(cluster, name, "Ready")[0] == "True", 15.0, "Ready")
    path = f"/api/v1/namespaces/default/pods/{name}"
    cluster.api.patch(path, {"metadata": {"annotations": {"medley.dev/simulated-crash": "true"}}})
    wait_until(lambda: pod_condition(cluster, name, "Ready")[0] == "False", 5.0, "not Ready")
    (container,) = cluster.api.get(path)["status"]["containerStatuses"]
    assert container["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert container["restartCount"] == 1
    cluster.api.patch(path, {"metadata": {"annotations": {"medley.dev/simulated-crash": None}}})
    wait_until(lambda: pod_condition(cluster, name, "Ready")[0] == "True", 10.0, "Ready again")


@pytest.mark.cluster
def test_pod_without_room_stays_pending_until_nodes_come(cluster: Cluster, pods: Any) -> None:
    manifest = gpu_pod("large", "a100")
    manifest["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = "16"
    name = pods(manifest)
    wait_until(
        lambda: pod_condition(cluster, name, "PodScheduled") == ("False", "Unschedulable"), 10.0, "unschedulable"
    )
    added = cluster.add_gpu_nodes("a100", 1, gpus_per_node=16)
    wait_until(lambda: pod_condition(cluster, name, "Ready")[0] == "True", 20.0, "Ready on the new node")
    cluster.remove_nodes(*added)
    wait_until(lambda: not cluster.api.find(f"/api/v1/namespaces/default/pods/{name}"), 5.0, "gone with its node")


@pytest.mark.cluster
def test_failed_node_is_not_ready_and_recovers(cluster: Cluster) -> None:
    cluster.fail_nodes("sim-l4-2")
    wait_until(lambda: "sim-l4-2" not in cluster.ready_nodes(), 10.0, "NotReady")
    cluster.fail_nodes("sim-l4-2", reason=None)
    wait_until(lambda: "sim-l4-2" in cluster.ready_nodes(), 10.0, "Ready again")


@pytest.mark.cluster
def test_simulated_pod_answers_and_its_metrics_can_be_held(cluster: Cluster, pods: Any) -> None:
    if not cluster.has_network:
        pytest.skip(f"simulated pods have no addresses of their own: {why_no_network()}")
    name = pods(gpu_pod("engine", "l4"))
    path = f"/api/v1/namespaces/default/pods/{name}"
    address = wait_until(lambda: cluster.api.get(path)["status"].get("podIP"), 10.0, "an address")
    base = f"http://{address}:8000"
    answer = httpx.post(f"{base}/v1/completions", json={"model": "m", "prompt": "hi"}, trust_env=False)
    assert answer.json()["choices"][0]["text"]
    cluster.set_engine_metrics(address, running=2)
    assert "vllm:num_requests_running{" in httpx.get(f"{base}/metrics", trust_env=False).text
    cluster.set_engine_metrics(address, running=0, healthy=False)
    assert httpx.get(f"{base}/health", trust_env=False).status_code == 503
    cluster.set_engine_metrics(address, healthy=True)  # a later pod may get this address
    assert httpx.get(f"{base}/health", trust_env=False).status_code == 200


@pytest.mark.cluster
def test_service_account_may_do_only_what_it_is_granted(cluster: Cluster) -> None:
    account = {"kind": "ServiceAccount", "metadata": {"name": "limited", "namespace": "default"}}
    cluster.api.create({"apiVersion": "v1", **account})
    kubeconfig = cluster.service_account_kubeconfig("default", "limited")
    command = [cluster.kubectl_command[0], f"--kubeconfig={kubeconfig}"]
    refused = subprocess.run([*command, "get", "secrets"], capture_output=True, text=True, check=False)
    assert "forbidden" in refused.stderr
    assert "system:serviceaccount:default:limited" in refused.stderr
    if cluster.audit_log:
        log = cluster.audit_log
        wait_until(
            lambda: '"username":"system:serviceaccount:default:limited"' in log.read_text(), 5.0, "it is audited"
        )


@pytest.mark.cluster
def test_objects_survive_a_restart_of_etcd_and_of_the_api_server(cluster: Cluster) -> None:
    cluster.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "survivor"}})
    cluster.restart_etcd()
    cluster.stop_apiserver()
    assert not cluster.api.ready()
    cluster.start_apiserver()
    assert cluster.api.find("/api/v1/namespaces/survivor")
    cluster.api.delete("/api/v1/namespaces/survivor")


@pytest.mark.cluster
def test_up_again_changes_nothing(cluster: Cluster) -> None:
    before = cluster.pids
    cluster.up(cluster.options)
    assert cluster.pids == before


def kill_all(cluster: Cluster) -> None:
    for process in cluster.processes.stragglers():
        with contextlib.suppress(ProcessLookupError):  # some are short, and end by themselves before their turn
            os.kill(process.pid, signal.SIGKILL)


@pytest.mark.cluster
def test_second_cluster_beside_the_first_dies_uncleanly_and_is_cleaned_up(cluster: Cluster) -> None:
    other = Cluster(f"second-{os.getpid()}")
    options = ClusterOptions(pools=(SimulatedPool("l4", 1),), real_nodes=1, prometheus=False)
    try:
        other.up(options)
        assert other.api_server != cluster.api_server
        assert "sim-l4-0" in other.ready_nodes()
        kill_all(other)
        wait_until(lambda: not other.pids, 5.0, "everything was killed")
        other.up(options)
        assert "sim-l4-0" in other.ready_nodes()
        network, state_dir, bridge = other.network, other.state_dir, other.addresses.bridge
        kill_all(other)
    finally:
        other.down()
    assert not state_dir.exists()
    assert not other.processes.stragglers()
    assert network.leftovers() == []
    assert leftovers(other.name, state_dir, bridge) == []
    assert cluster.api.ready()


@pytest.mark.cluster
def test_command_reports_as_json(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "medley_cluster", "status", "--name", cluster.name, "-o", "json", "-q"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    report = json.loads(done.stdout)
    assert report["apiServerReady"]
    assert report["nodes"]["sim-l4-0"]["gpus"] == 8


# --- a real node ----------------------------------------------------------------------------------------------------

STAND_IN_ARGUMENTS = [
    "--model",
    "meta/llama",
    "--served-model-name",
    "chat",
    "--port",
    "8000",
    "--tensor-parallel-size",
]
STAND_IN_ARGUMENTS += ["1", "--max-model-len", "4096", "--gpu-memory-utilization", "0.9", "--inter-token-latency=5ms"]


def stand_in(name: str) -> dict[str, Any]:
    container = {
        "name": "engine",
        "image": VLLM_STANDIN_IMAGE,
        "args": STAND_IN_ARGUMENTS,
        "resources": {"limits": {"nvidia.com/gpu": "1", "cpu": "500m", "memory": "256Mi"}},
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    annotations = {"prometheus.io/scrape": "true", "prometheus.io/port": "8000"}
    metadata = {"name": name, "namespace": "default", "labels": {"app": name}, "annotations": annotations}
    spec = {"nodeSelector": {"medley.dev/node": "real"}, "containers": [container], "terminationGracePeriodSeconds": 5}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def resolve(server: str, name: str) -> str | None:
    """One A query, so that the test needs no resolver library."""
    question = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    query = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + question + struct.pack(">HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(1.0)
        asker.sendto(query, (server, 53))
        answer = asker.recv(512)
    return socket.inet_ntoa(answer[-4:]) if struct.unpack(">H", answer[6:8])[0] else None


@pytest.fixture(scope="module")
def engine(node_cluster: Cluster) -> Any:
    """A stand-in vLLM on the real node with a Service, as an operator would make it."""
    name = "stand-in"
    node_cluster.api.create(stand_in(name))
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8000}]}
    metadata = {"name": name, "namespace": "default"}
    node_cluster.api.create({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    wait_until(lambda: pod_condition(node_cluster, name, "Ready")[0] == "True", 60.0, "the stand-in is Ready")
    yield node_cluster.api.get(f"/api/v1/namespaces/default/services/{name}")["spec"]["clusterIP"]
    node_cluster.api.delete(f"/api/v1/namespaces/default/services/{name}")
    node_cluster.api.delete(f"/api/v1/namespaces/default/pods/{name}", grace_period_s=0)


@pytest.mark.node
def test_stand_in_streams_through_its_service(node_cluster: Cluster, engine: str) -> None:
    request = {
        "model": "chat",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 20,
        "ignore_eos": True,
        "stream": True,
    }
    url = f"http://{engine}/v1/chat/completions"

    def stream() -> list[str]:
        with httpx.stream("POST", url, json=request, timeout=10.0, trust_env=False) as response:
            return [line for line in response.iter_lines() if line]

    lines = wait_until(stream, 10.0, "the Service answers", tolerate=(httpx.HTTPError,))
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 15


@pytest.mark.node
def test_logs_name_the_flags_that_the_stand_in_ignored(node_cluster: Cluster, engine: str) -> None:
    log = node_cluster.kubectl("logs", "stand-in")
    assert 'flag="--tensor-parallel-size"' in log
    assert 'flag="--max-model-len"' not in log


@pytest.mark.node
def test_exec_reaches_the_container(node_cluster: Cluster, engine: str) -> None:
    done = subprocess.run(
        [*node_cluster.kubectl_command, "exec", "stand-in", "--", "/vllmsim"],
        capture_output=True,
        text=True,
        check=False,
        timeout=20.0,
    )
    assert "model parameter is empty" in done.stderr


@pytest.mark.node
def test_service_names_resolve_and_others_fail_fast(node_cluster: Cluster, engine: str) -> None:
    server = node_cluster.addresses.dns
    found = wait_until(
        lambda: resolve(server, "stand-in.default.svc.cluster.local"), 10.0, "resolves", tolerate=(TimeoutError,)
    )
    assert found == engine
    assert resolve(server, "example.org") is None


@pytest.mark.node
def test_prometheus_scrapes_annotated_pods(node_cluster: Cluster, engine: str) -> None:
    url = node_cluster.prometheus_url
    if url is None:
        pytest.skip("this machine has no Prometheus")

    def series() -> list[Any]:
        query = {"query": 'up{pod="stand-in"} == 1'}
        answer = httpx.get(f"{url}/api/v1/query", params=query, timeout=5.0, trust_env=False)
        return list(answer.json()["data"]["result"])

    wait_until(series, 20.0, "Prometheus scrapes the stand-in")


@pytest.mark.node
def test_real_node_advertises_gpus(node_cluster: Cluster) -> None:
    node = node_cluster.api.get("/api/v1/nodes/real-0")
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    assert node["metadata"]["labels"]["medley.dev/node"] == "real"
    assert not node["spec"].get("taints")
