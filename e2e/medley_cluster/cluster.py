"""One cluster on this machine: brought up, looked at, changed and removed through this object.

Its state folder holds everything it made; what it is (`cluster.json`) is written before anything is started, so that
a cluster whose start was interrupted can always be removed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from medley_cluster.addresses import SERVICE_PORTS, Addresses, claim_index, free_port, primary_address, release_index
from medley_cluster.api import ApiClient
from medley_cluster.cache import cache_root, exclusive
from medley_cluster.control_plane import ControlPlane, Endpoints
from medley_cluster.debian import PROMETHEUS, Programs, find_programs
from medley_cluster.kubeconfig import write_kubeconfig
from medley_cluster.network import ClusterNetwork, why_no_network
from medley_cluster.node_cleanup import remove_node_files, restore_kernel_settings, stop_node_processes
from medley_cluster.options import ClusterOptions
from medley_cluster.processes import ProcessTable, terminate
from medley_cluster.progress import Steps
from medley_cluster.prometheus import Prometheus
from medley_cluster.real_nodes import NodesImpossibleError, RealNodes
from medley_cluster.simulated_nodes import SimulatedNodes
from medley_cluster.toolchain import CONTROL_PLANE, KWOK, ToolError, go_program, run_checked
from medley_cluster.waiting import wait_until

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
        self._control_plane: ControlPlane | None = None
        self._state: dict[str, Any] | None = None

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether it was brought up and not removed."""
        return self._state_file.exists()

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.state_dir / "kubeconfig"

    @property
    def options(self) -> ClusterOptions:
        """What it was asked to be."""
        return ClusterOptions.from_json(self._read_state()["options"])

    @property
    def addresses(self) -> Addresses:
        """The networks it uses."""
        return Addresses(self._read_state()["index"])

    @property
    def endpoints(self) -> Endpoints:
        """Where its parts listen."""
        return Endpoints(**self._read_state()["endpoints"])

    @property
    def has_network(self) -> bool:
        """Whether the cluster has a bridge and namespaces of its own (it needs root)."""
        return bool(self._read_state()["network"])

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
        name = self._read_state().get("operator_image")
        if not name:
            raise RuntimeError(f"the cluster {self.name!r} was brought up without the operator's image")
        return str(name)

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

    def _prometheus(self, programs: Programs | None = None) -> Prometheus:
        return Prometheus(
            state_dir=self.state_dir,
            control_plane=self.control_plane,
            programs=programs or find_programs(PROMETHEUS, Steps(quiet=True)),
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
            self._up(options or ClusterOptions())
        return self

    def down(self) -> None:
        """Remove every trace of the cluster. Processes that it did not start are left alone."""
        with exclusive(self._lock_file):
            self._down()
        self._lock_file.unlink(missing_ok=True)

    def _up(self, options: ClusterOptions) -> None:
        steps = self.steps
        go_program(CONTROL_PLANE, steps)
        kwok = go_program(KWOK, steps) / "kwok"
        dead = [record.name for record in self.processes.all() if not record.alive()]
        if self.state_dir.exists() and (dead or not self.exists):
            with steps.step("clean up after an unclean stop") as step:
                step.note = ", ".join(dead)
                self._down()
        no_network = why_no_network()
        if not self.exists:
            self._create_state(options, network=no_network is None)
        else:
            self._update_state(options=options.to_json())
        if no_network:
            steps.skip("addresses of their own for simulated pods", no_network)
        else:
            with steps.step("network: bridge and namespace"):
                self.network.create_bridge()
                self.network.create_simulation_namespace()
        with steps.step("certificates"):
            self.control_plane.create_credentials()
        nodes = self._node_parts(options) if options.real_nodes else None
        with ThreadPoolExecutor(thread_name_prefix="medley-cluster") as pool:
            runtimes = pool.submit(nodes.start_runtimes) if nodes else None
            with steps.step("etcd, API server, controllers, scheduler"):
                self.control_plane.start()
            simulation = pool.submit(self._start_simulation, kwok, options)
            prometheus = pool.submit(self._start_prometheus) if options.prometheus else None
            if nodes and runtimes:
                runtimes.result()
                self._update_state(operator_image=nodes.operator_image)
                nodes.start_kubelets()
            simulation.result()
            if prometheus:
                prometheus.result()

    def _node_parts(self, options: ClusterOptions) -> RealNodes | None:
        """The real nodes, or None with a reason shown where this machine cannot run them."""
        try:
            return RealNodes.prepare(self, options)
        except (ToolError, NodesImpossibleError) as error:
            self.steps.skip("real nodes", str(error))
            return None

    def _start_prometheus(self) -> None:
        try:
            programs = find_programs(PROMETHEUS, self.steps)
        except ToolError as error:
            self.steps.skip("Prometheus", str(error))
            return
        with self.steps.step("Prometheus"):
            self._prometheus(programs).start()

    def _start_simulation(self, kwok: Path, options: ClusterOptions) -> None:
        with self.steps.step("simulated GPU nodes (KWOK)") as step:
            self._start_kwok(kwok, options)
            step.note = f"{len(self.simulated_nodes.names())} nodes"

    def _start_kwok(self, kwok: Path, options: ClusterOptions) -> None:
        addresses, endpoints, simulated = self.addresses, self.endpoints, self.simulated_nodes
        self._start_engine()
        control_plane = self.control_plane
        simulated.start(
            kwok=kwok,
            kubeconfig=control_plane.component_kubeconfig("kwok", "medley-kwok", "system:masters"),
            options=options,
            pod_network=str(addresses.simulated_pods),
            node_address=addresses.simulation if self.has_network else endpoints.host,
            fixed_pod_address=None if self.has_network else endpoints.host,
        )
        simulated.add(options.pools)
        wanted = set(simulated.names())

        def all_ready() -> bool:
            self.processes.check("kwok")
            return wanted <= self.ready_nodes()

        wait_until(all_ready, 30.0, lambda: f"simulated nodes are Ready. {self.processes.log_tail('kwok')}")

    def _start_engine(self) -> None:
        endpoints = self.endpoints
        engine = [sys.executable, str(Path(__file__).with_name("fake_gpu_engine.py"))]
        if self.has_network:
            host, ports = self.addresses.simulation, ",".join(str(port) for port in SERVICE_PORTS)
            command = [*self.network.inside("sim"), *engine, "--ports", ports]
        else:
            host, port = "127.0.0.1", free_port(endpoints.host, SERVICE_PORTS[0])
            if port != SERVICE_PORTS[0] and not self.processes.alive("fake-gpu-engine"):
                self.steps.skip("answers for simulated pods", f"port {SERVICE_PORTS[0]} of {endpoints.host} is taken")
                return
            command = [*engine, "--bind", endpoints.host, "--ports", str(SERVICE_PORTS[0])]
        self.processes.start("fake-gpu-engine", [*command, "--control", f"{host}:{endpoints.engine_control_port}"])

    def _down(self) -> None:
        steps = self.steps
        if self._control_plane is not None:
            self._control_plane.close()
            self._control_plane = None
        with steps.step("stop processes"):
            stop_node_processes(self.processes, self.name)
            terminate(self.processes.all(), grace_s=5.0, kill=True)
            terminate(self.processes.stragglers(), grace_s=5.0, kill=True)
        if self.exists and self.has_network and why_no_network() is None:
            with steps.step("remove network, mounts and files"):
                remove_node_files(self.name, self.state_dir, self.addresses.bridge)
                self.network.remove()
        release_index(self.state_dir)
        with steps.step("remove the state folder"):
            # Image stores are tens of thousands of files: rm takes a fraction of the time of shutil.rmtree.
            run_checked(["rm", "-rf", str(self.state_dir)])
        self._state = None
        others = [Cluster(name) for name in cluster_names()]
        if not any(other.options.real_nodes for other in others):
            restore_kernel_settings(_kernel_settings_file())

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
        self._prometheus().stop()

    def start_prometheus(self) -> None:
        """Start Prometheus again."""
        self._prometheus().start()

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

    # --- state ------------------------------------------------------------------------------------------------------

    @property
    def _state_file(self) -> Path:
        return self.state_dir / "cluster.json"

    @property
    def _lock_file(self) -> Path:
        return self.state_dir.with_name(f".{self.name}.lock")

    def _create_state(self, options: ClusterOptions, network: bool) -> None:
        self.state_dir.mkdir(parents=True, exist_ok=True)
        index = claim_index(self.state_dir)
        host = Addresses(index).host if network else primary_address()
        if network:
            ClusterNetwork(Addresses(index)).create_bridge()
        endpoints = Endpoints(
            host=host,
            api_port=free_port(host, 6443),
            etcd_port=free_port(host, 2379),
            etcd_peer_port=free_port("127.0.0.1", 12380 + index),
            prometheus_port=free_port(host, 9090),
            engine_control_port=9000 if network else free_port("127.0.0.1", 9000 + index),
        )
        self._write_state(
            {"index": index, "network": network, "options": options.to_json(), "endpoints": asdict(endpoints)}
        )

    def _update_state(self, **changes: Any) -> None:
        self._write_state({**self._read_state(), **changes})

    def _write_state(self, state: Mapping[str, Any]) -> None:
        temporary = self._state_file.with_suffix(".new")
        temporary.write_text(json.dumps(state, indent=2))
        temporary.rename(self._state_file)
        self._state = dict(state)

    def _read_state(self) -> dict[str, Any]:
        if self._state is None:
            try:
                self._state = json.loads(self._state_file.read_text())
            except FileNotFoundError as error:
                raise RuntimeError(f"the cluster {self.name!r} is not up") from error
        assert self._state is not None
        return self._state


def _kernel_settings_file() -> Path:
    return cache_root() / "clusters" / ".kernel-settings.json"


def cluster_names() -> list[str]:
    """The clusters on this machine, of this user."""
    folder = cache_root() / "clusters"
    return sorted(path.parent.name for path in folder.glob("*/cluster.json"))
