"""`medley discover`: GPUPools for the GPU nodes of a cluster, as YAML to apply once the prices are right (pure).

Nodes are told apart by what GPU feature discovery (NVIDIA) or the node labeller (AMD) wrote on them, by the number of
GPUs, and by whether they are spot instances.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from medley_operator.api import API_VERSION
from medley_operator.cli.prices import LIST_PRICES, ListPrice
from medley_planner.catalogue.gpus import BYTES_PER_MIB, GPUType, gpu_type_of_product

NVIDIA = "nvidia.com/gpu"
AMD = "amd.com/gpu"
PRODUCT_LABELS: Mapping[str, tuple[str, ...]] = {
    NVIDIA: ("nvidia.com/gpu.product",),
    AMD: ("amd.com/gpu.product-name", "beta.amd.com/gpu.product-name"),
}
"""Labels that name the GPU, by resource, first the one to prefer."""

MEMORY_LABEL = "nvidia.com/gpu.memory"
SPOT_LABELS: Mapping[str, str] = {
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
"""Labels of nodes that the provider may take back, with the value that says so."""

IGNORED_TAINTS = "node.kubernetes.io/"
"""Taints of sick or cordoned nodes; no pod is to tolerate them on purpose."""


@dataclass(frozen=True, order=True)
class Taint:
    """A taint that pods must tolerate."""

    key: str
    effect: str


@dataclass(frozen=True, order=True)
class NodeGroup:
    """Nodes of one kind.

    Args:
        resource: Resource name of the GPUs.
        product_label: Label that names the GPU.
        product: Its value.
        gpus_per_node: GPUs of each node.
        spot_label: The label that marks spot nodes; empty for others.
    """

    resource: str
    product_label: str
    product: str
    gpus_per_node: int
    spot_label: str = ""

    @property
    def spot(self) -> bool:
        """Whether the provider may take the nodes back."""
        return bool(self.spot_label)


@dataclass(frozen=True)
class DiscoveredPool:
    """A GPUPool for nodes of one kind.

    Args:
        name: Name of the pool.
        group: The nodes.
        gpu: Their GPU type; None where the catalogue does not know it.
        nodes: Names of the nodes, sorted.
        memory_gib: Memory of a GPU as a label says; None where none does.
        taints: Taints of all nodes together.
        selector: Labels that select the nodes.
        overlap: What else the selector matches, as a sentence; empty where it matches these nodes only.
    """

    name: str
    group: NodeGroup
    gpu: GPUType | None
    nodes: tuple[str, ...]
    memory_gib: float | None
    taints: tuple[Taint, ...]
    selector: Mapping[str, str]
    overlap: str = ""


def discover(nodes: Iterable[Mapping[str, Any]]) -> tuple[DiscoveredPool, ...]:
    """The pools of a cluster's nodes (as JSON objects), sorted by name; nodes without GPUs are left out."""
    groups: dict[NodeGroup, list[Mapping[str, Any]]] = defaultdict(list)
    for node in nodes:
        group = _group(node)
        if group is not None:
            groups[group].append(node)
    names = _names(sorted(groups))
    pools = [_pool(names[group], group, sorted(groups), members) for group, members in groups.items()]
    return tuple(sorted(pools, key=lambda pool: pool.name))


def pools_yaml(pools: Iterable[DiscoveredPool]) -> str:
    """The pools as YAML, with comments where a price or a figure is the owner's to fill in."""
    return "---\n".join(_yaml(pool) for pool in pools)


def pool_manifest(pool: DiscoveredPool) -> dict[str, Any]:
    """A pool for programs; without `pricePerGPUHour` where no list price is known, which must be filled in."""
    price = _list_price(pool)
    known_price = {} if price is None or pool.group.spot else {"pricePerGPUHour": price.usd_per_gpu_hour}
    gpu: dict[str, Any] = {"type": _type_name(pool)}
    if pool.gpu is None and pool.memory_gib is not None:
        gpu["memoryGiB"] = pool.memory_gib
    spec = {
        "gpu": gpu,
        "gpusPerNode": pool.group.gpus_per_node,
        "nodeSelector": dict(sorted(pool.selector.items())),
        "tolerations": [_toleration(taint) for taint in pool.taints],
        "resourceName": pool.group.resource,
        **known_price,
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "GPUPool",
        "metadata": {"name": pool.name},
        "spec": {key: value for key, value in spec.items() if value != []},
    }


def _group(node: Mapping[str, Any]) -> NodeGroup | None:
    """The group that a node belongs to; None for one without GPUs, or without a label that names them."""
    labels: Mapping[str, str] = node.get("metadata", {}).get("labels") or {}
    capacity: Mapping[str, str] = node.get("status", {}).get("capacity") or {}
    for resource, product_labels in PRODUCT_LABELS.items():
        count = str(capacity.get(resource, "0"))
        label = next((name for name in product_labels if labels.get(name)), None)
        if label is None or not count.isdigit() or int(count) == 0:
            continue
        spot_label = next((name for name, value in sorted(SPOT_LABELS.items()) if labels.get(name) == value), "")
        return NodeGroup(resource, label, labels[label], int(count), spot_label)
    return None


def _pool(
    name: str, group: NodeGroup, groups: Iterable[NodeGroup], members: Iterable[Mapping[str, Any]]
) -> DiscoveredPool:
    nodes = sorted(members, key=lambda node: str(node["metadata"]["name"]))
    taints = {
        Taint(str(taint.get("key", "")), str(taint.get("effect", "")))
        for node in nodes
        for taint in node.get("spec", {}).get("taints") or []
        if not str(taint.get("key", "")).startswith(IGNORED_TAINTS)
    }
    selector, overlap = _selector(group, groups, nodes)
    memory = str(nodes[0]["metadata"]["labels"].get(MEMORY_LABEL, ""))
    return DiscoveredPool(
        name=name,
        group=group,
        gpu=gpu_type_of_product(group.product),
        nodes=tuple(str(node["metadata"]["name"]) for node in nodes),
        memory_gib=round(int(memory) * BYTES_PER_MIB / 2**30, 2) if memory.isdigit() else None,
        taints=tuple(sorted(taints)),
        selector=selector,
        overlap=overlap,
    )


def _selector(
    group: NodeGroup, groups: Iterable[NodeGroup], nodes: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, str], str]:
    """Labels that select the nodes of a group, and what else they match where no label tells those apart."""
    others = [other for other in groups if other != group and other.product == group.product]
    selector = {group.product_label: group.product}
    if any(other.gpus_per_node != group.gpus_per_node for other in others):
        selector[f"{group.resource}.count"] = str(group.gpus_per_node)
    if group.spot:
        return selector | {group.spot_label: SPOT_LABELS[group.spot_label]}, ""
    beside = [other for other in others if other.spot and other.gpus_per_node == group.gpus_per_node]
    for other in beside:
        label = other.spot_label
        values = {str(node["metadata"]["labels"].get(label, "")) for node in nodes}
        if len(values) == 1 and values != {""}:
            selector[label] = values.pop()
        else:
            return (
                selector,
                f"The selector matches spot nodes ({label}) too: label the others, and select by that label.",
            )
    return selector, ""


def _names(groups: Iterable[NodeGroup]) -> dict[NodeGroup, str]:
    """A name for each group, by GPU type, with what tells it from others of the same type."""
    by_type: dict[str, list[NodeGroup]] = defaultdict(list)
    for group in groups:
        gpu = gpu_type_of_product(group.product)
        base = _label(gpu.name if gpu is not None else group.product)
        by_type[base + ("-spot" if group.spot else "")].append(group)
    names = {}
    for base, same in by_type.items():
        for place, group in enumerate(same):
            unique = len({other.gpus_per_node for other in same}) == len(same)
            suffix = f"-{group.gpus_per_node}x" if unique else f"-{place + 1}"
            names[group] = base if len(same) == 1 else f"{base[: 63 - len(suffix)]}{suffix}"
    return names


def _label(text: str) -> str:
    """A text as a DNS label of at most 50 characters."""
    made = re.sub(r"[^a-z0-9]+", "-", text.lower().removeprefix("nvidia-").removeprefix("amd_instinct_")).strip("-")
    return made[:50].strip("-") or "gpus"


def _type_name(pool: DiscoveredPool) -> str:
    if pool.gpu is not None:
        return pool.gpu.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", pool.group.product)[:63].strip("-_.") or "GPU"


def _toleration(taint: Taint) -> dict[str, str]:
    return {"key": taint.key, "operator": "Exists", **({"effect": taint.effect} if taint.effect else {})}


def _yaml(pool: DiscoveredPool) -> str:
    """One pool, laid out by hand: YAML writers drop comments."""
    spec = pool_manifest(pool)["spec"]
    count = len(pool.nodes)
    shown = ", ".join(pool.nodes[:4]) + (", …" if count > 4 else "")
    lines = [
        f"# {count} node{'s' if count != 1 else ''} with {pool.group.gpus_per_node} × {pool.group.product}: {shown}",
        *([f"# {pool.overlap}"] if pool.overlap else []),
        f"apiVersion: {API_VERSION}",
        "kind: GPUPool",
        "metadata:",
        f"  name: {pool.name}",
        "spec:",
        "  gpu:",
        f"    type: {_quoted(spec['gpu']['type'])}",
        *_figure_lines(pool),
        f"  gpusPerNode: {pool.group.gpus_per_node}",
        f"  resourceName: {pool.group.resource}",
        "  nodeSelector:",
        *(f"    {key}: {_quoted(value)}" for key, value in spec["nodeSelector"].items()),
    ]
    if pool.taints:
        lines.append("  tolerations:")
        for taint in pool.taints:
            lines += [f"  - key: {_quoted(taint.key)}", "    operator: Exists"]
            lines += [f"    effect: {taint.effect}"] if taint.effect else []
    return "\n".join([*lines, _price_line(pool), ""])


def _figure_lines(pool: DiscoveredPool) -> list[str]:
    """For a type that the catalogue does not know: its figures, to be filled in from the maker's data sheet."""
    if pool.gpu is not None:
        return []
    memory = f"    memoryGiB: {pool.memory_gib:g}" if pool.memory_gib is not None else "    # memoryGiB: "
    return [
        "    # The catalogue does not know this GPU: fill in the figures of its data sheet.",
        memory,
        "    # memoryBandwidthGBps: ",
        "    # teraflops:             # dense, 16 bits",
    ]


def _list_price(pool: DiscoveredPool) -> ListPrice | None:
    return None if pool.gpu is None else LIST_PRICES.get(pool.gpu.name)


def _price_line(pool: DiscoveredPool) -> str:
    price = _list_price(pool)
    if price is None:
        return "  # pricePerGPUHour:       # fill in: what one of these GPUs costs you for one hour"
    if pool.group.spot:
        return f"  # pricePerGPUHour:       # fill in your spot price ({price.usd_per_gpu_hour:g} is {price.source})"
    return f"  pricePerGPUHour: {price.usd_per_gpu_hour:g}  # {price.source}; put in what you pay"


def _quoted(text: str) -> str:
    """A string as a YAML scalar, in quotes where it could be read as something else."""
    plain = re.fullmatch(r"[A-Za-z][-A-Za-z0-9_./]*", text) and text.lower() not in {
        "true",
        "false",
        "yes",
        "no",
        "on",
        "off",
        "null",
        "y",
        "n",
    }
    return text if plain else json.dumps(text)


def summary(pools: Iterable[DiscoveredPool]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The columns and rows of a table of the pools."""
    rows: list[tuple[str, ...]] = []
    for pool in pools:
        price = None if pool.group.spot else _list_price(pool)
        rows.append(
            (
                pool.name,
                _type_name(pool) if pool.gpu is not None else f"{pool.group.product} (not in the catalogue)",
                str(len(pool.nodes)),
                str(pool.group.gpus_per_node),
                "to fill in" if price is None else f"{price.usd_per_gpu_hour:g}",
                ", ".join(f"{key}={value}" for key, value in sorted(pool.selector.items())),
            )
        )
    return ("pool", "GPU", "nodes", "GPUs each", "$/GPU-hour", "selects"), rows
