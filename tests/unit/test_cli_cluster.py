"""`medley explain` and `medley discover` against an HTTP server that answers as an API server does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from medley_operator.api.gpupool import GPUPool
from medley_operator.api.manifest import parse
from medley_operator.cli.app import app
from medley_operator.workloads import naming

PREFIX = "/apis/medley.dev/v1alpha1/namespaces/web/llmservices"
PLAN = {
    "mix": "1×a100 + 2×l4",
    "entries": [
        {
            "pool": "a100",
            "gpu": "A100-80GB",
            "tensorParallel": 1,
            "pipelineParallel": 1,
            "dataParallel": 1,
            "replicas": 1,
            "gpus": 1,
            "costPerHour": 3.43,
            "utilisation": 0.9,
        },
        {
            "pool": "l4",
            "gpu": "L4",
            "tensorParallel": 1,
            "pipelineParallel": 1,
            "dataParallel": 1,
            "replicas": 2,
            "gpus": 2,
            "costPerHour": 1.61,
            "utilisation": 0.7,
        },
    ],
    "costPerHour": 5.04,
    "lowerBound": 5.01,
    "gapPercent": 0.6,
    "outcome": "Planned",
    "reason": "1×a100 + 2×l4 serves 8 req/s for 5.04 $/h",
    "servedPercent": 100,
    "binding": [{"constraint": "stock", "subject": "l4", "detail": "one more l4 would save 0.20 $/h"}],
    "alternatives": [{"name": "only h100", "detail": "no stock"}],
    "rejected": [
        {
            "pool": "h100",
            "tensorParallel": 1,
            "pipelineParallel": 1,
            "dataParallel": 1,
            "reason": "NoStock",
            "detail": "no GPU is free",
        },
        {
            "pool": "h100",
            "tensorParallel": 2,
            "pipelineParallel": 1,
            "dataParallel": 1,
            "reason": "NoStock",
            "detail": "no GPU is free",
        },
    ],
    "capacitySources": [
        {"pool": "l4", "tensorParallel": 1, "pipelineParallel": 1, "dataParallel": 1, "source": "roofline"}
    ],
}


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    when = "2026-05-01T10:00:00Z"
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": when}


def service(generation: int = 2, **status: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "apiVersion": "medley.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "chat", "namespace": "web", "generation": generation, "uid": "u"},
        "spec": {
            "model": {"name": "org/eight"},
            "objectives": {"timeToFirstToken": {"milliseconds": 1500}},
            "workload": {"rate": 8, "sizes": {"preset": "azure-conversation-2023"}},
        },
    }
    return made | ({"status": status} if status else {})


RUNNING = service(
    observedGeneration=2,
    plan=PLAN,
    conditions=[condition("Planned", "True", "Planned", "as asked"), condition("Ready", "False", "Progressing")],
    replicas={"summary": "2/3", "desired": 3, "ready": 2, "serving": 2, "draining": 1},
    transition={
        "id": "t1",
        "phase": "Draining",
        "reason": "CheaperMix",
        "message": "moves 1×h100 to 2×l4",
        "startedAt": "2026-05-01T10:00:00Z",
        "from": {"chat-h100-tp1-aaaa": 1},
        "to": {"chat-l4-tp1-bbbb": 2},
    },
    lastTransition={
        "id": "t0",
        "reason": "FirstPlan",
        "outcome": "Completed",
        "message": "1×h100",
        "startedAt": "2026-05-01T08:00:00Z",
        "endedAt": "2026-05-01T08:03:00Z",
    },
    candidate={"mix": "3×l4", "costPerHour": 2.41, "since": "2026-05-01T10:05:00Z"},
    endpoint="http://chat.web.svc:8000",
)


class Server:
    """Answers GET with the objects in `objects` by path, lists in pages of two, and else with a Status."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.lists: dict[str, list[dict[str, Any]]] = {}
        self.refusal: tuple[int, bytes] | None = None
        handler = type("Handler", (_Handler,), {"answers": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    answers: Server

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        asked = dict(part.split("=") for part in query.split("&") if part)
        if self.answers.refusal is not None:
            self._send(*self.answers.refusal)
        elif path in self.answers.objects:
            self._send(200, json.dumps(self.answers.objects[path]).encode())
        elif path in self.answers.lists:
            start = int(asked.get("continue", 0))
            items = self.answers.lists[path]
            rest = {"continue": str(start + 2)} if start + 2 < len(items) else {}
            self._send(200, json.dumps({"metadata": rest, "items": items[start : start + 2]}).encode())
        else:
            self._send(404, json.dumps({"kind": "Status", "code": 404, "message": f"{path} not found"}).encode())

    def _send(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing on the tests' output."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


@pytest.fixture
def kubeconfig(server: Server, tmp_path: Path) -> Path:
    return write_kubeconfig(tmp_path, server.url)


def write_kubeconfig(folder: Path, url: str) -> Path:
    path = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [
            {"name": "web", "context": {"cluster": "c", "user": "u", "namespace": "web"}},
            {"name": "plain", "context": {"cluster": "c", "user": "u"}},
        ],
        "current-context": "web",
    }
    path.write_text(yaml.safe_dump(config))
    return path


def medley(kubeconfig: Path, *arguments: str) -> Result:
    command = [arguments[0], "--kubeconfig", str(kubeconfig), *arguments[1:]]
    return CliRunner().invoke(app, command, env={"COLUMNS": "160", "NO_COLOR": "1"})


def test_explain_shows_the_plan_the_change_and_the_conditions(server: Server, kubeconfig: Path) -> None:
    server.objects[f"{PREFIX}/chat"] = RUNNING
    result = medley(kubeconfig, "explain", "llm/chat")
    assert result.exit_code == 0, result.output
    for words in (
        "web/chat  org/eight  8 requests/s, ≤ 1500 ms to the first",
        "2 of 3 serving, 2 ready, 1 draining",
        "Draining  CheaperMix: moves 1×h100 to 2×l4",
        "chat-l4-tp1-bbbb",
        "lower bound 5.01 $/h, gap 0.6 %",
        "stock (l4)  one more l4 would save 0.20 $/h",
        "h100 × 1, 2",
        "3×l4 at 2.41 $/h",
        "FirstPlan: 1×h100",
        "Planned",
        "as asked",
    ):
        assert words in result.stdout, words


def test_explain_for_programs_is_the_status(server: Server, kubeconfig: Path) -> None:
    server.objects[f"{PREFIX}/chat"] = RUNNING
    result = medley(kubeconfig, "explain", "chat", "-o", "json")
    explained = json.loads(result.stdout)
    assert explained["planned"]
    assert explained["status"]["plan"] == PLAN
    assert explained["status"]["transition"]["from"] == {"chat-h100-tp1-aaaa": 1}
    assert yaml.safe_load(medley(kubeconfig, "explain", "chat", "-o", "yaml").stdout) == explained


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (service(), "has not looked at it yet"),
        (
            service(
                generation=3, observedGeneration=2, plan=PLAN, conditions=[condition("Planned", "True", "Planned")]
            ),
            "has not looked at the latest change",
        ),
        (
            service(observedGeneration=2, conditions=[condition("Planned", "False", "UnknownPool", "no GPUPool 'l5'")]),
            "no GPUPool 'l5'",
        ),
    ],
)
def test_explain_ends_with_status_1_where_nothing_is_planned(
    server: Server, kubeconfig: Path, manifest: dict[str, Any], words: str
) -> None:
    server.objects[f"{PREFIX}/chat"] = manifest
    result = medley(kubeconfig, "explain", "chat")
    assert result.exit_code == 1
    assert words in result.stdout


def test_explain_names_the_nearest_service(server: Server, kubeconfig: Path) -> None:
    server.lists[PREFIX] = [{"metadata": {"name": name}} for name in ("chat", "code", "search")]
    result = medley(kubeconfig, "explain", "chad")
    assert result.exit_code == 2
    assert result.stderr.strip() == "error: namespace 'web' has no LLMService 'chad'; did you mean chat?"


def test_the_namespace_is_asked_for_or_that_of_the_context(server: Server, kubeconfig: Path) -> None:
    server.objects[f"{PREFIX}/chat"] = RUNNING
    assert medley(kubeconfig, "explain", "chat", "--context", "plain").exit_code == 2
    assert medley(kubeconfig, "explain", "chat", "--context", "plain", "-n", "web").exit_code == 0


@pytest.mark.parametrize(("target", "words"), [("pod/chat", "only LLMServices"), ("llm/", "a name is missing")])
def test_targets_that_cannot_be_explained(kubeconfig: Path, target: str, words: str) -> None:
    result = medley(kubeconfig, "explain", target)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((403, json.dumps({"kind": "Status", "message": "llmservices is forbidden"}).encode()), "is forbidden"),
        ((500, b"<html>oops"), "HTTP status 500"),
        ((200, b"<html>login"), "answered with something that is not JSON"),
    ],
)
def test_an_api_server_that_refuses(server: Server, kubeconfig: Path, refusal: tuple[int, bytes], words: str) -> None:
    server.refusal = refusal
    result = medley(kubeconfig, "explain", "chat")
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_no_cluster(tmp_path: Path) -> None:
    away = medley(write_kubeconfig(tmp_path, "http://127.0.0.1:9"), "explain", "chat")
    assert away.exit_code == 2
    assert "cannot be reached" in away.stderr
    missing = medley(tmp_path / "nothing", "explain", "chat")
    assert missing.exit_code == 2
    assert "no cluster is configured" in missing.stderr
    wrong = medley(write_kubeconfig(tmp_path, "http://127.0.0.1:9"), "explain", "chat", "--context", "nope")
    assert wrong.exit_code == 2
    assert "no cluster is configured" in wrong.stderr


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


def test_discover_makes_a_pool_for_each_kind_of_node(server: Server, kubeconfig: Path) -> None:
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


def test_spot_nodes_and_others_are_told_apart_where_a_label_does(server: Server, kubeconfig: Path) -> None:
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


def test_discovered_pools_are_valid_once_what_is_missing_is_filled_in(server: Server, kubeconfig: Path) -> None:
    server.lists["/api/v1/nodes"] = NODES
    listed = json.loads(medley(kubeconfig, "discover", "-o", "json").stdout)
    for item in listed["items"]:
        item["spec"].setdefault("pricePerGPUHour", 1)
        if item["spec"]["gpu"]["type"] == "NVIDIA-Future-9000":
            item["spec"]["gpu"] |= {"memoryBandwidthGBps": 8000, "teraflops": 2500}
        assert parse(GPUPool, item).name == item["metadata"]["name"]


def test_the_yaml_and_the_json_of_discover_say_the_same(server: Server, kubeconfig: Path) -> None:
    server.lists["/api/v1/nodes"] = NODES
    listed = json.loads(medley(kubeconfig, "discover", "-o", "json").stdout)
    assert list(yaml.safe_load_all(medley(kubeconfig, "discover").stdout)) == listed["items"]


def test_discover_as_a_table(server: Server, kubeconfig: Path) -> None:
    server.lists["/api/v1/nodes"] = NODES
    shown = medley(kubeconfig, "discover", "-o", "table").stdout
    assert "NVIDIA-Future-9000 (not in the catalogue)" in shown
    assert "to fill in" in shown


def test_a_cluster_without_labelled_gpus(server: Server, kubeconfig: Path) -> None:
    server.lists["/api/v1/nodes"] = [NODES[-2]]
    result = medley(kubeconfig, "discover")
    assert result.exit_code == 1
    assert "is GPU feature discovery installed?" in result.stderr


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
def live(server: Server) -> Server:
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


def test_a_clusters_fleet_is_planned_within_what_is_free(live: Server, kubeconfig: Path) -> None:
    status, found = planned(kubeconfig)
    assert status == 0
    assert [(pool["name"], pool["stock"]) for pool in found["pools"]] == [("l4", 5)]
    assert [each["name"] for each in found["services"]] == ["chat"]
    assert found["services"][0]["plan"]["outcome"] == "Planned"
    assert any("stock is what the cluster's nodes have free" in note for note in found["notes"])


def test_what_a_change_would_cost_before_it_is_applied(live: Server, kubeconfig: Path, tmp_path: Path) -> None:
    _, before = planned(kubeconfig)
    change = tmp_path / "change.yaml"
    change.write_text(yaml.safe_dump(live_service("chat", 4.0)) + "---\n" + yaml.safe_dump(live_service("code", 0.5)))
    status, after = planned(kubeconfig, "-f", str(change))
    assert status == 0
    assert [(each["name"], each["rate"]) for each in after["services"]] == [("chat", 4.0), ("code", 0.5)]
    assert after["costPerHour"] > before["costPerHour"]


def test_what_runs_stays_unless_a_change_pays_for_itself(live: Server, kubeconfig: Path) -> None:
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
    live: Server, kubeconfig: Path
) -> None:
    live.lists[f"{API}/llmservices"].append(live_service("lost", 1.0, gpus={"pools": ["l5"]}))
    status, found = planned(kubeconfig)
    assert status == 1
    assert found["unplanned"] == ["web/lost"]
    assert any("web/lost cannot be planned" in note and "l5" in note for note in found["notes"])
    assert [each["name"] for each in found["services"]] == ["chat"]


def test_a_mistake_in_a_change_is_told_by_file_and_line(live: Server, kubeconfig: Path, tmp_path: Path) -> None:
    change = tmp_path / "change.yaml"
    change.write_text(yaml.safe_dump(live_service("chat", 4.0, gpus={"pools": ["l5"]}), sort_keys=False))
    result = medley(kubeconfig, "plan", "--cluster", "-f", str(change))
    assert result.exit_code == 2
    assert "change.yaml:" in result.stderr
    assert "spec.gpus.pools[0]: there is no GPUPool 'l5'" in result.stderr


def test_the_trace_of_a_live_service_is_read(live: Server, kubeconfig: Path) -> None:
    sizes = {"traceConfigMap": {"name": "trace", "key": "r.csv"}}
    live.lists[f"{API}/llmservices"] = [live_service("chat", 2.0, workload={"rate": 2, "sizes": sizes})]
    status, found = planned(kubeconfig)
    assert (status, found["unplanned"]) == (1, ["web/chat"])
    data = {"r.csv": "arrival_s,input_tokens,output_tokens\n0,400,80\n1,600,120\n"}
    live.objects["/api/v1/namespaces/web/configmaps/trace"] = {"data": data}
    status, found = planned(kubeconfig)
    assert (status, found["unplanned"]) == (0, [])


def test_a_cluster_without_services_and_one_that_refuses(live: Server, kubeconfig: Path) -> None:
    live.lists[f"{API}/llmservices"] = []
    empty = medley(kubeconfig, "plan", "--cluster")
    assert (empty.exit_code, empty.stderr) == (2, "error: cluster: there is no LLMService to plan\n")
    live.refusal = (403, json.dumps({"kind": "Status", "message": "llmservices is forbidden"}).encode())
    refused = medley(kubeconfig, "plan", "--cluster")
    assert (refused.exit_code, refused.stderr) == (2, "error: llmservices is forbidden\n")


def test_without_files_and_without_a_cluster_there_is_nothing_to_plan(kubeconfig: Path) -> None:
    result = medley(kubeconfig, "plan")
    assert (result.exit_code, result.stderr) == (2, "error: nothing to plan: give files with -f, or --cluster\n")
