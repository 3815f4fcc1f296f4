"""The forward pass of a mixture-of-experts decoder over paged KV, with experts spread over all ranks.

A token's numbers depend on its own sequence only, not on its company, the batch, the number of ranks or the placement
of experts, unless ``invariant`` is given up for speed: see :mod:`medley_engine.runtime.products` and
docs/engine/numerics.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medley_engine.config import ModelConfig
from medley_engine.placement import Placement
from medley_engine.runtime.attention import GroupedAttention, LatentAttention, Step, mask_of, rms_norm
from medley_engine.runtime.collective import Collective
from medley_engine.runtime.experts import ExpertLayers
from medley_engine.runtime.products import Products, segments_of
from medley_engine.runtime.rotary import frequencies
from medley_engine.runtime.weights import KvCache, Weights
from medley_engine.scheduler import Slice


class MoeModel:
    """One rank's part of the model."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        cache: KvCache,
        placement: Placement,
        collective: Collective,
        *,
        invariant: bool = True,
        device: torch.device | None = None,
    ) -> None:
        self._c, self._w, self._cache, self._comm = config, weights, cache, collective
        self._invariant, self._device = invariant, device or torch.device("cpu")
        shards = collective.tensor_parallel
        self._attention = (
            LatentAttention(config, config.latent, weights, cache, shards)
            if config.latent is not None
            else GroupedAttention(config, weights, cache, shards)
        )
        self.experts = ExpertLayers(config, weights, placement, collective, invariant=invariant, device=self._device)
        on_host, self._rotary_factor = frequencies(config)
        self._frequencies = on_host.to(self._device)

    @torch.inference_mode()
    def forward(self, batch: Sequence[Slice]) -> torch.Tensor:
        """Compute a step; every rank of the instance must call this at the same time, with an empty batch if need be.

        Returns:
            Logits (slices that sample, vocabulary), in the order of the batch.

        Raises:
            StepCalledOffError: a rank called the step off, on all ranks alike.
        """
        tokens = self._integers([t for piece in batch for t in piece.tokens])
        hidden = self._w.tensors[-1, "model.embed_tokens.weight"][tokens]
        step = self._step(batch, hidden.dtype)
        for layer in range(self._c.layers):
            hidden = self._layer(layer, hidden, step)
        return self._head(hidden, step)

    def _integers(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _step(self, batch: Sequence[Slice], dtype: torch.dtype) -> Step:
        size = self._cache.block_tokens
        positions = [p for s in batch for p in range(s.start, s.start + s.count)]
        blocks = [s.blocks[p // size] for s in batch for p in range(s.start, s.start + s.count)]
        at = self._integers(positions)
        angles = at[:, None, None].float() * self._frequencies
        factor = self._rotary_factor
        return Step(
            batch=batch,
            rows=len(positions),
            products=Products(segments_of(batch), invariant=self._invariant),
            rotary=((angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)),
            slots=(self._integers(blocks), at % size),
            tables=[self._integers(s.blocks[: -(-(s.start + s.count) // size)]) for s in batch],
            masks=[mask_of(self._c, s, self._device) for s in batch],
        )

    def _layer(self, layer: int, hidden: torch.Tensor, step: Step) -> torch.Tensor:
        c, comm = self._c, self._comm
        x = hidden
        if step.rows:
            x = rms_norm(hidden, self._w.tensors[layer, "input_layernorm.weight"], c.rms_eps)
            attended = comm.sum_shards(self._attention.forward(layer, x, step))
            bias = self._w.tensors.get((layer, "self_attn.o_proj.bias"))
            hidden = hidden + (attended if bias is None else attended + bias)
            x = rms_norm(hidden, self._w.tensors[layer, "post_attention_layernorm.weight"], c.rms_eps)
        if layer not in c.dense_layers:
            routed = self.experts.forward(layer, x, step.products)
            if not c.shared_width:
                return hidden + routed
            return hidden + (routed + self._mlp(layer, "mlp.shared_experts", x, step)) if step.rows else hidden
        return hidden + self._mlp(layer, "mlp", x, step) if step.rows else hidden

    def _mlp(self, layer: int, name: str, x: torch.Tensor, step: Step) -> torch.Tensor:
        gate, up, down = (self._w.tensors[layer, f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return self._comm.sum_shards(step.products.gated_mlp(x, gate, up, down))

    def _head(self, hidden: torch.Tensor, step: Step) -> torch.Tensor:
        c, last, at = self._c, [], 0
        for piece in step.batch:
            at += piece.count
            if piece.sample:
                last.append(at - 1)
        x = hidden[last]
        if not last:
            return x
        x = rms_norm(x, self._w.tensors[c.layers, "model.norm.weight"], c.rms_eps)
        head = self._w.tensors[(-1, "model.embed_tokens.weight") if c.tied_embeddings else (c.layers, "lm_head.weight")]
        return step.products.each(x, head)
