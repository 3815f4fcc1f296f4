"""Attention over paged keys and values, each sequence by itself, so that it depends on that sequence's length only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medley_engine.config import Latent, ModelConfig
from medley_engine.runtime.products import Products
from medley_engine.runtime.rotary import turn
from medley_engine.runtime.weights import KvCache, Weights
from medley_engine.scheduler import Slice

_LATENT_NORM_EPS = 1e-6
"""The reference's norms of latent vectors take no notice of ``rms_norm_eps``."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm over the last dimension, in float32 as the reference implementation has it."""
    h = x.to(torch.float32)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return weight * h.to(x.dtype)


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers of one forward pass share.

    ``rotary`` is (cos, sin), each (rows, 1, rotary size / 2); ``slots`` is (block, place in it) of each token;
    ``tables`` are each slice's blocks, ``masks`` what its tokens must not see (None for a single one).
    """

    batch: Sequence[Slice]
    rows: int
    products: Products
    rotary: tuple[torch.Tensor, torch.Tensor]
    slots: tuple[torch.Tensor, torch.Tensor]
    tables: Sequence[torch.Tensor]
    masks: Sequence[torch.Tensor | None]


def first_seen(config: ModelConfig, piece: Slice) -> int:
    """First position that a slice's first token sees."""
    return 0 if config.sliding_window is None else max(0, piece.start + 1 - config.sliding_window)


def mask_of(config: ModelConfig, piece: Slice, device: torch.device) -> torch.Tensor | None:
    """True where a new token (row) must not see a position (column, from :func:`first_seen`)."""
    if piece.count == 1:
        return None
    rows = torch.arange(piece.start, piece.start + piece.count, device=device)[:, None]
    columns = torch.arange(first_seen(config, piece), piece.start + piece.count, device=device)[None, :]
    hidden = columns > rows
    if config.sliding_window is not None:
        hidden = hidden | (columns <= rows - config.sliding_window)
    return hidden


class GroupedAttention:
    """Attention with as many key and value heads as there are, or fewer (grouped queries), of one tensor shard."""

    def __init__(self, config: ModelConfig, weights: Weights, cache: KvCache, tensor_parallel: int) -> None:
        self._c, self._w, self._cache = config, weights, cache
        self._heads = config.heads // tensor_parallel
        self._kv_heads = config.kv_heads // tensor_parallel

    def _weight(self, layer: int, name: str) -> torch.Tensor:
        return self._w.tensors[layer, f"self_attn.{name}.weight"]

    def forward(self, layer: int, x: torch.Tensor, step: Step) -> torch.Tensor:
        """This shard's part of the output (rows, hidden) of x (rows, hidden), without the output's bias."""
        c, rows = self._c, step.rows
        query, key, value = self._project(layer, x, step.products)
        query, key, value = (t.view(rows, -1, c.head_dim) for t in (query, key, value))
        if c.qk_norm == "head":
            query = rms_norm(query, self._weight(layer, "q_norm"), c.rms_eps)
            key = rms_norm(key, self._weight(layer, "k_norm"), c.rms_eps)
        query, key = (turn(t, *step.rotary, interleaved=False) for t in (query, key))
        sides = self._sides(layer)
        sides[0][step.slots] = key
        sides[1][step.slots] = value
        out = x.new_empty((rows, self._heads * c.head_dim))
        at = 0
        for piece, table, mask in zip(step.batch, step.tables, step.masks, strict=True):
            seen = slice(first_seen(c, piece), piece.start + piece.count)
            keys, values = (side[table].flatten(0, 1)[seen] for side in sides)
            rows_of = slice(at, at + piece.count)
            out[rows_of] = attend(query[rows_of], keys, values, mask, c.attention_scale).flatten(1)
            at += piece.count
        return step.products.linear(out, self._weight(layer, "o_proj"))

    def _sides(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = self._cache.blocks
        assert blocks is not None, "the cache is closed"
        return blocks[:, layer, 0], blocks[:, layer, 1]

    def _project(
        self, layer: int, x: torch.Tensor, products: Products
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        c = self._c
        query, key, value = (
            products.linear(
                x, self._weight(layer, f"{name}_proj"), self._w.tensors.get((layer, f"self_attn.{name}_proj.bias"))
            )
            for name in ("q", "k", "v")
        )
        if c.qk_norm == "full":
            query = rms_norm(query, self._weight(layer, "q_norm"), c.rms_eps)
            key = rms_norm(key, self._weight(layer, "k_norm"), c.rms_eps)
        if c.qkv_clip is not None:
            query, key, value = (t.clamp(-c.qkv_clip, c.qkv_clip) for t in (query, key, value))
        return query, key, value


class LatentAttention:
    """DeepSeek-V2's attention over one latent vector per token, which is all that is cached.

    Keys and values are never made: what would make them (``kv_b_proj``) is moved to the query and to the output,
    which is the same sum in another order.
    """

    def __init__(
        self, config: ModelConfig, latent: Latent, weights: Weights, cache: KvCache, tensor_parallel: int
    ) -> None:
        self._c, self._l, self._w, self._cache = config, latent, weights, cache
        self._heads = config.heads // tensor_parallel

    def _weight(self, layer: int, name: str) -> torch.Tensor:
        return self._w.tensors[layer, f"self_attn.{name}.weight"]

    def forward(self, layer: int, x: torch.Tensor, step: Step) -> torch.Tensor:
        """This shard's part of the output (rows, hidden) of x (rows, hidden)."""
        latent, rows = self._l, step.rows
        query = self._query(layer, x, step.products).view(rows, self._heads, latent.query_dim)
        plain, placed = query.split((latent.nope_dim, latent.rope_dim), dim=-1)
        placed = turn(placed, *step.rotary, interleaved=True)
        made = step.products.linear(x, self._weight(layer, "kv_a_proj_with_mqa"))
        vector, position = made.split((latent.kv_rank, latent.rope_dim), dim=-1)
        vector = rms_norm(vector, self._weight(layer, "kv_a_layernorm"), _LATENT_NORM_EPS)
        position = turn(position[:, None, :], *step.rotary, interleaved=True)[:, 0]
        blocks = self._cache.blocks
        assert blocks is not None, "the cache is closed"
        side = blocks[:, layer, 0]
        side[step.slots] = torch.cat((vector, position), dim=-1)[:, None, :]
        expand = self._weight(layer, "kv_b_proj").view(self._heads, latent.nope_dim + latent.value_dim, latent.kv_rank)
        to_key, to_value = expand.split((latent.nope_dim, latent.value_dim), dim=1)
        out = x.new_empty((rows, self._heads * latent.value_dim))
        at = 0
        for piece, table, mask in zip(step.batch, step.tables, step.masks, strict=True):
            seen = side[table].flatten(0, 1)[: piece.start + piece.count]
            rows_of = slice(at, at + piece.count)
            moved = (plain[rows_of].transpose(0, 1) @ to_key).transpose(0, 1)
            asked = torch.cat((moved, placed[rows_of]), dim=-1)
            vectors = attend(asked, seen, seen[..., : latent.kv_rank], mask, self._c.attention_scale)
            out[rows_of] = (vectors.transpose(0, 1) @ to_value.transpose(1, 2)).transpose(0, 1).flatten(1)
            at += piece.count
        return step.products.linear(out, self._weight(layer, "o_proj"))

    def _query(self, layer: int, x: torch.Tensor, products: Products) -> torch.Tensor:
        if self._l.q_rank is None:
            return products.linear(x, self._weight(layer, "q_proj"))
        small = products.linear(x, self._weight(layer, "q_a_proj"))
        small = rms_norm(small, self._weight(layer, "q_a_layernorm"), _LATENT_NORM_EPS)
        return products.linear(small, self._weight(layer, "q_b_proj"))


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Attention of one sequence's new tokens over what it has seen.

    Args:
        query: (tokens, heads, size).
        keys: (seen, key heads, size); heads must be a multiple of key heads.
        values: (seen, key heads, value size).
        mask: (tokens, seen), True where a token must not look; None hides nothing.
        scale: of query · key.

    Returns:
        (tokens, heads, value size).
    """
    tokens, heads, size = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    q = query.view(tokens, kv_heads, group, size).permute(1, 2, 0, 3).reshape(kv_heads, group * tokens, size)
    scores = (q @ keys.permute(1, 2, 0)) * scale
    if mask is not None:
        scores = scores.masked_fill(mask.repeat(group, 1), float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    seen = (weights @ values.transpose(0, 1)).view(kv_heads, group, tokens, -1)
    return seen.permute(2, 0, 1, 3).reshape(tokens, heads, -1)
