"""The forward pass of a mixture-of-experts decoder over paged KV, with experts spread over all ranks.

Numerics. The bits of a matrix product depend on how many rows it has: for these kernels, on whether the row count is
a multiple of 16 (measured; see docs/engine/numerics.md). With ``row_tile`` 16 every product is padded to such a
count, attention is computed for each sequence by itself, and expert outputs are added in the order of the router's
choice. A token's numbers then depend on its own sequence only, not on its company, the batch, the number of ranks or
the placement of experts. ``row_tile`` 1 gives that up for speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from medley_engine.config import ModelConfig
from medley_engine.placement import Placement
from medley_engine.runtime.collective import Collective
from medley_engine.runtime.weights import Experts, KvCache, Weights
from medley_engine.scheduler import Slice


def pad_rows(x: torch.Tensor, tile: int) -> torch.Tensor:
    """Append zero rows up to a multiple of ``tile``."""
    missing = -x.shape[0] % tile
    return functional.pad(x, (0, 0, 0, missing)) if missing else x


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm over the last dimension, in float32 as the reference implementation has it."""
    h = x.to(torch.float32)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return weight * h.to(x.dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers of one forward pass share. ``rows`` counts real tokens; tensors may have more rows, of padding.

    ``rotary`` is (cos, sin), each (rows, 1, head size); ``slots`` is (block, place in it) of each token.
    """

    batch: Sequence[Slice]
    rows: int
    rotary: tuple[torch.Tensor, torch.Tensor]
    slots: tuple[torch.Tensor, torch.Tensor]


class Router:
    """Where to send each (token, choice): expert → its copies, spread by the sender so that all copies share the
    work.
    """

    def __init__(self, placement: Placement, config: ModelConfig, rank: int) -> None:
        self.target: dict[int, torch.Tensor] = {}
        for index, layer in enumerate(config.moe_layers):
            chosen = []
            for copies in placement.copies(index, config.experts):
                own = [copy for copy in copies if copy[0] == rank]
                chosen.append(own[0] if own else copies[rank % len(copies)])
            self.target[layer] = torch.tensor(chosen, dtype=torch.int64)


class MoeModel:
    """One rank's part of the model. ``expert_tokens[layer]`` counts tokens by expert since it was last read."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        cache: KvCache,
        placement: Placement,
        collective: Collective,
        *,
        row_tile: int = 16,
    ) -> None:
        self._c, self._w, self._cache, self._comm = config, weights, cache, collective
        self._router = Router(placement, config, collective.rank)
        self._own_tile = self._tile = row_tile
        self._heads = config.heads // collective.tensor_parallel
        self._kv_heads = config.kv_heads // collective.tensor_parallel
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).to(torch.float) / config.head_dim
        self._frequencies = 1.0 / (config.rope_theta**exponents)
        self.expert_tokens = torch.zeros(len(config.moe_layers), config.experts, dtype=torch.int64)

    @torch.inference_mode()
    def forward(self, batch: Sequence[Slice], row_tile: int | None = None) -> torch.Tensor:
        """Compute a step; every rank of the instance must call this at the same time, with an empty batch if need be.

        Args:
            batch: what to compute.
            row_tile: another tile than the model's, for a step whose numbers nobody keeps.

        Returns:
            Logits (slices that sample, vocabulary), in the order of the batch.
        """
        self._tile = self._own_tile if row_tile is None else row_tile
        tokens = torch.tensor([t for piece in batch for t in piece.tokens], dtype=torch.int64)
        positions = torch.tensor([p for s in batch for p in range(s.start, s.start + s.count)], dtype=torch.int64)
        rows = len(tokens)
        embed = self._w.tensors[-1, "model.embed_tokens.weight"]
        hidden = pad_rows(embed[tokens], self._tile)
        angles = positions[:, None].float() * self._frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, None, :]
        rotary = angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)
        step = Step(batch, rows, rotary, self._slots(batch))
        for layer in range(self._c.layers):
            hidden = self._layer(layer, hidden, step)
        return self._head(hidden, batch)

    def _head(self, hidden: torch.Tensor, batch: Sequence[Slice]) -> torch.Tensor:
        last, at = [], 0
        for piece in batch:
            at += piece.count
            if piece.sample:
                last.append(at - 1)
        c = self._c
        x = pad_rows(hidden[last], self._tile)
        if not last:
            return x[:0]
        x = rms_norm(x, self._w.tensors[c.layers, "model.norm.weight"], c.rms_eps)
        head = self._w.tensors[(-1, "model.embed_tokens.weight") if c.tied_embeddings else (c.layers, "lm_head.weight")]
        return functional.linear(x, head)[: len(last)]

    def _slots(self, batch: Sequence[Slice]) -> tuple[torch.Tensor, torch.Tensor]:
        """Block and place within it, for each token of the step."""
        size = self._cache.block_tokens
        places = [
            (piece.blocks[p // size], p % size)
            for piece in batch
            for p in range(piece.start, piece.start + piece.count)
        ]
        table = torch.tensor(places, dtype=torch.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def _layer(self, layer: int, hidden: torch.Tensor, step: Step) -> torch.Tensor:
        rows = step.rows
        if rows:
            x = rms_norm(hidden, self._w.tensors[layer, "input_layernorm.weight"], self._c.rms_eps)
            hidden = hidden + self._comm.sum_shards(self._attention(layer, x, step))
        x = hidden
        if rows:
            x = rms_norm(hidden, self._w.tensors[layer, "post_attention_layernorm.weight"], self._c.rms_eps)
        if layer in self._c.dense_layers:
            return hidden + self._comm.sum_shards(self._dense_mlp(layer, x)) if rows else hidden
        return hidden + self._moe(layer, x, rows)

    def _linear(self, layer: int, name: str, x: torch.Tensor) -> torch.Tensor:
        bias = self._w.tensors.get((layer, f"{name}.bias"))
        return functional.linear(x, self._w.tensors[layer, f"{name}.weight"], bias)

    def _attention(self, layer: int, x: torch.Tensor, step: Step) -> torch.Tensor:
        c, rows = self._c, step.rows
        query, key, value = self._project(layer, x)
        query, key, value = (
            t[:rows].view(rows, heads, c.head_dim)
            for t, heads in ((query, self._heads), (key, self._kv_heads), (value, self._kv_heads))
        )
        if c.qk_norm == "head":
            query = rms_norm(query, self._w.tensors[layer, "self_attn.q_norm.weight"], c.rms_eps)
            key = rms_norm(key, self._w.tensors[layer, "self_attn.k_norm.weight"], c.rms_eps)
        query, key = _rotate(query, *step.rotary), _rotate(key, *step.rotary)
        blocks = self._cache.blocks
        assert blocks is not None, "the cache is closed"
        keys, values = blocks[:, layer, 0], blocks[:, layer, 1]
        keys[step.slots] = key
        values[step.slots] = value
        out = x.new_zeros((x.shape[0], self._heads * c.head_dim))
        at = 0
        for piece in step.batch:
            seen = self._attend(query[at : at + piece.count], piece, keys, values)
            out[at : at + piece.count] = seen
            at += piece.count
        result = functional.linear(out, self._w.tensors[layer, "self_attn.o_proj.weight"])
        bias = self._w.tensors.get((layer, "self_attn.o_proj.bias"))
        return result if bias is None or self._comm.tp_rank else result + bias

    def _project(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        c = self._c
        query, key, value = (self._linear(layer, f"self_attn.{name}_proj", x) for name in ("q", "k", "v"))
        if c.qk_norm == "full":
            query = rms_norm(query, self._w.tensors[layer, "self_attn.q_norm.weight"], c.rms_eps)
            key = rms_norm(key, self._w.tensors[layer, "self_attn.k_norm.weight"], c.rms_eps)
        if c.qkv_clip is not None:
            query, key, value = (t.clamp(-c.qkv_clip, c.qkv_clip) for t in (query, key, value))
        return query, key, value

    def _attend(self, query: torch.Tensor, piece: Slice, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attention of one sequence's new tokens (count, heads, size) over everything it has seen."""
        c, context = self._c, piece.start + piece.count
        table = torch.tensor(piece.blocks[: -(-context // self._cache.block_tokens)], dtype=torch.int64)
        first = 0
        if c.sliding_window is not None:
            first = max(0, piece.start + 1 - c.sliding_window)
        key, value = (
            side[table].reshape(-1, self._kv_heads, c.head_dim)[first:context].transpose(0, 1)
            for side in (keys, values)
        )
        group = self._heads // self._kv_heads
        q = query.view(piece.count, self._kv_heads, group, c.head_dim).permute(1, 2, 0, 3)
        scores = (q.reshape(self._kv_heads, group * piece.count, c.head_dim) @ key.transpose(1, 2)) * c.head_dim**-0.5
        if piece.count > 1:
            hidden = self._mask(piece, first, context).repeat(group, 1)
            scores = scores.masked_fill(hidden, float("-inf"))
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        seen = (weights @ value).view(self._kv_heads, group, piece.count, c.head_dim)
        return seen.permute(2, 0, 1, 3).reshape(piece.count, -1)

    def _mask(self, piece: Slice, first: int, context: int) -> torch.Tensor:
        """True where a new token (row) must not see a position (column)."""
        rows = torch.arange(piece.start, piece.start + piece.count)[:, None]
        columns = torch.arange(first, context)[None, :]
        hidden = columns > rows
        if self._c.sliding_window is not None:
            hidden = hidden | (columns <= rows - self._c.sliding_window)
        return hidden

    def _dense_mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        gate, up = (self._linear(layer, f"mlp.{name}_proj", x) for name in ("gate", "up"))
        return self._linear(layer, "mlp.down_proj", functional.silu(gate) * up)

    def _moe(self, layer: int, x: torch.Tensor, rows: int) -> torch.Tensor:
        """Route, send to the experts' ranks, compute there, bring back, add up.

        Ranks of one tensor-parallel group hold the same tokens; each sends its part of them, and the parts are
        gathered after.
        """
        c, comm = self._c, self._comm
        share = -(-x.shape[0] // comm.tensor_parallel) if rows else 0
        low = min(comm.tp_rank * share, x.shape[0])
        mine = max(0, min(rows - low, share))
        nothing = x.new_zeros(0, c.experts_per_token)
        scores, chosen = self._route(layer, x) if rows else (nothing, nothing.long())
        scores, chosen = scores[low : low + mine], chosen[low : low + mine]
        index = c.moe_layers.index(layer)
        self.expert_tokens[index] += torch.bincount(chosen.reshape(-1), minlength=c.experts)
        results = self._dispatch(layer, x[low : low + mine], chosen)
        total = x.new_zeros((share, c.hidden_size))
        for choice in range(c.experts_per_token):
            total[:mine] += results[:, choice] * scores[:, choice, None]
        if comm.tensor_parallel == 1 or not rows:
            return total
        return torch.cat(comm.gather_shards(total))[: x.shape[0]]

    def _route(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._linear(layer, self._c.router_name, x)
        if self._c.router_dtype_is_float:
            logits = logits.float()
        scores, chosen = torch.topk(
            torch.softmax(logits, dim=-1, dtype=torch.float32), self._c.experts_per_token, dim=-1
        )
        if self._c.normalise_top_k:
            scores = scores / scores.sum(dim=-1, keepdim=True)
        return scores.to(x.dtype), chosen

    def _dispatch(self, layer: int, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Outputs (tokens, choices, hidden) of the chosen experts, computed where these live."""
        comm, choices = self._comm, chosen.shape[1]
        target = self._router.target[layer][chosen.reshape(-1)]
        order = torch.argsort(target[:, 0], stable=True)
        sources = torch.arange(x.shape[0]).repeat_interleave(choices)[order]
        slots = target[order, 1]
        sent = torch.bincount(target[:, 0], minlength=comm.size).tolist()
        received = comm.exchange_counts(sent)
        # The slot travels with its row as two small numbers, exact in every float type.
        tags = torch.stack((slots // 256, slots % 256), dim=1).to(x.dtype)
        rows = comm.exchange(torch.cat((x[sources], tags), dim=1), sent, received)
        local = rows[:, -2].long() * 256 + rows[:, -1].long()
        outputs = comm.exchange(self._run_experts(self._w.experts[layer], rows[:, :-2], local), received, sent)
        back = torch.empty_like(outputs)
        back[order] = outputs
        return back.view(x.shape[0], choices, self._c.hidden_size)

    def _run_experts(self, experts: Experts, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        out = rows.new_empty((rows.shape[0], experts.down.shape[1]))
        order = torch.argsort(slots, stable=True)
        counts = torch.bincount(slots, minlength=0).tolist()
        at = 0
        for slot, count in enumerate(counts):
            if not count:
                continue
            picked = order[at : at + count]
            at += count
            x = pad_rows(rows[picked], self._tile)
            gate, up = functional.linear(x, experts.gate_up[slot]).chunk(2, dim=-1)
            out[picked] = functional.linear(functional.silu(gate) * up, experts.down[slot])[:count]
        return out
