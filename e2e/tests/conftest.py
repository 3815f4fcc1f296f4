"""The tests against a real cluster share one: see medley_cluster.fixtures."""

from medley_cluster.fixtures import cluster, kubeconfig, node_cluster

__all__ = ["cluster", "kubeconfig", "node_cluster"]
