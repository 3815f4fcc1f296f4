"""From pods and Deployments of one service to the values that transitions are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from medley_operator.observe.views import DeploymentView, Gate, NodeView, PodView
from medley_operator.transition import Deployed, Replica, ReplicaState
from medley_planner.fleet import Variant


def replica(pod: PodView, nodes: Mapping[tuple[str, str], NodeView]) -> Replica:
    """A pod as a replica."""
    node = nodes.get(("", pod.node))
    return Replica(
        name=pod.name,
        uid=pod.uid,
        deployment=pod.deployment,
        state=state_of(pod),
        created_s=pod.created_s,
        gate_open=pod.gate is Gate.OPEN,
        draining_since_s=pod.gate_changed_s if pod.draining else 0.0,
        deletion_cost=pod.deletion_cost,
        no_room_since_s=pod.created_s if pod.unschedulable and not pod.scheduled else None,
        leaving_node=node is not None and not node.schedulable,
    )


def state_of(pod: PodView) -> ReplicaState:
    """Where a pod is in a replica's life. The one place where pod conditions are read as states."""
    if pod.deleting:
        return ReplicaState.LEAVING
    if pod.draining:
        return ReplicaState.DRAINING
    if not pod.scheduled:
        return ReplicaState.PENDING
    if not pod.containers_ready:
        return ReplicaState.LOADING
    if pod.gate is Gate.OPEN and pod.ready:
        return ReplicaState.SERVING
    return ReplicaState.LOADED


def replicas_of(
    pods: Iterable[PodView], deployments: Iterable[DeploymentView], nodes: Mapping[tuple[str, str], NodeView]
) -> tuple[Replica, ...]:
    """The replicas of a service: pods of its own Deployments that have not ended."""
    names = {deployment.name for deployment in deployments}
    found = (replica(pod, nodes) for pod in pods if pod.deployment in names and not pod.finished)
    return tuple(sorted(found, key=lambda item: (item.deployment, item.created_s, item.name)))


def deployed(deployments: Iterable[DeploymentView]) -> tuple[Deployed, ...]:
    """The Deployments of a service, those that are being deleted left out."""
    found = (Deployed(item.name, item.pool, item.replicas) for item in deployments if not item.deleting)
    return tuple(sorted(found, key=lambda item: item.name))


def mix_of(deployments: Iterable[DeploymentView]) -> dict[Variant, int]:
    """The replicas that are asked for, by variant, over all revisions."""
    mix: dict[Variant, int] = {}
    for item in deployments:
        if item.replicas and not item.deleting:
            variant = Variant.of(item.pool, item.parallelism)
            mix[variant] = mix.get(variant, 0) + item.replicas
    return dict(sorted(mix.items()))
