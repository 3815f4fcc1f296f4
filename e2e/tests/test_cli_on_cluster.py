"""The command against a real cluster with a running operator: what it explains is what the status says."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from medley_cluster.cluster import Cluster
from medley_cluster.waiting import wait_until
from medley_scenarios.installation import CHECKOUT

pytestmark = pytest.mark.cluster

SAMPLES = CHECKOUT / "manifests" / "samples"
FILES = ("gpupools.yaml", "modelprofile-llama-3.1-8b.yaml", "llmservice-chat.yaml")
COMMAND = [sys.executable, "-m", "medley_operator.cli"]


def run_medley(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user of the cluster's kubeconfig would run it."""
    env = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "COLUMNS": "160", "NO_COLOR": "1"}
    env["PYTHONPATH"] = os.pathsep.join(str(CHECKOUT / folder) for folder in ("planner", "operator"))
    return subprocess.run(
        [*COMMAND, *arguments], env=env, capture_output=True, text=True, check=False, timeout=60, cwd=CHECKOUT
    )


def kubectl_medley(cluster: Cluster, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same as a kubectl plugin: an executable `kubectl-medley` on the PATH."""
    plugin = folder / "kubectl-medley"
    paths = os.pathsep.join(str(CHECKOUT / part) for part in ("planner", "operator"))
    plugin.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(paths)} exec {shlex.join(COMMAND)} "$@"\n')
    plugin.chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "KUBECONFIG": str(cluster.kubeconfig)}
    return subprocess.run(
        [cluster.kubectl_command[0], "medley", *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def chat(medley: Cluster, start_operator: Callable[..., Any]) -> tuple[Cluster, dict[str, Any]]:
    """The sample chat service, planned by a running operator, and its status."""
    start_operator()
    medley.kubectl("apply", "-f", str(SAMPLES / "llmservice-chat.yaml"))

    def status() -> dict[str, Any]:
        return medley.get_json("llm", "chat", "-n", "default").get("status") or {}

    def planned() -> bool:
        conditions = {made["type"]: made["status"] for made in status().get("conditions", [])}
        return conditions.get("Planned") == "True" and "plan" in status()

    wait_until(planned, 60.0, "chat is planned")
    return medley, status()


def test_explain_says_what_the_status_says(chat: tuple[Cluster, dict[str, Any]], tmp_path: Path) -> None:
    cluster, status = chat
    result = run_medley(cluster, "explain", "llm/chat", "-o", "json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["status"]["plan"] == status["plan"]
    shown = kubectl_medley(cluster, tmp_path, "explain", "chat")
    assert shown.returncode == 0, shown.stderr
    for words in (status["plan"]["mix"], "lower bound", "instead", "not in the mix", "Planned"):
        assert words in shown.stdout


def test_the_plan_without_a_cluster_is_the_plan_with_one(
    chat: tuple[Cluster, dict[str, Any]],
) -> None:
    cluster, status = chat
    files = [word for name in FILES for word in ("-f", str(SAMPLES / name))]
    planned = json.loads(run_medley(cluster, "plan", *files, "-o", "json").stdout)
    assert planned["services"][0]["plan"]["entries"] == status["plan"]["entries"]


def test_explain_of_a_service_that_is_not_there(medley: Cluster) -> None:
    result = run_medley(medley, "explain", "nobody", "-n", "default")
    assert result.returncode == 2
    assert "has no LLMService 'nobody'" in result.stderr
    assert "Traceback" not in result.stderr


def test_discovered_pools_select_the_nodes_they_were_made_of(medley: Cluster) -> None:
    result = run_medley(medley, "discover")
    assert result.returncode == 0, result.stderr
    pools = list(yaml.safe_load_all(result.stdout))
    products = {node["metadata"]["labels"].get("nvidia.com/gpu.product") for node in medley.get_json("nodes")["items"]}
    assert len(pools) == len(products - {None}) >= 4
    for pool in pools:
        pool["metadata"]["name"] = f"found-{pool['metadata']['name']}"
        pool["spec"].setdefault("pricePerGPUHour", 1.0)  # left to the user where no price is known
        selector = ",".join(f"{key}={value}" for key, value in pool["spec"]["nodeSelector"].items())
        nodes = medley.get_json("nodes", "-l", selector)["items"]
        assert nodes
        wanted = str(pool["spec"]["gpusPerNode"])
        assert all(node["status"]["capacity"]["nvidia.com/gpu"] == wanted for node in nodes)
    medley.kubectl("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(pools))
