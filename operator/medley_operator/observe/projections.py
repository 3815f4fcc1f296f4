"""From raw objects, as the API server sends them, to the views that the operator keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.llmservice_status import LLMServiceStatus
from medley_operator.api.modelprofile import ModelProfile
from medley_operator.observe.views import (
    DeploymentView,
    Gate,
    NodeView,
    Object,
    PodView,
    PoolView,
    ProfileView,
    ServiceView,
)
from medley_operator.workloads import naming
from medley_planner.fleet import Parallelism


def node_view(raw: Object) -> NodeView | None:
    """Project a node; None for one without extended resources, which no pool can use."""
    metadata, spec, status = raw["metadata"], raw.get("spec", {}), raw.get("status", {})
    resources = _extended(status.get("allocatable", {}))
    if not resources:
        return None
    taints = tuple(
        (taint["key"], taint.get("value", ""), taint["effect"])
        for taint in spec.get("taints") or ()
        if taint["effect"] != "PreferNoSchedule" and not taint["key"].startswith("node.kubernetes.io/")
    )
    return NodeView(
        name=metadata["name"],
        version=version_of(raw),
        labels=metadata.get("labels", {}),
        taints=taints,
        resources=dict(resources),
        ready=_condition(status, "Ready").get("status") == "True",
        schedulable=not spec.get("unschedulable", False),
    )


def pod_view(raw: Object) -> PodView | None:
    """Project a pod; None for one that is no replica and asks for no extended resource."""
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status", {})
    labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
    requests = _pod_requests(spec)
    service = labels.get(naming.LABEL_SERVICE, "") if labels.get(naming.LABEL_MANAGED_BY) == naming.MANAGED_BY else ""
    if not service and not requests:
        return None
    view = PodView(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        version=version_of(raw),
        node=spec.get("nodeName", ""),
        phase=status.get("phase", "Pending"),
        deleting="deletionTimestamp" in metadata,
        requests=requests,
    )
    return _replica(view, raw, service, annotations) if service else view


def _replica(view: PodView, raw: Object, service: str, annotations: Mapping[str, str]) -> PodView:
    status, spec = raw.get("status", {}), raw["spec"]
    scheduled, gate = _condition(status, "PodScheduled"), _condition(status, naming.GATE_SERVING)
    containers = status.get("containerStatuses") or ()
    waiting = [container.get("state", {}).get("waiting", {}).get("reason", "") for container in containers]
    engine = next((c for c in spec["containers"] if c["name"] == naming.ENGINE_CONTAINER), spec["containers"][0])
    return replace(
        view,
        service=service,
        pool=raw["metadata"].get("labels", {}).get(naming.LABEL_POOL, ""),
        deployment=_deployment_of(raw["metadata"]),
        created_s=seconds(raw["metadata"].get("creationTimestamp")),
        scheduled=bool(view.node),
        unschedulable=scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else "",
        containers_ready=_condition(status, "ContainersReady").get("status") == "True",
        ready=_condition(status, "Ready").get("status") == "True",
        gate={"True": Gate.OPEN, "False": Gate.CLOSED}.get(gate.get("status", ""), Gate.UNSET),
        gate_changed_s=seconds(gate.get("lastTransitionTime")),
        draining=annotations.get(naming.ANNOTATION_DRAINING, ""),
        deletion_cost=_integer(annotations.get(naming.ANNOTATION_DELETION_COST, "0")),
        address=status.get("podIP", ""),
        port=next((port["containerPort"] for port in engine.get("ports") or ()), 0),
        trouble=next((reason for reason in waiting if reason not in {"", "ContainerCreating", "PodInitializing"}), ""),
        restarts=sum(container.get("restartCount", 0) for container in containers),
    )


def deployment_view(raw: Object) -> DeploymentView | None:
    """Project a Deployment; None for one that is not ours."""
    metadata = raw["metadata"]
    labels = metadata.get("labels", {})
    if labels.get(naming.LABEL_MANAGED_BY) != naming.MANAGED_BY or naming.LABEL_SERVICE not in labels:
        return None
    owners = metadata.get("ownerReferences") or ()
    return DeploymentView(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        version=version_of(raw),
        owner_uid=next((owner["uid"] for owner in owners if owner.get("controller")), ""),
        pool=labels.get(naming.LABEL_POOL, ""),
        parallelism=_parallelism(labels),
        replicas=raw.get("spec", {}).get("replicas", 1),
        generation=metadata.get("generation", 0),
        deleting="deletionTimestamp" in metadata,
        service=labels[naming.LABEL_SERVICE],
    )


def _parallelism(labels: Mapping[str, str]) -> Parallelism:
    """The sizes that a Deployment's labels say; 1 where one is missing."""
    names = (naming.LABEL_TENSOR_PARALLEL, naming.LABEL_PIPELINE_PARALLEL, naming.LABEL_DATA_PARALLEL)
    return Parallelism(*(_integer(labels.get(name, "1")) for name in names))


def service_view(raw: Object) -> ServiceView:
    """Project an LLMService."""
    metadata = raw["metadata"]
    llm, parse_error = None, ""
    try:
        llm = LLMService.model_validate({"metadata": metadata, "spec": raw.get("spec")})
    except ValidationError as error:
        parse_error = _explain(error)
    return ServiceView(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        version=version_of(raw),
        generation=metadata.get("generation", 0),
        deleting="deletionTimestamp" in metadata,
        llm=llm,
        parse_error=parse_error,
        status=_status(raw),
    )


def _status(raw: Object) -> LLMServiceStatus:
    """The status that was written last; an empty one where another release's does not parse,
    which is then written anew.
    """
    try:
        return LLMServiceStatus.model_validate(raw.get("status") or {})
    except ValidationError:
        return LLMServiceStatus()


def pool_view(raw: Object) -> PoolView:
    """Project a GPUPool."""
    metadata = raw["metadata"]
    pool, parse_error = None, ""
    try:
        pool = GPUPool.model_validate({"metadata": metadata, "spec": raw.get("spec"), "status": raw.get("status")})
    except ValidationError as error:
        parse_error = _explain(error)
    return PoolView(
        metadata["name"], metadata["uid"], version_of(raw), metadata.get("generation", 0), pool, parse_error
    )


def profile_view(raw: Object) -> ProfileView:
    """Project a ModelProfile."""
    metadata = raw["metadata"]
    profile, parse_error = None, ""
    try:
        profile = ModelProfile.model_validate(
            {"metadata": metadata, "spec": raw.get("spec"), "status": raw.get("status")}
        )
    except ValidationError as error:
        parse_error = _explain(error)
    return ProfileView(
        metadata["name"], metadata["uid"], version_of(raw), metadata.get("generation", 0), profile, parse_error
    )


def seconds(timestamp: str | None) -> float:
    """A Kubernetes timestamp as seconds since the epoch; 0 for none."""
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0


def version_of(raw: Object) -> int:
    """The resource version as a number; the API server's are comparable since Kubernetes 1.35,
    and were numbers long before.
    """
    return int(raw["metadata"].get("resourceVersion") or 0)


def _condition(status: Object, kind: str) -> Mapping[str, str]:
    return next((condition for condition in status.get("conditions") or () if condition["type"] == kind), {})


def _extended(amounts: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """The extended resources among `amounts`: they alone have a domain in their name, and they are whole numbers."""
    found = ((name, _integer(amount)) for name, amount in amounts.items() if "/" in name)
    return tuple(sorted((name, count) for name, count in found if count > 0))


def _pod_requests(spec: Object) -> tuple[tuple[str, int], ...]:
    """What the scheduler counts: the sum over containers, or the largest init container where that is more."""
    total: dict[str, int] = {}
    for container in spec.get("containers") or ():
        for name, count in _container_requests(container):
            total[name] = total.get(name, 0) + count
    for container in spec.get("initContainers") or ():
        for name, count in _container_requests(container):
            total[name] = max(total.get(name, 0), count)
    return tuple(sorted(total.items()))


def _container_requests(container: Object) -> tuple[tuple[str, int], ...]:
    resources = container.get("resources") or {}
    return _extended({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _deployment_of(metadata: Object) -> str:
    """The name of a pod's Deployment, by the name of its ReplicaSet: `<deployment>-<hash of the pod template>`."""
    template_hash = metadata.get("labels", {}).get("pod-template-hash", "")
    for owner in metadata.get("ownerReferences") or ():
        if owner["kind"] == "ReplicaSet" and template_hash:
            name: str = owner["name"]
            return name.removesuffix(f"-{template_hash}")
    return ""


def _integer(text: Any) -> int:
    try:
        return int(text)
    except ValueError:
        return 0


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    return f"{path}: {first['msg']}"
