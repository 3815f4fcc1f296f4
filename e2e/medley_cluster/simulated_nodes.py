"""Simulated GPU nodes: node objects that a real scheduler places pods on, played by KWOK with stages of our own.

The nodes carry the labels, taint and capacity that GPU feature discovery and a cloud's GPU pools would give them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from medley_cluster.api import ApiClient, Manifest
from medley_cluster.files import write_if_changed
from medley_cluster.options import GPU_MODELS, ClusterOptions, GpuModel, SimulatedPool
from medley_cluster.processes import ProcessTable
from medley_cluster.toolchain import KUBERNETES_VERSION

FAKE_NODE_ANNOTATION = "kwok.x-k8s.io/node"
GPU_RESOURCE = "nvidia.com/gpu"
ZONES = ("zone-a", "zone-b", "zone-c")
_DATA = Path(__file__).parent
_POD_ADDRESS = "PodIPWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace"
_GATES_OPEN = (
    ". as $pod | [.spec.readinessGates[]?.conditionType] | "
    'all(. as $gate | any($pod.status.conditions[]?; .type == $gate and .status == "True"))'
)


def gpu_labels(model: GpuModel, gpus: int) -> dict[str, str]:
    """The labels of a node with these GPUs, as GPU feature discovery writes them."""
    return {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.product": model.product,
        "nvidia.com/gpu.count": str(gpus),
        "nvidia.com/gpu.memory": str(model.memory_mib),
        "nvidia.com/gpu.family": model.family,
        "nvidia.com/gpu.compute.major": str(model.compute_major),
        "nvidia.com/gpu.compute.minor": str(model.compute_minor),
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.sharing-strategy": "none",
        "nvidia.com/mig.capable": "true" if model.short_name in ("a100", "h100") else "false",
        "nvidia.com/cuda.driver.major": "580",
        "node.kubernetes.io/instance-type": model.instance_type,
    }


def node_name(gpu: str, number: int) -> str:
    """The name of a simulated node."""
    return f"sim-{gpu}-{number}"


def node_manifest(gpu: str, number: int, gpus: int) -> Manifest:
    """A simulated node; its status is kept by KWOK from then on."""
    model = GPU_MODELS[gpu]
    name = node_name(gpu, number)
    resources = {"cpu": "192", "memory": "768Gi", "ephemeral-storage": "2Ti", "pods": "110", GPU_RESOURCE: str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {FAKE_NODE_ANNOTATION: "fake"},
            "labels": {
                **gpu_labels(model, gpus),
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/os": "linux",
                "kubernetes.io/hostname": name,
                "topology.kubernetes.io/region": "region-1",
                "topology.kubernetes.io/zone": ZONES[number % len(ZONES)],
                "medley.dev/node": "simulated",
            },
        },
        "spec": {"taints": [{"key": GPU_RESOURCE, "value": "present", "effect": "NoSchedule"}]},
        "status": {"capacity": resources, "allocatable": resources},
    }


def stages_document(options: ClusterOptions, fixed_pod_address: str | None) -> str:
    """KWOK's configuration: the common stages, and a loading stage for each GPU type and for other simulated nodes."""
    address = f'"{fixed_pod_address}"' if fixed_pod_address else _POD_ADDRESS
    common = (_DATA / "stages.yaml").read_text()
    document = common.replace("$KUBERNETES_VERSION", KUBERNETES_VERSION)
    document = document.replace("$ADDRESS_EXPRESSION", address).replace("$GATES_OPEN", _GATES_OPEN.replace("'", "''"))
    load_times_s = {gpu: options.load_time_s(gpu) for gpu in GPU_MODELS}
    patterns = {gpu: f"^{node_name(gpu, 0)[:-1]}" for gpu in GPU_MODELS}
    known = "|".join(GPU_MODELS)
    parts = [document.rstrip()]
    template = (_DATA / "pod-load-stage.yaml").read_text()
    for gpu, pattern in patterns.items():
        parts.append(_load_stage(template, gpu, f'test("{pattern}")', load_times_s[gpu]))
    parts.append(_load_stage(template, "other", f'test("^sim-({known})-") | not', 0.2))
    return "\n---\n".join(parts) + "\n"


def _load_stage(template: str, name: str, node_condition: str, load_time_s: float) -> str:
    load_time_ms = round(load_time_s * 1000)
    offset_s, offset_ms = divmod(load_time_ms + 500, 1000)
    filled = template.replace("$NAME", name).replace("$NODE_CONDITION", node_condition)
    filled = filled.replace("$OFFSET_MS", f"{offset_ms:03}").replace("$OFFSET_S", str(offset_s))
    return filled.replace("$LOAD_TIME_MS", str(load_time_ms)).rstrip()


class SimulatedNodes:
    """The simulated nodes of one cluster, and the KWOK process that plays them."""

    def __init__(self, api: ApiClient, processes: ProcessTable, state_dir: Path) -> None:
        self._api = api
        self._processes = processes
        self._config = state_dir / "config" / "kwok.yaml"

    def start(
        self,
        *,
        kwok: Path,
        kubeconfig: Path,
        options: ClusterOptions,
        pod_network: str,
        node_address: str,
        fixed_pod_address: str | None,
    ) -> None:
        """Start KWOK. It manages annotated nodes only, so that real nodes are left to their kubelets."""
        write_if_changed(self._config, stages_document(options, fixed_pod_address))
        command = [
            str(kwok),
            f"--kubeconfig={kubeconfig}",
            f"--config={self._config}",
            f"--manage-nodes-with-annotation-selector={FAKE_NODE_ANNOTATION}=fake",
            "--manage-all-nodes=false",
            f"--cidr={pod_network}",
            f"--node-ip={node_address}",
            "--node-lease-duration-seconds=12",
        ]
        self._processes.start("kwok", command)

    def add(self, pools: Iterable[SimulatedPool], zone: str | None = None) -> list[str]:
        """Create the nodes that are missing so that every pool has its count; the names of those created."""
        created = []
        for pool in pools:
            gpus = pool.gpus_per_node or GPU_MODELS[pool.gpu].gpus_per_node
            for number in range(pool.count):
                manifest = node_manifest(pool.gpu, number, gpus)
                if zone:
                    manifest["metadata"]["labels"]["topology.kubernetes.io/zone"] = zone
                if self._api.create(manifest):
                    created.append(manifest["metadata"]["name"])
        return created

    def extend(self, gpu: str, count: int, gpus_per_node: int | None = None, zone: str | None = None) -> list[str]:
        """Create `count` more nodes of a GPU type, whatever there is already."""
        created: list[str] = []
        number = 0
        gpus = gpus_per_node or GPU_MODELS[gpu].gpus_per_node
        while len(created) < count:
            manifest = node_manifest(gpu, number, gpus)
            if zone:
                manifest["metadata"]["labels"]["topology.kubernetes.io/zone"] = zone
            if self._api.create(manifest):
                created.append(manifest["metadata"]["name"])
            number += 1
        return created

    def names(self, gpu: str | None = None) -> list[str]:
        """The simulated nodes, of one GPU type or all."""
        nodes = self._api.get("/api/v1/nodes", labelSelector="medley.dev/node=simulated")["items"]
        names = sorted(node["metadata"]["name"] for node in nodes)
        return [name for name in names if gpu is None or name.startswith(node_name(gpu, 0)[:-1])]

    def remove(self, names: Iterable[str]) -> None:
        """Take nodes away for good, as a cloud that reclaims machines does: node objects and their pods go at once.

        The controller manager would remove such pods too, but only after a minute.
        """
        gone = set(names)
        for name in sorted(gone):
            self._api.delete(f"/api/v1/nodes/{name}")
        for name in sorted(gone):
            for pod in self._api.get("/api/v1/pods", fieldSelector=f"spec.nodeName={name}")["items"]:
                metadata = pod["metadata"]
                path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
                self._api.delete(path, grace_period_s=0)

    def set_failed(self, names: Iterable[str], reason: str | None) -> None:
        """Make nodes report NotReady with this reason, or recover (None)."""
        change = {"metadata": {"annotations": {"medley.dev/simulated-failure": reason}}}
        for name in names:
            self._api.patch(f"/api/v1/nodes/{name}", change)
