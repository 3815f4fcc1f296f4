"""A real Kubernetes cluster on this machine, for tests and for the demo.

etcd, the control plane, simulated GPU nodes (KWOK) and, where there is root, real nodes with kubelet and containerd.
Everything is built from package registries, cached outside the checkout, and removed again by `down`.
"""

from medley_cluster.cluster import Cluster
from medley_cluster.options import ClusterOptions, SimulatedPool
from medley_cluster.waiting import WaitTimeoutError, wait_until

__all__ = ["Cluster", "ClusterOptions", "SimulatedPool", "WaitTimeoutError", "wait_until"]
