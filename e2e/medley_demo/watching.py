"""Watching a service while it changes: its status, and how few of its replicas were ever Ready."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from medley_cluster.api import ApiClient
from medley_cluster.cluster import Cluster
from medley_cluster.waiting import wait_until

SERVICES = "/apis/medley.dev/v1alpha1/namespaces/{namespace}/llmservices/{name}"


class ServiceView:
    """One LLMService of a cluster, read afresh at each call."""

    def __init__(self, cluster: Cluster, name: str, namespace: str = "default") -> None:
        self.cluster, self.name, self.namespace = cluster, name, namespace

    def read(self) -> dict[str, Any]:
        """The whole object."""
        return dict(self.cluster.api.get(SERVICES.format(namespace=self.namespace, name=self.name)))

    def plan(self) -> dict[str, Any]:
        """The plan that is acted on; empty before there is one."""
        return dict(self.read().get("status", {}).get("plan") or {})

    def mix(self) -> str:
        """The mix with its price, for people."""
        plan = self.plan()
        return f"{plan['mix']} at ${plan['costPerHour']:.2f}/h" if plan else "nothing yet"

    def condition(self, type_: str) -> dict[str, Any]:
        """One condition; empty where it is not set."""
        for condition in self.read().get("status", {}).get("conditions", []):
            if condition["type"] == type_:
                return dict(condition)
        return {}

    def settled(self) -> bool:
        """Whether the newest spec is planned, no transition is under way and every replica serves."""
        found = self.read()
        status = found.get("status", {})
        replicas = status.get("replicas") or {}
        return bool(
            status.get("observedGeneration") == found["metadata"]["generation"]
            and status.get("plan")
            and not status.get("transition")
            and replicas.get("desired")
            and replicas.get("serving") == replicas.get("desired")
            and not replicas.get("draining")
        )

    def wait(self, what: str, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait for a condition on this service; the error says what the status was."""
        wait_until(condition, timeout_s, lambda: f"{self.name}: {what}; status: {self.read().get('status')}")

    def wait_settled(self, timeout_s: float = 60.0) -> None:
        """Wait until `settled`."""
        self.wait("every replica of the plan serves", self.settled, timeout_s)

    def serving_pods(self) -> int:
        """Pods of the service that are Ready now."""
        return ready_pods(self.cluster.api, self.namespace, self.name)


class FewestReady:
    """Counts Ready pods of a service in the background; `fewest` is the lowest count seen."""

    def __init__(self, view: ServiceView) -> None:
        self._view = view
        self._over = threading.Event()
        self.fewest = view.serving_pods()
        self._thread = threading.Thread(target=self._count, daemon=True)

    def __enter__(self) -> FewestReady:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=5.0)

    def _count(self) -> None:
        while not self._over.wait(0.1):
            self.fewest = min(self.fewest, self._view.serving_pods())


def ready_pods(api: ApiClient, namespace: str, service: str) -> int:
    """Pods of a service whose condition Ready is True."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    pods = api.get(path, labelSelector=f"medley.dev/service={service}")["items"]
    return sum(
        any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", []))
        for pod in pods
    )
