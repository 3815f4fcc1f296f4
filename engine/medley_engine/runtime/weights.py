"""Tensors over mapped pages: what a rank computes with, made in milliseconds and dropped as fast.

Dense items become one view per tensor. The experts of one layer are mapped side by side into one virtual range,
whatever their places in the pool, and become two strided tensors, so a kernel sees them as if they had been allocated
together.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from medley_engine.layout import Layout, Piece
from medley_engine.memory.pools import Range
from medley_engine.runtime.devices import Device

_MAX_BLOCKS = 1 << 16
TORCH_DTYPE = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Experts:
    """One layer's experts on this rank: ``gate_up`` (slots, 2·width, hidden), ``down`` (slots, hidden, width)."""

    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True, slots=True)
class AttachOptions:
    """How to attach; the defaults are the engine's way, the others exist to measure what each mechanism is worth.

    ``zero_copy`` False copies everything into private memory. ``page_remap`` False copies experts into one private
    allocation per layer, as an engine must whose experts need contiguous physical memory. ``populate`` fills page
    tables at once; without it they fill as pages are touched, sixteen at a time, so that experts which nobody asks
    for do not delay the first token.
    """

    zero_copy: bool = True
    page_remap: bool = True
    populate: bool = False


@dataclass
class Weights:
    """Dense tensors by (layer, short name) and experts by layer. ``seconds`` says what attaching cost."""

    tensors: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    experts: dict[int, Experts] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    private_bytes: int = 0
    _ranges: list[Range] = field(default_factory=list)
    _places: dict[str, tuple[Range, int]] = field(default_factory=dict)

    def remap(self, items: Sequence[Place], fds: Sequence[int]) -> None:
        """Show items from other pages at the addresses they have. The same bytes, so every tensor over them goes on as
        it is, where the device allows it (``remaps_live``) also under a step that reads them.
        """
        for key, pool, offset, size in items:
            mapped, at = self._places[key]
            mapped.map(fds[pool], offset, at, size)

    def close(self) -> None:
        """Drop the views, then the mappings under them."""
        self.tensors.clear()
        self.experts.clear()
        gc.collect()
        for mapped in self._ranges:
            mapped.close()
        self._ranges.clear()
        self._places.clear()


def _tensor(flat: torch.Tensor, at: int, piece: Piece, dtype: torch.dtype) -> torch.Tensor:
    start = at + piece.offset_bytes
    return flat[start : start + piece.elements * dtype.itemsize].view(dtype).view(piece.shape)


def _short(tensor: str) -> str:
    parts = tensor.split(".")
    return ".".join(parts[3:]) if parts[:2] == ["model", "layers"] else tensor


Place = tuple[str, int, int, int]
"""Where an item lies, as the manager tells it: key, number of the pool, offset in it, size."""


def attach(
    layout: Layout, items: Sequence[Place], fds: Sequence[int], options: AttachOptions, device: Device
) -> Weights:
    """Map a rank's items and build its tensors.

    Args:
        layout: the model's items.
        items: in mapping order, as the manager gave them.
        fds: the pools, by number.
        options: see :class:`AttachOptions`.
        device: where the rank computes.
    """
    weights = Weights()
    dtype = TORCH_DTYPE[layout.dtype]
    start = time.perf_counter()
    dense = [entry for entry in items if layout.items[entry[0]].expert is None]
    mapped = _map(weights, fds, dense, device, private=not options.zero_copy, populate=options.populate)
    flat, at = device.tensor(mapped, 0, mapped.size_bytes), 0
    for key, _, _, size in dense:
        item = layout.items[key]
        for piece in item.pieces:
            weights.tensors[item.layer, _short(piece.tensor)] = _tensor(flat, at, piece, dtype)
        at += size
    weights.seconds["attachDense"] = time.perf_counter() - start
    start = time.perf_counter()
    for layer, entries in _by_layer(layout, items).items():
        private = not (options.zero_copy and options.page_remap)
        mapped = _map(weights, fds, entries, device, private=private, populate=options.populate)
        weights.experts[layer] = _experts(layout, device.tensor(mapped, 0, mapped.size_bytes), entries)
    weights.seconds["mapExperts"] = time.perf_counter() - start
    return weights


def _by_layer(layout: Layout, items: Sequence[Place]) -> Mapping[int, list[Place]]:
    layers: dict[int, list[Place]] = {layer: [] for layer in layout.config.moe_layers}
    for entry in items:
        item = layout.items[entry[0]]
        if item.expert is not None:
            layers[item.layer].append(entry)
    return layers


def _map(
    weights: Weights, fds: Sequence[int], entries: Sequence[Place], device: Device, *, private: bool, populate: bool
) -> Range:
    """One range over all entries, in order; runs that touch in the pool too take one mapping."""
    mapped = device.reserve(sum(size for _, _, _, size in entries))
    weights._ranges.append(mapped)
    at = 0
    for pool, offset, size in _runs(entries):
        if private:
            device.copy_in(mapped, fds[pool], offset, at, size)
            weights.private_bytes += size
        else:
            mapped.map(fds[pool], offset, at, size, populate=populate)
        at += size
    at = 0
    for key, _, _, size in entries:
        weights._places[key] = (mapped, at)
        at += size
    return mapped


def _runs(entries: Sequence[Place]) -> list[tuple[int, int, int]]:
    runs: list[tuple[int, int, int]] = []
    for _, pool, offset, size in entries:
        if runs and runs[-1][0] == pool and runs[-1][1] + runs[-1][2] == offset:
            runs[-1] = (pool, runs[-1][1], runs[-1][2] + size)
        else:
            runs.append((pool, offset, size))
    return runs


def _experts(layout: Layout, flat: torch.Tensor, entries: Sequence[Place]) -> Experts:
    dtype, config = TORCH_DTYPE[layout.dtype], layout.config
    item = layout.items[entries[0][0]]
    gate, up, down = item.pieces
    flat = flat[: item.size_bytes * len(entries)].view(dtype)
    if up.offset_bytes != gate.elements * dtype.itemsize:
        raise ValueError("gate and up must lie next to each other")
    stride, hidden, width = item.size_bytes // dtype.itemsize, config.hidden_size, config.expert_width
    return Experts(
        gate_up=flat.as_strided((len(entries), 2 * width, hidden), (stride, hidden, 1)),
        down=flat.as_strided(
            (len(entries), hidden, width), (stride, width, 1), storage_offset=down.offset_bytes // dtype.itemsize
        ),
    )


class KvCache:
    """The rank's window on its KV pool: (blocks, layers, sides, block tokens, heads, size), a block contiguous. The
    sides are keys and values, or one latent vector from which both are made.

    The window may span more blocks than are lent today, since the pool may grow while an instance runs.

    Args:
        fd: the pool.
        pool_bytes: how much of it can be mapped.
        layout: of the model.
        block_tokens: tokens of a block.
        block_bytes: distance of two blocks in the pool.
        device: where the rank computes.
    """

    def __init__(
        self, fd: int, pool_bytes: int, layout: Layout, *, block_tokens: int, block_bytes: int, device: Device
    ) -> None:
        config, dtype = layout.config, TORCH_DTYPE[layout.dtype]
        sides, heads, size = config.kv_shape(layout.tensor_parallel)
        self.block_tokens = block_tokens
        blocks = min(pool_bytes // block_bytes, _MAX_BLOCKS)
        self._mapped = device.reserve(block_bytes * blocks)
        self._mapped.map(fd, 0, 0, self._mapped.size_bytes, writable=True)
        flat = device.tensor(self._mapped, 0, block_bytes * blocks).view(dtype)
        token = heads * size
        side = block_tokens * token
        self.blocks: torch.Tensor | None = flat.as_strided(
            (blocks, config.layers, sides, block_tokens, heads, size),
            (block_bytes // dtype.itemsize, sides * side, side, token, size, 1),
        )

    def close(self) -> None:
        """Unmap."""
        self.blocks = None
        gc.collect()
        self._mapped.close()
