"""The stage of the story: the cluster, and Medley installed in it as a user would.

With a real node, the operator runs there as a pod, from the image that the repository's Dockerfile makes, installed by
the chart.
Without one, it runs as a process of this machine, under the ServiceAccount and roles that the chart installs.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from medley_cluster.addresses import free_port
from medley_cluster.cluster import Cluster
from medley_cluster.options import ClusterOptions, SimulatedPool
from medley_cluster.progress import Steps
from medley_cluster.toolchain import find_helm
from medley_cluster.waiting import wait_until
from medley_scenarios.installation import NAMESPACE, install_chart, operator_settings

POOLS = (SimulatedPool("l4", 3), SimulatedPool("a10g", 3), SimulatedPool("a100", 2), SimulatedPool("h100", 2))
QUICK_VALUES = {
    "planIntervalSeconds": 5,
    "leaderElection__leaseDurationSeconds": 4,
    "leaderElection__renewDeadlineSeconds": 3,
    "leaderElection__retryPeriodSeconds": 1,
}
"""Shorter than the chart's defaults, so that the story is short; nothing else differs from a user's install."""

OPERATORS_BESIDE = ("operator-0", "operator-1")
"""Operators where there is no real node to run them on; the harness ends them with the cluster."""


@dataclass
class Stage:
    """A cluster with Medley in it."""

    cluster: Cluster
    helm: Path
    has_real_node: bool
    why_no_real_node: str
    summary: str = ""

    @classmethod
    def set_up(cls, name: str, steps: Steps, *, real_node: bool) -> Stage:
        """Bring the cluster up and install Medley; what is there already is kept."""
        cluster = Cluster(name, steps)
        options = ClusterOptions(
            pools=POOLS, real_nodes=1 if real_node else 0, real_gpu="t4", operator_image=real_node, audit=False
        )
        cluster.up(options)
        real = [node for node in cluster.ready_nodes() if node.startswith("real")]
        why = "asked for none" if not real_node else "; ".join(f"{k}: {v}" for k, v in steps.skipped.items())
        stage = cls(cluster, find_helm(steps), bool(real), why)
        with steps.step("install the chart with Helm"):
            stage._install()
        with steps.step("the operator is ready") as step:
            step.note = stage._wait_for_operator()
        stage.summary = f"{len(cluster.ready_nodes())} nodes ({len(real)} real); {stage.summary}"
        return stage

    @property
    def environment(self) -> dict[str, str]:
        """The environment of commands that talk to the cluster."""
        return {**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig)}

    @property
    def path_additions(self) -> str:
        """Folders that hold kubectl, helm and medley."""
        folders = [Path(self.cluster.kubectl_command[0]).parent, self.helm.parent, Path(sys.executable).parent]
        return os.pathsep.join(str(folder) for folder in folders)

    def _install(self) -> None:
        values: dict[str, Any] = dict(QUICK_VALUES)
        if self.has_real_node:
            repository, _, tag = self.cluster.operator_image.rpartition(":")
            values |= {"image__repository": repository, "image__tag": tag, "image__pullPolicy": "Never"}
        else:
            values["replicas"] = 0
        install_chart(self.cluster, **values)

    def _wait_for_operator(self) -> str:
        return self._wait_for_pods() if self.has_real_node else self._start_beside_cluster()

    def _wait_for_pods(self) -> str:
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/medley-operator"

        def ready() -> int:
            status = self.cluster.api.get(path).get("status", {})
            return int(status.get("readyReplicas", 0)) if status.get("readyReplicas") == status.get("replicas") else 0

        replicas = wait_until(ready, 90.0, lambda: self.cluster.kubectl("describe", "pods", "-n", NAMESPACE))
        self.summary = f"the operator runs as {replicas} pods on the real node"
        return f"{replicas} replicas"

    def _start_beside_cluster(self) -> str:
        for name in OPERATORS_BESIDE:
            self._start_operator(name)
        self.summary = f"the operator runs as {len(OPERATORS_BESIDE)} processes beside the cluster"
        return f"{len(OPERATORS_BESIDE)} processes"

    def _start_operator(self, name: str) -> None:
        metrics_port, health_port = free_port("127.0.0.1", 18080), free_port("127.0.0.1", 18180)
        settings = operator_settings(self.cluster, name, metrics_port, health_port)
        if self.cluster.processes.alive(name):
            return
        self.cluster.processes.start(name, [sys.executable, "-m", "medley_operator", "run"], env=settings)

        def ready() -> bool:
            self.cluster.processes.check(name)
            return httpx.get(f"http://127.0.0.1:{health_port}/readyz", timeout=2.0, trust_env=False).is_success

        wait_until(ready, 60.0, f"{name} is ready", tolerate=(httpx.HTTPError,))

    def kill_leader(self) -> str:
        """Kill the leading operator without grace; the command that did it."""
        lease = self.cluster.get_json("lease", "medley-operator", "-n", NAMESPACE)
        pod = lease["spec"]["holderIdentity"]
        if not self.has_real_node:
            killed = self.cluster.processes.get(pod)
            self.cluster.processes.stop(pod, kill=True)
            self._start_operator(pod)
            return f"kill -KILL {killed.pid if killed else pod}"
        arguments = ("delete", "pod", pod, "-n", NAMESPACE, "--force", "--grace-period=0")
        self.cluster.kubectl(*arguments)
        return "kubectl " + " ".join(arguments)
