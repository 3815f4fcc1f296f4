"""One cluster on this machine: brought up, looked at, changed and removed through this object.

Its state folder holds everything it made.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx

from medley_cluster.addresses import Addresses
from medley_cluster.api import ApiClient
from medley_cluster.bring_up import bring_up, take_down
from medley_cluster.cache import cache_root, exclusive
from medley_cluster.cluster_state import ClusterState
from medley_cluster.control_plane import ControlPlane, Endpoints
from medley_cluster.debian import PROMETHEUS, find_programs
from medley_cluster.kubeconfig import write_kubeconfig
from medley_cluster.network import ClusterNetwork
from medley_cluster.options import ClusterOptions
from medley_cluster.processes import ProcessTable
from medley_cluster.progress import Steps
from medley_cluster.prometheus import Prometheus
from medley_cluster.real_nodes import RealNodes
from medley_cluster.simulated_nodes import SimulatedNodes
from medley_cluster.toolchain import CONTROL_PLANE, go_program

DEFAULT_NAME = "medley"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?")


class Cluster:
    """A cluster by name. Constructing it touches nothing; `up` and `down` may be repeated."""

    def __init__(self, name: str = DEFAULT_NAME, steps: Steps | None = None) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a cluster name: {name!r} (want lower-case letters, digits and '-', at most 32)")
        self.name = name
        self.state_dir = cache_root() / "clusters" / name
        self.steps = steps or Steps(quiet=True)
        self.processes = ProcessTable(self.state_dir)
        self.state = ClusterState(self.state_dir)
        self._control_plane: ControlPlane | None = None

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether it was brought up and not removed."""
        return self.state.exists

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.state_dir / "kubeconfig"

    @property
    def options(self) -> ClusterOptions:
        """What it was asked to be."""
        return self.state.options

    @property
    def addresses(self) -> Addresses:
        """The networks it uses."""
        return self.state.addresses

    @property
    def endpoints(self) -> Endpoints:
        """Where its parts listen."""
        return self.state.endpoints

    @property
    def has_network(self) -> bool:
        """Whether the cluster has a bridge and namespaces of its own (it needs root)."""
        return self.state.has_network

    @property
    def api_server(self) -> str:
        """The API server's URL."""
        return self.endpoints.api_server

    @property
    def api(self) -> ApiClient:
        """A client with the administrator's rights."""
        return self.control_plane.api

    @property
    def audit_log(self) -> Path | None:
        """JSON lines of every request by users and workloads (the cluster's own components are left out)."""
        return self.control_plane.audit_log

    @property
    def prometheus_url(self) -> str | None:
        """Prometheus' URL, or None where it does not run."""
        endpoints = self.endpoints
        return f"http://{endpoints.host}:{endpoints.prometheus_port}" if self.processes.get("prometheus") else None

    @property
    def operator_image(self) -> str:
        """The name of the operator's image on the real nodes; `up` with the option `operator_image` provides it."""
        name = self.state.operator_image
        if name is None:
            raise RuntimeError(f"the cluster {self.name!r} was brought up without the operator's image")
        return name

    @property
    def engine_control_url(self) -> str:
        """Where the fake engine's state can be read and set per pod address: GET or PATCH /pods/ADDRESS."""
        host = self.addresses.simulation if self.has_network else "127.0.0.1"
        return f"http://{host}:{self.endpoints.engine_control_port}"

    @property
    def pids(self) -> dict[str, int]:
        """The processes that run, by name."""
        return {record.name: record.pid for record in self.processes.all() if record.alive()}

    def log_path(self, process: str) -> Path:
        """The log of one process."""
        return self.processes.log_path(process)

    @property
    def control_plane(self) -> ControlPlane:
        """etcd, the API server and the controllers."""
        if self._control_plane is None:
            self._control_plane = ControlPlane(
                state_dir=self.state_dir,
                programs=go_program(CONTROL_PLANE, Steps(quiet=True)),
                endpoints=self.endpoints,
                addresses=self.addresses,
                processes=self.processes,
                audit=self.options.audit,
            )
        return self._control_plane

    @property
    def simulated_nodes(self) -> SimulatedNodes:
        """The simulated nodes."""
        return SimulatedNodes(self.api, self.processes, self.state_dir)

    @property
    def _prometheus(self) -> Prometheus:
        return Prometheus(
            state_dir=self.state_dir,
            control_plane=self.control_plane,
            programs=find_programs(PROMETHEUS, Steps(quiet=True)),
            processes=self.processes,
        )

    @property
    def network(self) -> ClusterNetwork:
        """Its links on this machine."""
        return ClusterNetwork(self.addresses)

    # --- up and down ------------------------------------------------------------------------------------------------

    def up(self, options: ClusterOptions | None = None) -> Cluster:
        """Bring the cluster up, or what is missing of it; after an unclean stop, clean up first."""
        with exclusive(self._lock_file):
            bring_up(self, options or ClusterOptions())
        return self

    def down(self) -> None:
        """Remove every trace of the cluster. Processes that it did not start are left alone."""
        with exclusive(self._lock_file):
            take_down(self)
        self._lock_file.unlink(missing_ok=True)

    def disconnect(self) -> None:
        """Close connections to the API server; they are made again when needed."""
        if self._control_plane is not None:
            self._control_plane.close()
            self._control_plane = None

    def others(self) -> list[Cluster]:
        """The other clusters on this machine."""
        return [Cluster(name) for name in cluster_names() if name != self.name]

    # --- using it ---------------------------------------------------------------------------------------------------

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout_s: float = 60.0) -> str:
        """Run kubectl as the administrator and return what it printed."""
        done = subprocess.run(
            [*self.kubectl_command, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    @property
    def kubectl_command(self) -> list[str]:
        """kubectl with its kubeconfig: append arguments."""
        return [str(self.control_plane.programs / "kubectl"), f"--kubeconfig={self.kubeconfig}"]

    def get_json(self, *arguments: str) -> Any:
        """What `kubectl get … -o json` says."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def ready_nodes(self) -> set[str]:
        """The names of the nodes that are Ready."""
        ready = set()
        for node in self.api.get("/api/v1/nodes")["items"]:
            for condition in node.get("status", {}).get("conditions", []):
                if condition["type"] == "Ready" and condition["status"] == "True":
                    ready.add(node["metadata"]["name"])
        return ready

    def restart_etcd(self) -> None:
        """Kill etcd, start it again and wait until the API serves."""
        self.control_plane.restart_etcd()

    def stop_apiserver(self) -> None:
        """Kill the API server."""
        self.control_plane.stop_apiserver()

    def start_apiserver(self) -> None:
        """Start the API server again and wait until it is ready."""
        self.control_plane.start_apiserver()

    def stop_prometheus(self) -> None:
        """Stop Prometheus, as if it had failed; its data stay."""
        self._prometheus.stop()

    def start_prometheus(self) -> None:
        """Start Prometheus again."""
        self._prometheus.start()

    def real_nodes(self) -> RealNodes:
        """The real nodes: partition one, stop its kubelet, import an image."""
        return RealNodes.prepare(self, self.options)

    def add_gpu_nodes(
        self, gpu: str, count: int, gpus_per_node: int | None = None, zone: str | None = None
    ) -> list[str]:
        """Add simulated nodes of a GPU type (l4, a10g, a100, h100, t4); their names. They are Ready within a second."""
        return self.simulated_nodes.extend(gpu, count, gpus_per_node, zone)

    def remove_nodes(self, *names: str) -> None:
        """Take simulated nodes away, with the pods on them."""
        self.simulated_nodes.remove(names)

    def fail_nodes(self, *names: str, reason: str | None = "SimulatedFailure") -> None:
        """Make simulated nodes NotReady, or Ready again with `reason=None`."""
        self.simulated_nodes.set_failed(names, reason)

    def set_engine_metrics(self, pod_address: str, **fields: Any) -> None:
        """Change what the fake engine of a simulated pod says, e.g. `running=3`, `waiting=1`, `healthy=False`."""
        httpx.patch(
            f"{self.engine_control_url}/pods/{pod_address}", json=fields, timeout=5.0, trust_env=False
        ).raise_for_status()

    def reset_engine_metrics(self) -> None:
        """Make the fake engines of all simulated pods idle and healthy again, as a new pod's engine is."""
        httpx.delete(f"{self.engine_control_url}/pods", timeout=5.0, trust_env=False).raise_for_status()

    def service_account_kubeconfig(
        self, namespace: str, service_account: str, path: Path | None = None, lifetime_s: int = 86400
    ) -> Path:
        """A kubeconfig with which a local process acts as a ServiceAccount, under its RBAC."""
        url = f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        answer = self.api.post(url, {**body, "spec": {"expirationSeconds": lifetime_s}})
        return write_kubeconfig(
            path or self.state_dir / "config" / f"{namespace}-{service_account}.kubeconfig",
            server=self.api_server,
            authority=self.control_plane.authority.certificate,
            user=f"{namespace}/{service_account}",
            token=answer["status"]["token"],
            namespace=namespace,
        )

    def user_kubeconfig(self, user: str, group: str | None = None) -> Path:
        """A kubeconfig for a user (and group) of one's choosing, who may do what RBAC says."""
        return self.control_plane.component_kubeconfig(f"user-{user}", user, group)

    def status(self) -> dict[str, Any]:
        """What runs, as plain values."""
        if not self.exists:
            return {"name": self.name, "exists": False}
        running = self.pids
        report: dict[str, Any] = {
            "name": self.name,
            "exists": True,
            "kubeconfig": str(self.kubeconfig),
            "apiServer": self.api_server,
            "apiServerReady": self.api.ready(),
            "prometheus": self.prometheus_url,
            "engineControl": self.engine_control_url,
            "auditLog": str(self.audit_log) if self.audit_log else None,
            "logs": str(self.state_dir / "logs"),
            "processes": {record.name: running.get(record.name) for record in self.processes.all()},
        }
        if report["apiServerReady"]:
            ready = self.ready_nodes()
            report["nodes"] = {
                node["metadata"]["name"]: {
                    "ready": node["metadata"]["name"] in ready,
                    "gpu": node["metadata"]["labels"].get("nvidia.com/gpu.product"),
                    "gpus": int(node["status"].get("allocatable", {}).get("nvidia.com/gpu", "0")),
                    "kind": node["metadata"]["labels"].get("medley.dev/node"),
                }
                for node in self.api.get("/api/v1/nodes")["items"]
            }
        return report

    @property
    def _lock_file(self) -> Path:
        return self.state_dir.with_name(f".{self.name}.lock")


def cluster_names() -> list[str]:
    """The clusters on this machine, of this user."""
    folder = cache_root() / "clusters"
    return sorted(path.parent.name for path in folder.glob("*/cluster.json"))
