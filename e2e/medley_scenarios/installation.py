"""Medley on a test cluster: the chart installed with Helm, and operators that run in it or beside it.

An operator beside the cluster is a process of this machine that acts as the chart's ServiceAccount, under the roles
that the chart grants: tests can kill, restart and measure it, and RBAC is the real one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from medley_cluster.addresses import free_port
from medley_cluster.cluster import Cluster
from medley_cluster.progress import Steps
from medley_cluster.toolchain import find_helm
from medley_cluster.waiting import wait_until

CHECKOUT = Path(__file__).resolve().parents[2]
CHART = CHECKOUT / "helm" / "medley"
NAMESPACE = "medley-system"
RELEASE = "medley"


def install_chart(cluster: Cluster, **values: Any) -> None:
    """Install or upgrade the chart in a namespace that enforces restricted pod security; RuntimeError says why not."""
    cluster.api.create(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }
    )
    settings = [word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]
    command = [str(find_helm(Steps(quiet=True))), "upgrade", "--install", RELEASE, str(CHART)]
    done = subprocess.run(
        [*command, "--namespace", NAMESPACE, *settings],
        env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode != 0:
        raise RuntimeError(f"helm upgrade --install: {done.stderr.strip()}")


def operator_settings(cluster: Cluster, name: str, metrics_port: int, health_port: int) -> dict[str, str]:
    """The environment of an operator beside the cluster, quicker to notice a lost leader than the chart's defaults."""
    return {
        "KUBECONFIG": str(cluster.service_account_kubeconfig(NAMESPACE, "medley")),
        "MALLOC_ARENA_MAX": "2",  # as in the image
        "MEDLEY_POD_NAME": name,
        "MEDLEY_LEASE_NAMESPACE": NAMESPACE,
        "MEDLEY_LEASE_DURATION_SECONDS": "4",
        "MEDLEY_RENEW_DEADLINE_SECONDS": "3",
        "MEDLEY_RETRY_PERIOD_SECONDS": "1",
        "MEDLEY_PLAN_INTERVAL_SECONDS": "5",
        "MEDLEY_METRICS_PORT": str(metrics_port),
        "MEDLEY_HEALTH_PORT": str(health_port),
    }


@dataclass
class OperatorProcess:
    """One operator beside the cluster. `start` may be called again after `kill` or `stop`."""

    cluster: Cluster
    log: Path
    name: str = "operator-0"
    settings: dict[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None
    _metrics_port: int = 0
    _health_port: int = 0

    @property
    def pid(self) -> int:
        """The process id; RuntimeError where it is not running."""
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self.name} is not running: {self.log_tail()}")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait_ready: bool = True) -> None:
        """Start it, and wait until it is ready."""
        self._metrics_port = free_port("0.0.0.0", self._metrics_port or 18080)
        self._health_port = free_port("0.0.0.0", self._health_port or self._metrics_port + 1)
        settings = operator_settings(self.cluster, self.name, self._metrics_port, self._health_port)
        environment = {**os.environ, **settings, **self.settings}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "medley_operator.main", "run"], env=environment, stdout=output, stderr=output
            )
        if wait_ready:
            wait_until(self.ready, 40.0, lambda: f"{self.name} is ready: {self.log_tail()}")

    def ready(self) -> bool:
        """Whether it says that it is ready; RuntimeError where it ended."""
        assert self.pid
        try:
            return httpx.get(f"http://127.0.0.1:{self._health_port}/readyz", timeout=2.0, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def metrics(self) -> str:
        """Its Prometheus metrics, as text."""
        return httpx.get(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=5.0, trust_env=False).text

    def kill(self) -> None:
        """SIGKILL: no chance to clean up."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, as Kubernetes ends a pod."""
        self._end(signal.SIGTERM)

    def usage(self) -> psutil.Process:
        """Its processor time and memory, read through psutil."""
        return psutil.Process(self.pid)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def _end(self, signal_number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal_number)
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=5)
        self._process = None
