"""A real Prometheus on this machine: it scrapes the pods that are annotated for it, as pod_discovery finds them."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx

from medley_cluster.control_plane import ControlPlane
from medley_cluster.debian import Programs
from medley_cluster.files import write_yaml
from medley_cluster.processes import ProcessTable
from medley_cluster.waiting import wait_until

NAME = "prometheus"
DISCOVERY = "pod-discovery"
_RBAC = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: medley-cluster-prometheus}
rules:
  - {apiGroups: [""], resources: [pods, nodes, services, endpoints], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: medley-cluster-prometheus}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: medley-cluster-prometheus}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: medley-prometheus}]
"""


class Prometheus:
    """The cluster's Prometheus process."""

    def __init__(
        self, *, state_dir: Path, control_plane: ControlPlane, programs: Programs, processes: ProcessTable
    ) -> None:
        self._state_dir = state_dir
        self._control_plane = control_plane
        self._programs = programs
        self._processes = processes

    @property
    def url(self) -> str:
        """Where its API is."""
        return f"http://{self._control_plane.endpoints.host}:{self._control_plane.endpoints.prometheus_port}"

    def start(self, scrape_interval_s: int = 2) -> None:
        """Start it and wait until it can answer queries."""
        self._control_plane.api.apply_all(_RBAC)
        targets = self._state_dir / "config" / "prometheus-targets.json"
        config = self._state_dir / "config" / "prometheus.yaml"
        write_yaml(config, scrape_configuration(targets, scrape_interval_s))
        self._processes.start(DISCOVERY, self._discovery_command(targets))
        command = [
            self._programs.path("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={self._state_dir / 'prometheus'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            "--storage.tsdb.retention.time=6h",
            "--web.enable-lifecycle",
            "--log.level=warn",
        ]
        self._processes.start(NAME, command, env=self._programs.environment())
        wait_until(self.ready, 20.0, lambda: f"Prometheus is ready. {self._processes.log_tail(NAME)}")

    def _discovery_command(self, targets: Path) -> list[str]:
        authority = self._control_plane.authority
        certificate, key = authority.issue("prometheus", "medley-prometheus")
        return [
            sys.executable,
            str(Path(__file__).with_name("pod_discovery.py")),
            f"--server={self._control_plane.endpoints.api_server}",
            f"--authority={authority.certificate}",
            f"--certificate={certificate}",
            f"--key={key}",
            f"--output={targets}",
        ]

    def ready(self) -> bool:
        """Whether it answers."""
        self._processes.check(NAME)
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=2.0, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        """Stop it; its data stay."""
        self._processes.stop(NAME, grace_s=5.0)


def scrape_configuration(targets: Path, scrape_interval_s: int) -> dict[str, object]:
    """Scrape every running pod that says prometheus.io/scrape=true, at the port and path that its annotations name."""
    annotation = "__meta_kubernetes_pod_annotation_prometheus_io"
    return {
        "global": {"scrape_interval": f"{scrape_interval_s}s", "evaluation_interval": f"{scrape_interval_s}s"},
        "scrape_configs": [
            {
                "job_name": "pods",
                "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "5s"}],
                "relabel_configs": [
                    {"source_labels": [f"{annotation}_scrape"], "regex": "true", "action": "keep"},
                    {
                        "source_labels": ["__meta_kubernetes_pod_phase"],
                        "regex": "Pending|Succeeded|Failed",
                        "action": "drop",
                    },
                    # One target for each pod: the annotated port on the pod's address, whatever ports are declared.
                    {
                        "source_labels": ["__meta_kubernetes_pod_ip", f"{annotation}_port"],
                        "regex": "(.+);(.+)",
                        "replacement": "$1:$2",
                        "target_label": "__address__",
                    },
                    {
                        "source_labels": [f"{annotation}_path"],
                        "regex": "(.+)",
                        "target_label": "__metrics_path__",
                    },
                    {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
                    {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
                    {"source_labels": ["__meta_kubernetes_pod_node_name"], "target_label": "node"},
                    {"action": "labelmap", "regex": "__meta_kubernetes_pod_label_(medley_dev_.+)"},
                ],
            }
        ],
    }
