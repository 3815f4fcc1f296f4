"""The real nodes of a cluster together: what they need from the machine, the order they start in, and how they fail."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from medley_cluster.cache import cache_root
from medley_cluster.cluster_dns import DNS_DEPLOYMENT, dns_manifests
from medley_cluster.debian import NODE, Programs, find_programs
from medley_cluster.image_store import image_store
from medley_cluster.images import binary_image_archives
from medley_cluster.network import why_no_network
from medley_cluster.node_cleanup import DEVICE_PLUGINS, other_kubelet_runs, save_kernel_settings
from medley_cluster.operator_image import operator_image
from medley_cluster.options import ClusterOptions
from medley_cluster.progress import Steps
from medley_cluster.real_node import RealNode
from medley_cluster.waiting import wait_until

if TYPE_CHECKING:
    from medley_cluster.cluster import Cluster

MOST_NODES = 9


class NodesImpossibleError(RuntimeError):
    """This machine cannot run real nodes; the message says why."""


class RealNodes:
    """The real nodes of one cluster."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        options: ClusterOptions,
        nodes: list[RealNode],
        archives: list[Path],
        programs: Programs,
    ) -> None:
        self._cluster = cluster
        self._options = options
        self._archives = archives
        self._programs = programs
        self.operator_image: str | None = None
        self.nodes = nodes

    @staticmethod
    def prepare(cluster: Cluster, options: ClusterOptions) -> RealNodes:
        """Find or build what the nodes need; raises where that is impossible."""
        why = why_no_network() or _why_no_kubelet(cluster)
        if why:
            raise NodesImpossibleError(why)
        if options.real_nodes > MOST_NODES:
            raise NodesImpossibleError(f"at most {MOST_NODES} real nodes fit on the cluster's network")
        programs = find_programs(NODE, cluster.steps)
        archives = binary_image_archives(cluster.steps)
        nodes = [
            RealNode(
                number=number,
                cluster=cluster.name,
                state_dir=cluster.state_dir,
                network=cluster.network,
                control_plane=cluster.control_plane,
                programs=programs,
                processes=cluster.processes,
            )
            for number in range(options.real_nodes)
        ]
        return RealNodes(cluster=cluster, options=options, nodes=nodes, archives=archives, programs=programs)

    @property
    def _steps(self) -> Steps:
        return self._cluster.steps

    def start_runtimes(self) -> None:
        """containerd with the images on every node; this needs no API server, so it runs beside its start."""
        save_kernel_settings(cache_root() / "clusters" / ".kernel-settings.json")
        archives = list(self._archives)
        if self._options.operator_image:
            image = operator_image(self._steps)
            archives.append(image.archive)
            self.operator_image = image.name
        store = None
        if not all(node.has_images for node in self.nodes):
            with self._steps.step("images") as step:
                store = image_store(archives, self._programs, step)
        with self._steps.step("containerd") as step, ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.start_runtime(len(self.nodes), store), self.nodes))
            late = sum(pool.map(lambda node: node.import_images(archives), self.nodes))
            step.note = f"{late} images imported" if late else ""

    def import_images(self, archives: list[Path]) -> int:
        """Import further image archives on every node; how many were missing."""
        with ThreadPoolExecutor() as pool:
            return sum(pool.map(lambda node: node.import_images(archives), self.nodes))

    def start_kubelets(self) -> None:
        """kubelet and kube-proxy on every node, then the name server."""
        with self._steps.step("kubelet and kube-proxy") as step, ThreadPoolExecutor() as pool:
            list(pool.map(self._start_kubelet, self.nodes))
            step.note = f"{len(self.nodes)} real node" + ("s" if len(self.nodes) > 1 else "")
        with self._steps.step("cluster DNS"):
            self._cluster.api.apply_all(dns_manifests(self._cluster.addresses))
            wait_until(self._dns_ready, 60.0, self._dns_state, longest_interval_s=0.2)

    def _start_kubelet(self, node: RealNode) -> None:
        node.start_kubelet(self._options)
        node.add_gpus(self._options.real_gpus_per_node)
        node.wait_ready()

    def _dns_ready(self) -> bool:
        path = f"/apis/apps/v1/namespaces/kube-system/deployments/{DNS_DEPLOYMENT}"
        status = self._cluster.api.get(path).get("status", {})
        return bool(status.get("readyReplicas"))

    def _dns_state(self) -> str:
        pods = self._cluster.kubectl("describe", "pods", "-n", "kube-system", "-l", "k8s-app=kube-dns", check=False)
        return f"the name server is ready.\n{pods[-2000:]}"


def _why_no_kubelet(cluster: Cluster) -> str | None:
    if not Path("/sys/fs/cgroup").is_dir() or not os.access("/sys/fs/cgroup", os.W_OK):
        return "no writable cgroup file system"
    if not shutil.which("mount"):
        return "no `mount` command"
    ours = any(record.alive() for record in cluster.processes.all() if record.name.startswith("kubelet-"))
    foreign = (DEVICE_PLUGINS / "kubelet.sock").exists() and other_kubelet_runs()
    if foreign and not ours and not _kubelets_are_medleys():
        return "a kubelet of another cluster runs on this machine"
    return None


def _kubelets_are_medleys() -> bool:
    """Whether every kubelet on the machine belongs to a cluster of this package."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            program = (entry / "cmdline").read_bytes().split(b"\0")[0]
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if program.endswith(b"/kubelet") and b"MEDLEY_CLUSTER_STATE=" not in environment:
            return False
    return True
