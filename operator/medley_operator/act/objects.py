"""The actions of a transition, as calls to the API server.

Each is idempotent, and each takes its answer into the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medley_operator.cache import ClusterCache
from medley_operator.kinds import DEPLOYMENTS, PODS
from medley_operator.kube import KubeClient, NotFoundError, Object
from medley_operator.observe.projections import version_of
from medley_operator.observe.views import DeploymentView, PodView, ServiceView
from medley_operator.report.conditions import timestamp
from medley_operator.transition import DRAIN_COST, SHED_COST
from medley_operator.workloads import naming


class ServiceObjects:
    """What is done to the objects of services."""

    def __init__(self, client: KubeClient, cache: ClusterCache) -> None:
        self._client = client
        self._cache = cache

    async def refresh(self, view: ServiceView) -> None:
        """Read a service's Deployments and pods from the API server,
        so that what is decided next rests on what is now.
        """
        selector = f"{naming.LABEL_MANAGED_BY}={naming.MANAGED_BY},{naming.LABEL_SERVICE}={view.name}"
        for kind in (DEPLOYMENTS, PODS):
            shelf = self._cache.shelf(kind)
            items, version = await self._client.list_all(kind, view.namespace, label_selector=selector)
            found = {(view.namespace, raw["metadata"]["name"]): (version_of(raw), shelf.project(raw)) for raw in items}
            shelf.replace_some(
                found, version, lambda item: (item.namespace, item.service) == (view.namespace, view.name)
            )

    async def create(self, manifest: Mapping[str, Any]) -> None:
        """Create a Deployment, or make it what the manifest says."""
        self._cache.deployments.put_raw(await self._client.apply(DEPLOYMENTS, manifest))

    async def raise_to(self, item: DeploymentView, replicas: int) -> None:
        """Raise the number of replicas of a Deployment, whatever it is by now."""
        await self._scale(item, {"metadata": {"uid": item.uid}, "spec": {"replicas": replicas}})

    async def lower_to(self, item: DeploymentView, replicas: int) -> None:
        """Lower the number of replicas of the Deployment that was seen.

        Raises ConflictError where it has changed since.
        """
        metadata = {"uid": item.uid, "resourceVersion": str(item.version)}
        await self._scale(item, {"metadata": metadata, "spec": {"replicas": replicas}})

    async def _scale(self, item: DeploymentView, body: Object) -> None:
        raw = await self._client.patch(DEPLOYMENTS, item.name, item.namespace, body)
        self._cache.deployments.put_raw(raw)

    async def delete(self, item: DeploymentView) -> None:
        """Delete the Deployment, if it is still the one that was seen."""
        await self._client.delete(DEPLOYMENTS, item.name, item.namespace, uid=item.uid)

    async def open_gate(self, pod: PodView, *, now_s: float) -> None:
        """Let requests in."""
        message = "the engine answered a real request"
        await self._set_gate(pod, status="True", reason="Serving", message=message, now_s=now_s)

    async def drain(self, pod: PodView, transition: str, *, now_s: float) -> None:
        """Mark the pod first, so that whoever finds its gate closed knows why, then close the gate."""
        annotations = {naming.ANNOTATION_DRAINING: transition, naming.ANNOTATION_DELETION_COST: str(DRAIN_COST)}
        await self._annotate(pod, annotations)
        message = f"finishes its requests, for transition {transition}"
        await self._set_gate(pod, status="False", reason="Draining", message=message, now_s=now_s)

    async def undrain(self, pod: PodView, *, now_s: float) -> None:
        """Open the gate first and take the marks away then, so that a half-done undrain is found and completed."""
        await self._set_gate(pod, status="True", reason="Serving", message="is wanted after all", now_s=now_s)
        await self._annotate(pod, {naming.ANNOTATION_DRAINING: None, naming.ANNOTATION_DELETION_COST: None})

    async def shed(self, pod: PodView) -> None:
        """Mark the pod as the next to go."""
        await self._annotate(pod, {naming.ANNOTATION_DELETION_COST: str(SHED_COST)})

    async def _annotate(self, pod: PodView, annotations: Mapping[str, str | None]) -> None:
        body = {"metadata": {"uid": pod.uid, "annotations": dict(annotations)}}
        await self._patch_pod(pod, body)

    async def _set_gate(self, pod: PodView, *, status: str, reason: str, message: str, now_s: float) -> None:
        condition = {
            "type": naming.GATE_SERVING,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": timestamp(now_s),
        }
        body = {"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}}
        await self._patch_pod(pod, body, subresource="status", strategic=True)

    async def _patch_pod(self, pod: PodView, body: Object, **options: Any) -> None:
        """Patch the pod that was seen: the uid in the body makes the server refuse a later pod of the same name."""
        try:
            raw = await self._client.patch(PODS, pod.name, pod.namespace, body, **options)
        except NotFoundError:
            self._cache.pods.remove(pod.key, pod.version)
            raise
        self._cache.pods.put_raw(raw)
