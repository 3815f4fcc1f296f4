"""Configuration of a real node: settings that work without systemd, on cgroup v1 and v2, with few privileges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medley_cluster.images import PAUSE_IMAGE

CLUSTER_DOMAIN = "cluster.local"


def cni_configuration(name: str, subnet: str, data_dir: Path) -> dict[str, Any]:
    """A bridge in the node's own network namespace, addresses from the node's subnet."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(data_dir),
            "ranges": [[{"subnet": subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "0.4.0", "name": name, "plugins": [bridge]}


def containerd_configuration(
    *, root: Path, runtime: Path, socket: Path, folder: Path, cni_programs: Path, runc: str
) -> str:
    """containerd with every path of its own; a virtual machine may lack the capability to adjust scores."""
    return f"""version = 2
root = "{root}"
state = "{runtime / "containerd"}"
disabled_plugins = ["io.containerd.internal.v1.restart", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
  address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{folder / "opt"}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_programs}"
    conf_dir = "{folder / "cni"}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{runc}"
        Root = "{runtime / "runc"}"
        SystemdCgroup = false
"""


def kubelet_configuration(
    *,
    address: str,
    socket: Path,
    folder: Path,
    certificate: Path,
    key: Path,
    authority: Path,
    name_server: str,
) -> dict[str, Any]:
    """The kubelet without quality-of-service cgroups and without the node's own limits, noticing things soon."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{socket}",
        "address": address,
        "tlsCertFile": str(certificate),
        "tlsPrivateKeyFile": str(key),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority)},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDNS": [name_server],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": str(folder / "resolv.conf"),
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        "makeIPTablesUtilChains": False,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "podLogsDir": str(folder / "pod-logs"),
        "volumePluginDir": str(folder / "volume-plugins"),
        "nodeLeaseDurationSeconds": 12,
        "nodeStatusUpdateFrequency": "4s",
        "syncFrequency": "10s",
        "registryPullQPS": 0,
        "serializeImagePulls": False,
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
        "eventRecordQPS": 0,
    }


def proxy_configuration(node: str, kubeconfig: Path) -> dict[str, Any]:
    """kube-proxy with nftables; senders are hidden behind the node, so that answers come back through it."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": node,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "conntrack": {"maxPerCore": 0, "min": 0},
        "nftables": {"minSyncPeriod": "100ms", "masqueradeAll": True},
        "metricsBindAddress": "127.0.0.1:10249",
    }
