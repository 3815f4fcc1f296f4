"""What each pool holds: its nodes, who uses their GPUs, and so what may be planned with."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from medley_operator.api.gpupool import GPUPool, Toleration
from medley_operator.api.translate import node_stock
from medley_operator.observe.views import NodeView, PodView
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
            nodes more.
        held: GPUs of each replica of a planned service that is Ready here: all that is left of an exhausted pool.
        elsewhere: Pools that select some of the same nodes more closely; these nodes count there and not here.
    """

    nodes: int
    allocatable: int
    used_by_services: int
    used_by_others: int
    stock: Stock
    held: tuple[int, ...]
    elsewhere: tuple[str, ...] = ()

    @property
    def free(self) -> int:
        """GPUs that nobody holds."""
        return max(0, self.allocatable - self.used_by_services - self.used_by_others)


def pool_stocks(
    pools: Iterable[GPUPool], nodes: Iterable[NodeView], pods: Iterable[PodView], planned: Collection[tuple[str, str]]
) -> dict[str, PoolStock]:
    """The stock of every pool, by name. Each node counts once: in the pool that selects it most closely.

    Args:
        pools: The pools that may be planned with.
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
    every = sorted(pools, key=lambda pool: (-len(pool.spec.node_selector), pool.name))
    counted = {node.name: [pool.name for pool in every if _counts(pool, node)] for node in all_nodes}
    return {pool.name: _pool_stock(pool, all_nodes, counted, by_node, planned) for pool in every}


def _counts(pool: GPUPool, node: NodeView) -> bool:
    return node.ready and node.schedulable and bool(node.resources.get(pool.spec.resource_name)) and selects(pool, node)


def _pool_stock(
    pool: GPUPool,
    nodes: Iterable[NodeView],
    counted: Mapping[str, list[str]],
    pods_by_node: Mapping[str, list[PodView]],
    planned: Collection[tuple[str, str]],
) -> PoolStock:
    resource = pool.spec.resource_name
    usable: list[int] = []
    held: list[int] = []
    elsewhere: set[str] = set()
    count = allocatable = by_services = by_others = 0
    for node in nodes:
        if pool.name not in counted[node.name]:
            continue
        if pool.name != counted[node.name][0]:
            elsewhere.add(counted[node.name][0])
            continue
        ours, others = _used(pods_by_node.get(node.name, ()), resource, planned, held)
        count += 1
        allocatable += node.resources[resource]
        by_services += ours
        by_others += others
        usable.append(max(0, node.resources[resource] - others))
    stock = node_stock(pool, usable)
    return PoolStock(count, allocatable, by_services, by_others, stock, tuple(sorted(held)), tuple(sorted(elsewhere)))


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
