"""Taking real nodes away so that nothing is left: containers, mounts, namespaces, cgroups and the few fixed paths.

It works from what is on the machine, not from what a running containerd says: it cleans up after a crash as well.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from medley_cluster.network import NAMESPACES
from medley_cluster.processes import ProcessRecord, ProcessTable, start_time_ticks, terminate
from medley_cluster.real_node import RUNTIME_ROOT
from medley_cluster.waiting import WaitTimeoutError, wait_until

CNI_RESULTS = Path("/var/lib/cni/results")
CONTAINER_LOGS = Path("/var/log/containers")
DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")
SHIM_SOCKETS = Path("/run/containerd/s")
# The kubelet sets these for the whole machine; they are put back when the last cluster goes.
KERNEL_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


def save_kernel_settings(file: Path) -> None:
    """Remember the settings that a kubelet changes, unless they are remembered already."""
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    values = {name: path.read_text().strip() for name in KERNEL_SETTINGS if (path := Path("/proc/sys", name)).exists()}
    file.write_text(json.dumps(values))


def restore_kernel_settings(file: Path) -> None:
    """Put the remembered settings back."""
    if not file.exists():
        return
    for name, value in json.loads(file.read_text()).items():
        path = Path("/proc/sys", name)
        if path.read_text().strip() != value:
            path.write_text(value)
    file.unlink()


def stop_node_processes(processes: ProcessTable, cluster: str) -> None:
    """kubelet and kube-proxy first, then containerd, so that nothing starts anything; then what containers are left."""
    of_nodes = [record for record in processes.all() if record.name.rpartition("-")[2].isdigit()]
    terminate([one for one in of_nodes if one.name.startswith(("kubelet-", "kube-proxy-"))], grace_s=3.0, kill=True)
    terminate([one for one in of_nodes if one.name.startswith("containerd-")], grace_s=5.0)

    def nothing_left() -> bool:
        runtimes = [one for one in processes.stragglers() if one.name in ("containerd-shim-runc-v2", "runc", "exe")]
        left = [*runtimes, *_container_processes(cluster)]
        terminate(left, grace_s=5.0, kill=True)
        return not left

    wait_until(nothing_left, 20.0, "the containers have ended")


def remove_node_files(cluster: str, state_dir: Path, bridge: str) -> None:
    """Unmount what is left, and remove the traces outside the state folder. The processes must have been stopped."""
    runtime = RUNTIME_ROOT / cluster
    _remove_cgroups(_containers(cluster))
    _unmount_below((runtime, state_dir))
    _remove_pod_networks(bridge)
    if CONTAINER_LOGS.is_dir():
        for link in CONTAINER_LOGS.iterdir():
            if link.is_symlink() and str(link.readlink()).startswith(str(state_dir)):
                link.unlink()
    for socket in SHIM_SOCKETS.iterdir() if SHIM_SOCKETS.is_dir() else ():
        if not _listening(socket):
            socket.unlink(missing_ok=True)
    shutil.rmtree(runtime, ignore_errors=True)
    if not other_kubelet_runs():
        (DEVICE_PLUGINS / "kubelet.sock").unlink(missing_ok=True)
    empty_if_ours = (RUNTIME_ROOT, CONTAINER_LOGS, SHIM_SOCKETS, SHIM_SOCKETS.parent, CNI_RESULTS, CNI_RESULTS.parent)
    _remove_if_empty(*empty_if_ours, DEVICE_PLUGINS, DEVICE_PLUGINS.parent)


def _remove_pod_networks(bridge: str) -> None:
    """CNI keeps a result for each pod: it names the pod's namespace, which outlives a killed runtime."""
    for result in CNI_RESULTS.glob(f"{bridge}-*"):
        with contextlib.suppress(json.JSONDecodeError):
            cached = json.loads(result.read_text())
            (CNI_RESULTS / f"cni-loopback-{cached['containerId']}-lo").unlink(missing_ok=True)
            for interface in cached["result"]["interfaces"]:
                namespace = Path(interface.get("sandbox", "")).name
                if namespace.startswith("cni-") and (NAMESPACES / namespace).exists():
                    subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)
        result.unlink(missing_ok=True)


def _remove_cgroups(containers: Iterable[str]) -> None:
    """The cgroups of the cluster's containers: folders named by the container, in every hierarchy."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    parents = [Path(words[1]) / "k8s.io" for words in mounts if words[2] in ("cgroup", "cgroup2")]
    folders = [parent / container for parent in parents for container in containers]

    def removed() -> bool:
        _remove_if_empty(*folders)
        return not any(folder.exists() for folder in folders)

    with contextlib.suppress(WaitTimeoutError):  # Something that is not ours moved in: it is left alone.
        wait_until(removed, 3.0, "killed processes have left their cgroups")
    _remove_if_empty(*parents)


def _remove_if_empty(*folders: Path) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # Not empty, so somebody else uses it; or not there.
            folder.rmdir()


def other_kubelet_runs() -> bool:
    """Whether any kubelet runs on the machine: two would share the folder for device plugins."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                program = (entry / "cmdline").read_bytes().split(b"\0")[0]
                if program.endswith(b"/kubelet") and start_time_ticks(int(entry.name)) is not None:
                    return True
    return False


def leftovers(cluster: str, state_dir: Path, bridge: str) -> list[str]:
    """What of the cluster's nodes is still on the machine; empty after a clean removal."""
    found = [f"mount {target}" for target in _mounts_below((RUNTIME_ROOT / cluster, state_dir))]
    found += [f"process {one.pid}" for one in _container_processes(cluster)]
    found += [str(path) for path in CNI_RESULTS.glob(f"{bridge}-*")]
    if (RUNTIME_ROOT / cluster).exists():
        found.append(str(RUNTIME_ROOT / cluster))
    return found


def _containers(cluster: str) -> set[str]:
    """The containers that a node of this cluster runs, or ran when it was killed."""
    tasks = (RUNTIME_ROOT / cluster).glob("*/containerd/io.containerd.runtime.v2.task/k8s.io/*")
    return {path.name for path in tasks}


def _container_processes(cluster: str) -> list[ProcessRecord]:
    """Processes in a cgroup of one of the cluster's containers: they are found even when their shim is gone."""
    containers = _containers(cluster)
    found: list[ProcessRecord] = []
    for entry in Path("/proc").iterdir() if containers else ():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = set((entry / "cgroup").read_text().replace("/", " ").split())
                ticks = start_time_ticks(int(entry.name))
                if ticks is not None and words & containers:
                    found.append(ProcessRecord("container", int(entry.name), ticks, []))
    return found


def _mounts_below(roots: Iterable[Path]) -> list[str]:
    prefixes = tuple(f"{root}/" for root in roots)
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [target for line in lines if (target := line.split()[1]).startswith(prefixes)]


def _unmount_below(roots: Iterable[Path]) -> None:
    for target in sorted(_mounts_below(roots), key=len, reverse=True):
        subprocess.run(["umount", "-l", target], capture_output=True, check=False)


def _listening(socket: Path) -> bool:
    """Whether some process listens on this Unix socket."""
    return any(line.endswith(f" {socket}") for line in Path("/proc/net/unix").read_text().splitlines())
