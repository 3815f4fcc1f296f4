"""What each pool holds: its nodes, who uses their GPUs, and so what may be planned with."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from medley_operator.api.gpupool import GPUPool, Toleration
from medley_operator.api.translate import node_stock
from medley_operator.observe.objects import NodeView, PodView
from medley_planner.fleet import Stock


@dataclass(frozen=True)
class PoolStock:
    """The GPUs of one pool now.

    Args:
        nodes: Nodes that are Ready, schedulable, match the selector, and whose taints the pool tolerates.
        allocatable: GPUs of these nodes.
        used_by_services: GPUs that planned services' replicas hold on them.
        used_by_others: GPUs that other pods hold on them.
        stock: What services may use: free, or held by services; with a `limit` beyond what the nodes hold, whole
        nodes more. held: GPUs of each replica of a planned service that is Ready here: all that is left of an
        exhausted pool.
    """

    nodes: int
    allocatable: int
    used_by_services: int
    used_by_others: int
    stock: Stock
    held: tuple[int, ...]

    @property
    def free(self) -> int:
        """GPUs that nobody holds."""
        return max(0, self.allocatable - self.used_by_services - self.used_by_others)


def pool_stocks(
    pools: Iterable[GPUPool], nodes: Iterable[NodeView], pods: Iterable[PodView], planned: Collection[tuple[str, str]]
) -> dict[str, PoolStock]:
    """The stock of every pool, by name.

    Args:
        pools: The pools.
        nodes: All nodes.
        pods: All pods that hold or want GPUs.
        planned: (namespace, `medley.dev/service` label) of the services that are planned; pods of all others are
        others' pods.
    """
    by_node: dict[str, list[PodView]] = {}
    for pod in pods:
        if pod.node and not pod.finished:
            by_node.setdefault(pod.node, []).append(pod)
    all_nodes = sorted(nodes, key=lambda node: node.name)
    return {pool.name: _pool_stock(pool, all_nodes, by_node, planned) for pool in pools}


def _pool_stock(
    pool: GPUPool,
    nodes: Iterable[NodeView],
    pods_by_node: Mapping[str, list[PodView]],
    planned: Collection[tuple[str, str]],
) -> PoolStock:
    resource = pool.spec.resource_name
    usable: list[int] = []
    held: list[int] = []
    count = allocatable = by_services = by_others = 0
    for node in nodes:
        if not selects(pool, node) or not node.ready or not node.schedulable or not node.resources.get(resource):
            continue
        ours, others = _used(pods_by_node.get(node.name, ()), resource, planned, held)
        count += 1
        allocatable += node.resources[resource]
        by_services += ours
        by_others += others
        usable.append(max(0, node.resources[resource] - others))
    return PoolStock(count, allocatable, by_services, by_others, node_stock(pool, usable), tuple(sorted(held)))


def _used(
    pods: Iterable[PodView], resource: str, planned: Collection[tuple[str, str]], held: list[int]
) -> tuple[int, int]:
    """GPUs of a node that planned services and others hold; `held` gets those of each Ready replica."""
    ours = others = 0
    for pod in pods:
        gpus = dict(pod.requests).get(resource, 0)
        if pod.service and (pod.namespace, pod.service) in planned:
            ours += gpus
            if pod.containers_ready and not pod.deleting and gpus:
                held.append(gpus)
        else:
            others += gpus
    return ours, others


def selects(pool: GPUPool, node: NodeView) -> bool:
    """Whether a pod of the pool could be placed on the node, as far as labels and taints go."""
    labels_match = all(node.labels.get(key) == value for key, value in pool.spec.node_selector.items())
    return labels_match and all(_tolerates(pool.spec.tolerations, taint) for taint in node.taints)


def _tolerates(tolerations: Iterable[Toleration], taint: tuple[str, str, str]) -> bool:
    """As the scheduler judges it (k8s.io/component-helpers/scheduling/corev1, ToleratesTaint)."""
    key, value, effect = taint
    return any(
        (not t.key or t.key == key)
        and (t.effect is None or t.effect == effect)
        and (t.operator == "Exists" or (t.value or "") == value)
        for t in tolerations
    )


def exhausted_stock(stock: PoolStock) -> Stock:
    """What may be planned with in a pool from which nothing more can be had: what replicas hold that are Ready."""
    return Stock.from_nodes(stock.held)
