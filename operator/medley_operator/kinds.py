"""The kinds of Kubernetes objects that the operator deals with:
a static table, so that nothing has to be discovered.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True)
class Kind:
    """One kind, and where the API server keeps it.

    Args:
        group: The API group; empty is the core group.
        version: The version that is spoken.
        plural: The name in paths.
        kind: The name in objects.
        namespaced: Whether objects of this kind live in namespaces.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """What objects of this kind carry as `apiVersion`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path of all objects of this kind, of those in a namespace, or of one."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
        if subresource is not None:
            parts.append(subresource)
        return "/" + "/".join(quote(part, safe="") for part in parts)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


LLM_SERVICES = Kind("medley.dev", "v1alpha1", "llmservices", "LLMService")
GPU_POOLS = Kind("medley.dev", "v1alpha1", "gpupools", "GPUPool", namespaced=False)
MODEL_PROFILES = Kind("medley.dev", "v1alpha1", "modelprofiles", "ModelProfile", namespaced=False)
NODES = Kind("", "v1", "nodes", "Node", namespaced=False)
PODS = Kind("", "v1", "pods", "Pod")
DEPLOYMENTS = Kind("apps", "v1", "deployments", "Deployment")
SERVICES = Kind("", "v1", "services", "Service")
DISRUPTION_BUDGETS = Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
CONFIG_MAPS = Kind("", "v1", "configmaps", "ConfigMap")
EVENTS = Kind("", "v1", "events", "Event")
LEASES = Kind("coordination.k8s.io", "v1", "leases", "Lease")

WATCHED = (LLM_SERVICES, GPU_POOLS, MODEL_PROFILES, NODES, PODS, DEPLOYMENTS)
"""What the operator keeps in memory, in the order in which it is first listed."""
