"""Asking a running service for something else, and waiting until it is so."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx

from medley_cluster.cluster import Cluster
from medley_cluster.waiting import wait_until


def read_service(cluster: Cluster, name: str, namespace: str = "default") -> dict[str, Any]:
    """The LLMService, whole."""
    return dict(cluster.api.get(f"/apis/medley.dev/v1alpha1/namespaces/{namespace}/llmservices/{name}"))


def settled(found: dict[str, Any]) -> bool:
    """Whether the newest spec is planned, no transition is under way, and every replica serves."""
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


def wait_settled(cluster: Cluster, name: str, *, timeout_s: float = 90.0) -> dict[str, Any]:
    """Wait until a service is settled; the service."""

    def now() -> dict[str, Any] | None:
        found = read_service(cluster, name)
        return found if settled(found) else None

    def describe() -> str:
        return f"{name} is settled: {read_service(cluster, name).get('status')}"

    return wait_until(now, timeout_s, describe, tolerate=(httpx.HTTPError,))


def patch_service(cluster: Cluster, name: str, spec: dict[str, Any]) -> None:
    """Merge into a service's spec."""
    cluster.kubectl("patch", "llm", name, "--type=merge", "-p", json.dumps({"spec": spec}))


def rate_change(cluster: Cluster, name: str, rate: float) -> Callable[[], Callable[[], bool]]:
    """A change for `outages`: asks for another rate; done when a plan for it serves."""

    def change() -> Callable[[], bool]:
        try:
            patch_service(cluster, name, {"workload": {"rate": rate}})
        except RuntimeError as error:  # kubectl's own message; the API server may not be up yet
            raise httpx.TransportError(str(error)) from error
        return lambda: settled(read_service(cluster, name))

    return change
