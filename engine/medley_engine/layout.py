"""What a rank needs in memory: items, each one contiguous run of pages that is copied, shared and freed as a whole.

Two kinds of item exist. A *dense* item packs all non-expert tensors of one layer (or of the embeddings, or of the
head) for one tensor-parallel shard (embeddings and head are not split); every data-parallel group needs it. An
*expert* item packs the three projections of one expert as ``[gate; up]`` (2·width, hidden) and ``down`` (hidden,
width); one rank, or a few, need it. Only expert items move when the number of ranks changes, and they are all of one
size, so a rank's experts of one layer can be mapped side by side into one virtual range and seen as one tensor with a
stride.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from medley_engine.config import DTYPE_BYTES, Latent, ModelConfig, check_tensor_parallel
from medley_engine.placement import Placement
from medley_engine.topology import Topology

ALIGNMENT_BYTES = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor (or a slice of it) inside an item.

    ``shape`` is the shape after slicing; ``split_dim`` and the shard say which part of the checkpoint's tensor it is
    (None: all of it). ``offset_bytes`` counts from the item's start.
    """

    tensor: str
    shape: tuple[int, ...]
    offset_bytes: int
    split_dim: int | None = None
    shard: int = 0
    shards: int = 1

    @property
    def elements(self) -> int:
        """Number of elements in the slice."""
        total = 1
        for size in self.shape:
            total *= size
        return total


@dataclass(frozen=True, slots=True)
class Item:
    """A unit of residency. ``layer`` is -1 for embeddings and the number of layers for the head; ``expert`` is None
    for dense items.
    """

    key: str
    layer: int
    expert: int | None
    size_bytes: int
    pieces: tuple[Piece, ...]


def _align(value: int, to: int) -> int:
    return -(-value // to) * to


class _Packer:
    def __init__(self, dtype: str) -> None:
        self._item_bytes = DTYPE_BYTES[dtype]
        self._offset = 0
        self.pieces: list[Piece] = []

    def add(
        self, tensor: str, shape: tuple[int, ...], split_dim: int | None = None, shard: int = 0, shards: int = 1
    ) -> None:
        sliced = tuple(s // shards if d == split_dim else s for d, s in enumerate(shape))
        piece = Piece(tensor, sliced, self._offset, split_dim if shards > 1 else None, shard, shards)
        self.pieces.append(piece)
        self._offset = _align(self._offset + piece.elements * self._item_bytes, ALIGNMENT_BYTES)

    def item(self, key: str, layer: int, expert: int | None, page_bytes: int) -> Item:
        return Item(key, layer, expert, _align(self._offset, page_bytes), tuple(self.pieces))


@dataclass(frozen=True)
class Layout:
    """All items of one model in one numeric type, with pages of ``page_bytes``."""

    config: ModelConfig
    dtype: str
    tensor_parallel: int
    page_bytes: int

    def __post_init__(self) -> None:
        check_tensor_parallel(self.config, self.tensor_parallel)

    @cached_property
    def items(self) -> Mapping[str, Item]:
        """Every item by its key, in a fixed order."""
        built = [self._embedding()]
        for layer in range(self.config.layers):
            built += [self._dense(layer, shard) for shard in range(self.tensor_parallel)]
            if layer not in self.config.dense_layers:
                built += [self._expert(layer, expert) for expert in range(self.config.experts)]
        built.append(self._head())
        return {item.key: item for item in built}

    @property
    def expert_bytes(self) -> int:
        """Size of one expert, a multiple of the page."""
        return self.items[expert_key(self.config.moe_layers[0], 0)].size_bytes if self.config.moe_layers else 0

    def dense_keys(self, shard: int) -> tuple[str, ...]:
        """Dense items that every rank at this position of its tensor-parallel group needs."""
        layers = tuple(dense_key(layer, shard) for layer in range(self.config.layers))
        return (dense_key(-1, 0), *layers, dense_key(self.config.layers, 0))

    def rank_keys(self, topology: Topology, placement: Placement, rank: int) -> tuple[str, ...]:
        """Everything that ``rank`` needs: its dense shard, then its experts layer by layer in slot order."""
        experts = (
            expert_key(layer, expert)
            for layer, slots in zip(self.config.moe_layers, placement.layers, strict=True)
            for expert in slots[rank]
        )
        return (*self.dense_keys(topology.tp_index(rank)), *experts)

    def _embedding(self) -> Item:
        pack = _Packer(self.dtype)
        pack.add("model.embed_tokens.weight", (self.config.vocab_size, self.config.hidden_size))
        return pack.item(dense_key(-1, 0), -1, None, self.page_bytes)

    def _head(self) -> Item:
        pack = _Packer(self.dtype)
        pack.add("model.norm.weight", (self.config.hidden_size,))
        if not self.config.tied_embeddings:
            pack.add("lm_head.weight", (self.config.vocab_size, self.config.hidden_size))
        return pack.item(dense_key(self.config.layers, 0), self.config.layers, None, self.page_bytes)

    def _dense(self, layer: int, shard: int) -> Item:
        c, pack = self.config, _Packer(self.dtype)
        prefix = f"model.layers.{layer}"
        pack.add(f"{prefix}.input_layernorm.weight", (c.hidden_size,))
        if c.latent is not None:
            self._latent_attention(pack, f"{prefix}.self_attn", c.latent, shard)
        else:
            self._attention(pack, f"{prefix}.self_attn", shard)
        pack.add(f"{prefix}.post_attention_layernorm.weight", (c.hidden_size,))
        if layer in c.dense_layers:
            self._mlp(pack, f"{prefix}.mlp", c.dense_width, shard)
        else:
            pack.add(f"{prefix}.{c.router_name}.weight", (c.experts, c.hidden_size))
            if c.shared_width:
                self._mlp(pack, f"{prefix}.mlp.shared_experts", c.shared_width, shard)
        return pack.item(dense_key(layer, shard), layer, None, self.page_bytes)

    def _attention(self, pack: _Packer, prefix: str, shard: int) -> None:
        c, shards = self.config, self.tensor_parallel
        query, key_value = c.heads * c.head_dim, c.kv_heads * c.head_dim
        for name, width in (("q", query), ("k", key_value), ("v", key_value)):
            pack.add(f"{prefix}.{name}_proj.weight", (width, c.hidden_size), 0, shard, shards)
            if c.qkv_bias:
                pack.add(f"{prefix}.{name}_proj.bias", (width,), 0, shard, shards)
        pack.add(f"{prefix}.o_proj.weight", (c.hidden_size, query), 1, shard, shards)
        if c.qkv_bias:
            pack.add(f"{prefix}.o_proj.bias", (c.hidden_size,))
        if c.qk_norm != "none":
            for name, width in (("q", query), ("k", key_value)):
                pack.add(f"{prefix}.{name}_norm.weight", (c.head_dim if c.qk_norm == "head" else width,))

    def _latent_attention(self, pack: _Packer, prefix: str, latent: Latent, shard: int) -> None:
        """Each shard has its heads' part of what is made from the latent vectors, and all of what makes these."""
        c, shards = self.config, self.tensor_parallel
        queries = c.heads * latent.query_dim
        if latent.q_rank is None:
            pack.add(f"{prefix}.q_proj.weight", (queries, c.hidden_size), 0, shard, shards)
        else:
            pack.add(f"{prefix}.q_a_proj.weight", (latent.q_rank, c.hidden_size))
            pack.add(f"{prefix}.q_a_layernorm.weight", (latent.q_rank,))
            pack.add(f"{prefix}.q_b_proj.weight", (queries, latent.q_rank), 0, shard, shards)
        pack.add(f"{prefix}.kv_a_proj_with_mqa.weight", (latent.kv_rank + latent.rope_dim, c.hidden_size))
        pack.add(f"{prefix}.kv_a_layernorm.weight", (latent.kv_rank,))
        expanded = c.heads * (latent.nope_dim + latent.value_dim)
        pack.add(f"{prefix}.kv_b_proj.weight", (expanded, latent.kv_rank), 0, shard, shards)
        pack.add(f"{prefix}.o_proj.weight", (c.hidden_size, c.heads * latent.value_dim), 1, shard, shards)

    def _mlp(self, pack: _Packer, prefix: str, width: int, shard: int) -> None:
        hidden = self.config.hidden_size
        for name, dim in (("gate", 0), ("up", 0), ("down", 1)):
            shape = (width, hidden) if dim == 0 else (hidden, width)
            pack.add(f"{prefix}.{name}_proj.weight", shape, dim, shard, self.tensor_parallel)

    def _expert(self, layer: int, expert: int) -> Item:
        c, pack = self.config, _Packer(self.dtype)
        gate, up, down = (f"model.layers.{layer}.{c.expert_prefix}.{expert}.{name}.weight" for name in c.expert_names)
        pack.add(gate, (c.expert_width, c.hidden_size))
        pack.add(up, (c.expert_width, c.hidden_size))
        pack.add(down, (c.hidden_size, c.expert_width))
        return pack.item(expert_key(layer, expert), layer, expert, self.page_bytes)


def dense_key(layer: int, shard: int) -> str:
    """Key of a dense item."""
    return f"dense/{layer}/{shard}"


def expert_key(layer: int, expert: int) -> str:
    """Key of an expert item."""
    return f"expert/{layer}/{expert}"
