"""`medley explain` of a service of a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fake_api_server import FakeApiServer, medley, write_kubeconfig

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


def test_explain_shows_the_plan_the_change_and_the_conditions(server: FakeApiServer, kubeconfig: Path) -> None:
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


def test_explain_for_programs_is_the_status(server: FakeApiServer, kubeconfig: Path) -> None:
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
    server: FakeApiServer, kubeconfig: Path, manifest: dict[str, Any], words: str
) -> None:
    server.objects[f"{PREFIX}/chat"] = manifest
    result = medley(kubeconfig, "explain", "chat")
    assert result.exit_code == 1
    assert words in result.stdout


def test_explain_names_the_nearest_service(server: FakeApiServer, kubeconfig: Path) -> None:
    server.lists[PREFIX] = [{"metadata": {"name": name}} for name in ("chat", "code", "search")]
    result = medley(kubeconfig, "explain", "chad")
    assert result.exit_code == 2
    assert result.stderr.strip() == "error: namespace 'web' has no LLMService 'chad'; did you mean chat?"


def test_the_namespace_is_asked_for_or_that_of_the_context(server: FakeApiServer, kubeconfig: Path) -> None:
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
def test_an_api_server_that_refuses(
    server: FakeApiServer, kubeconfig: Path, refusal: tuple[int, bytes], words: str
) -> None:
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
