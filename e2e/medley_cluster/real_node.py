"""A real node on this machine: kubelet, containerd and kube-proxy in a network namespace of their own.

The settings are those that work without systemd, on cgroup v1 and v2, and in a VM with few privileges.
Paths are the node's own, so that several nodes, and other people's containers, do not meet.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medley_cluster.api import ApiClient
from medley_cluster.control_plane import ControlPlane
from medley_cluster.debian import Programs
from medley_cluster.files import write_if_changed, write_yaml
from medley_cluster.image_store import IMPORTED, copy_store
from medley_cluster.network import ClusterNetwork
from medley_cluster.node_configuration import (
    cni_configuration,
    containerd_configuration,
    kubelet_configuration,
    proxy_configuration,
)
from medley_cluster.options import GPU_MODELS, ClusterOptions
from medley_cluster.processes import ProcessTable
from medley_cluster.simulated_nodes import GPU_RESOURCE, gpu_labels
from medley_cluster.toolchain import ToolError, run_checked
from medley_cluster.waiting import wait_until

RUNTIME_ROOT = Path("/run/medley")


def real_node_name(number: int) -> str:
    """The name of the real node with this number."""
    return f"real-{number}"


@dataclass(frozen=True)
class NodePaths:
    """The folders of one node. Sockets and runtime state are under /run: their paths must be short."""

    state_dir: Path
    cluster: str
    number: int

    @property
    def folder(self) -> Path:
        """What the node keeps while the cluster lives."""
        return self.state_dir / "nodes" / str(self.number)

    @property
    def runtime(self) -> Path:
        """Sockets and running containers."""
        return RUNTIME_ROOT / self.cluster / str(self.number)

    @property
    def containerd_root(self) -> Path:
        """Images and container file systems."""
        return self.folder / "containerd"

    @property
    def socket(self) -> Path:
        """Where containerd listens."""
        return self.runtime / "containerd.sock"


class RealNode:
    """One real node; methods may be repeated."""

    def __init__(
        self,
        *,
        number: int,
        cluster: str,
        state_dir: Path,
        network: ClusterNetwork,
        control_plane: ControlPlane,
        programs: Programs,
        processes: ProcessTable,
    ) -> None:
        self.number = number
        self.name = real_node_name(number)
        self.paths = NodePaths(state_dir, cluster, number)
        self._network = network
        self._control_plane = control_plane
        self._programs = programs
        self._processes = processes

    @property
    def address(self) -> str:
        """The node's own address, reachable from this machine."""
        return self._network.addresses.node(self.number)

    @property
    def network_name(self) -> str:
        """The name of its pod network; results that CNI keeps on the machine carry it."""
        return self._network.namespace(f"node{self.number}")

    def process(self, program: str) -> str:
        """The name under which a program of this node is in the process table."""
        return f"{program}-{self.number}"

    # --- containerd -------------------------------------------------------------------------------------------------

    @property
    def has_images(self) -> bool:
        """Whether the node got its copy of an image store already."""
        return (self.paths.folder / IMPORTED).exists()

    def start_runtime(self, nodes: int, images: Path | None) -> None:
        """Make the node's network and start containerd on a copy of an image store; needs no API server."""
        self._network.create_node_namespace(self.number, nodes)
        for folder in (self.paths.folder, self.paths.runtime, self.paths.folder / "cni"):
            folder.mkdir(parents=True, exist_ok=True)
        if images and not self.has_images:
            imported = copy_store(images, self.paths.containerd_root)
            (self.paths.folder / IMPORTED).write_text(json.dumps(imported))
        subnet = str(self._network.addresses.node_pods(self.number))
        network = cni_configuration(self.network_name, subnet, self.paths.folder / "ipam")
        write_if_changed(self.paths.folder / "cni" / "10-medley.conflist", json.dumps(network, indent=2))
        config = self.paths.folder / "containerd.toml"
        write_if_changed(config, self._containerd_configuration())
        command = [self._programs.path("containerd"), f"--config={config}", "--log-level=info"]
        self._start("containerd", command)

        def answers() -> bool:
            self._processes.check(self.process("containerd"))
            return self.paths.socket.exists() and bool(self.ctr("version"))

        wait_until(answers, 20.0, "containerd answers", tolerate=(ToolError,), longest_interval_s=0.1)

    def ctr(self, *arguments: str) -> str:
        """containerd's command line, in the namespace of Kubernetes."""
        command = [self._programs.path("ctr"), f"--address={self.paths.socket}", "--namespace=k8s.io", *arguments]
        return run_checked(command, env={**self._programs.environment()}, timeout_s=120.0)

    def import_images(self, archives: Sequence[Path]) -> int:
        """Import the archives that this node has not got yet; how many there were."""
        record = self.paths.folder / IMPORTED
        known: list[str] = json.loads(record.read_text())
        missing = [archive for archive in archives if str(archive) not in known]
        for archive in missing:
            self.ctr("images", "import", str(archive))
            known.append(str(archive))
            record.write_text(json.dumps(known))
        return len(missing)

    # --- kubelet and kube-proxy -------------------------------------------------------------------------------------

    def start_kubelet(self, options: ClusterOptions) -> None:
        """Start kubelet and kube-proxy; the node registers itself."""
        authority = self._control_plane.authority
        kubeconfig = self._control_plane.component_kubeconfig(
            f"kubelet-{self.number}", f"system:node:{self.name}", "system:nodes"
        )
        serving = authority.issue(f"kubelet-{self.number}-serving", self.name, hosts=[self.address, self.name])
        config = self.paths.folder / "kubelet.yaml"
        # Pods that ask for the machine's resolver get one that answers nothing: they have no way out.
        name_server = self._network.addresses.dns
        write_if_changed(self.paths.folder / "resolv.conf", f"nameserver {name_server}\n")
        configuration = kubelet_configuration(
            address=self.address,
            socket=self.paths.socket,
            folder=self.paths.folder,
            certificate=serving[0],
            key=serving[1],
            authority=authority.certificate,
            name_server=name_server,
        )
        write_yaml(config, configuration)
        labels = {
            **gpu_labels(GPU_MODELS[options.real_gpu], options.real_gpus_per_node),
            "medley.dev/node": "real",
            "topology.kubernetes.io/region": "region-1",
            "topology.kubernetes.io/zone": "zone-a",
        }
        kubelet = [
            str(self._control_plane.programs / "kubelet"),
            f"--config={config}",
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            f"--root-dir={self.paths.folder / 'kubelet'}",
            f"--cert-dir={self.paths.folder / 'kubelet-pki'}",
            "--node-labels=" + ",".join(f"{name}={value}" for name, value in sorted(labels.items())),
        ]
        self._start("kubelet", kubelet)
        self._start_proxy()

    def _start_proxy(self) -> None:
        kubeconfig = self._control_plane.component_kubeconfig("kube-proxy", "system:kube-proxy")
        config = self.paths.folder / "kube-proxy.yaml"
        write_yaml(config, proxy_configuration(self.name, kubeconfig))
        # It waits half a minute for a node without addresses: start it when the kubelet has registered its own.
        self.wait_registered()
        self._start("kube-proxy", [str(self._control_plane.programs / "kube-proxy"), f"--config={config}"])

    def wait_registered(self) -> None:
        """Wait until the node object has its address."""

        def registered() -> bool:
            self._processes.check(self.process("kubelet"))
            node = self._control_plane.api.find(f"/api/v1/nodes/{self.name}")
            return bool(node and node["status"].get("addresses"))

        wait_until(registered, 30.0, lambda: f"{self.name} registers. {self._kubelet_log()}", longest_interval_s=0.1)

    def add_gpus(self, gpus: int) -> None:
        """Advertise GPUs, as a device plugin would."""
        change = {"status": {"capacity": {GPU_RESOURCE: str(gpus)}, "allocatable": {GPU_RESOURCE: str(gpus)}}}
        self._control_plane.api.patch(f"/api/v1/nodes/{self.name}/status", change)

    def wait_ready(self) -> None:
        """Wait until the kubelet says that the node is ready."""
        api: ApiClient = self._control_plane.api

        def ready() -> bool:
            self._processes.check(self.process("kubelet"))
            conditions = api.get(f"/api/v1/nodes/{self.name}")["status"].get("conditions", [])
            return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

        wait_until(ready, 30.0, lambda: f"{self.name} is Ready. {self._kubelet_log()}", longest_interval_s=0.1)

    def set_connected(self, connected: bool) -> None:
        """Pull the node's cable, or put it back: the node lives on, unreachable."""
        self._network.set_connected(self.number, connected)

    def _kubelet_log(self) -> str:
        return self._processes.log_tail(self.process("kubelet"))

    def _start(self, program: str, command: list[str]) -> None:
        inside = self._network.inside(f"node{self.number}")
        self._processes.start(self.process(program), [*inside, *command], env=self._programs.environment())

    def _containerd_configuration(self) -> str:
        return containerd_configuration(
            root=self.paths.containerd_root,
            runtime=self.paths.runtime,
            socket=self.paths.socket,
            folder=self.paths.folder,
            cni_programs=self._programs.folder("/usr/lib/cni", "/opt/cni/bin"),
            runc=self._programs.path("runc"),
        )
