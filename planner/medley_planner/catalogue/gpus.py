"""GPU types: what a card holds and how fast it is, from its maker's data sheet.

The catalogue is `data/gpus.toml`; each row there names its source.
All arithmetic rates are dense ones: newer data sheets print the rate with 2:4 sparsity first, which is twice as much
and which no ordinary model reaches.
"""

from __future__ import annotations

import difflib
import functools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

BYTES_PER_GIB = 2**30
BYTES_PER_MIB = 2**20

DEFAULT_LINK_BANDWIDTH_BYTES_PER_S = 32e9
"""PCIe 4.0 ×16 in one direction: what joins GPUs of which nothing better is known."""


class GPUTypeError(ValueError):
    """A figure of a GPU type is impossible; the message starts with the field's name."""


class UnknownGPUTypeError(LookupError):
    """The catalogue has no such GPU type.

    Args:
        name: What was asked for.
        nearest: Names in the catalogue that look like it, nearest first; may be empty.
    """

    def __init__(self, name: str, nearest: tuple[str, ...]) -> None:
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        super().__init__(f"the catalogue has no GPU type {name!r}{hint}")
        self.name = name
        self.nearest = nearest


@dataclass(frozen=True, kw_only=True)
class GPUType:
    """One kind of GPU.

    Args:
        name: Name in the catalogue, or one that the owner of a GPUPool chose.
        memory_bytes: Memory that the driver reports, which is less than the box says where ECC takes its share.
        memory_bandwidth_bytes_per_s: Peak bandwidth of that memory.
        dense_flops_16bit: Peak FP16/BF16 operations per second, without sparsity.
        dense_flops_8bit: Peak FP8 operations per second, without sparsity; None where the GPU has no FP8 arithmetic,
            so that 8-bit weights are widened and computed with in 16 bits.
        link_bandwidth_bytes_per_s: What one GPU can send to its peers on the node, in one direction.
        product_labels: Values that GPU feature discovery (or AMD's node labeller) gives such a node.

    Raises:
        GPUTypeError: A figure is not a positive number.
    """

    name: str
    memory_bytes: int
    memory_bandwidth_bytes_per_s: float
    dense_flops_16bit: float
    dense_flops_8bit: float | None = None
    link_bandwidth_bytes_per_s: float = DEFAULT_LINK_BANDWIDTH_BYTES_PER_S
    product_labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise GPUTypeError("name: must not be empty")
        figures = {
            "memory_bytes": self.memory_bytes,
            "memory_bandwidth_bytes_per_s": self.memory_bandwidth_bytes_per_s,
            "dense_flops_16bit": self.dense_flops_16bit,
            "link_bandwidth_bytes_per_s": self.link_bandwidth_bytes_per_s,
        }
        if self.dense_flops_8bit is not None:
            figures["dense_flops_8bit"] = self.dense_flops_8bit
        for field, value in figures.items():
            if not math.isfinite(value) or value <= 0:
                raise GPUTypeError(f"{field}: must be a positive number, is {value!r}")

    @classmethod
    def of(cls, name: str, *, memory_gib: float, memory_bandwidth_gb_per_s: float, teraflops: float) -> GPUType:
        """A GPU type that is not in the catalogue, from the figures of a GPUPool.

        A GB is 10⁹ bytes here, and `teraflops` are 16-bit ones without sparsity.
        """
        return cls(
            name=name,
            memory_bytes=round(memory_gib * BYTES_PER_GIB),
            memory_bandwidth_bytes_per_s=memory_bandwidth_gb_per_s * 1e9,
            dense_flops_16bit=teraflops * 1e12,
        )

    @property
    def memory_gib(self) -> float:
        """Memory in GiB."""
        return self.memory_bytes / BYTES_PER_GIB


def catalogue() -> Mapping[str, GPUType]:
    """All known GPU types by name, sorted by name; the mapping cannot be changed."""
    return _catalogue()


def gpu_type(name: str) -> GPUType:
    """The GPU type with this name; case does not matter.

    Raises:
        UnknownGPUTypeError: There is none; it names those that look alike.
    """
    by_folded_name = {known.casefold(): gpu for known, gpu in _catalogue().items()}
    found = by_folded_name.get(name.casefold())
    if found is None:
        raise UnknownGPUTypeError(name, tuple(by_folded_name[near].name for near in _nearest(name, by_folded_name)))
    return found


def gpu_type_of_product(label: str) -> GPUType | None:
    """The GPU type of a node with this product label; None where the catalogue knows none.

    GPU feature discovery adds to the label where cards are shared or sliced (`NVIDIA-L4-SHARED`, `…-MIG-1g.5gb`).
    Such a node is none of ours: its GPUs are not whole.
    """
    for gpu in _catalogue().values():
        if label in gpu.product_labels:
            return gpu
    return None


def _nearest(name: str, known: Mapping[str, GPUType]) -> list[str]:
    """At most three: first those of which `name` is the beginning (`h100` for `h100-80gb`), then by likeness."""
    folded = name.casefold()
    longer = [candidate for candidate in known if folded and candidate.startswith(folded)]
    alike = difflib.get_close_matches(folded, known, n=3, cutoff=0.5)
    return list(dict.fromkeys(longer + alike))[:3]


@functools.cache
def _catalogue() -> Mapping[str, GPUType]:
    text = resources.files("medley_planner").joinpath("data", "gpus.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)["gpu"]
    types = {row["name"]: _from_row(row) for row in rows}
    if len(types) != len(rows):
        raise GPUTypeError("name: the catalogue names a GPU type twice")
    return MappingProxyType(dict(sorted(types.items())))


def _from_row(row: Mapping[str, object]) -> GPUType:
    figures = {field: value for field, value in row.items() if isinstance(value, int | float)}
    eight_bit = figures.get("dense_teraflops_8bit")
    labels = row["product_labels"]
    if not isinstance(labels, list):
        raise GPUTypeError(f"product_labels: must be a list, is {labels!r}")
    return GPUType(
        name=str(row["name"]),
        memory_bytes=round(figures["memory_mib"] * BYTES_PER_MIB),
        memory_bandwidth_bytes_per_s=figures["memory_bandwidth_gb_per_s"] * 1e9,
        dense_flops_16bit=figures["dense_teraflops_16bit"] * 1e12,
        dense_flops_8bit=None if eight_bit is None else eight_bit * 1e12,
        link_bandwidth_bytes_per_s=figures["link_gb_per_s"] * 1e9,
        product_labels=tuple(str(label) for label in labels),
    )
