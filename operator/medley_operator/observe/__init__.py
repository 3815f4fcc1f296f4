"""From Kubernetes objects to small frozen values: what the cluster is like, as far as decisions depend on it."""
