"""The mixture-of-experts layer: route tokens, send them to their experts' ranks, compute there, bring results back.

Expert outputs are added in the order of the router's choice, on the rank that owns the token, so that the sum's bits
depend neither on the number of ranks nor on the placement of experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from medley_engine.config import ModelConfig
from medley_engine.placement import Placement
from medley_engine.runtime.collective import Collective
from medley_engine.runtime.products import PROMPT_ROWS, Products, gated
from medley_engine.runtime.weights import Experts, Weights
from medley_engine.scheduler import DECODE_ROWS

_FEW_ROWS_SHARE = 16
"""Experts per chosen expert from which on an expert sees a few tokens at most, of a prompt's chunk too."""


def targets(placement: Placement, config: ModelConfig, rank: int) -> dict[int, torch.Tensor]:
    """Where this rank sends each expert's tokens: by layer, (experts, 2) of rank and slot. Its own copy where it has
    one, else one of the copies by turns, so that all copies share the work.
    """
    found: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(config.moe_layers):
        chosen = []
        for copies in placement.copies(index, config.experts):
            own = [copy for copy in copies if copy[0] == rank]
            chosen.append(own[0] if own else copies[rank % len(copies)])
        found[layer] = torch.tensor(chosen, dtype=torch.int64)
    return found


class StepCalledOffError(Exception):
    """A rank wants to stop at once; all ranks of the instance get this in the same layer, and nobody keeps the step."""


class ExpertLayers:
    """One rank's part of all MoE layers. ``tokens[layer index]`` counts tokens by expert since it was last cleared;
    ``call_off`` is asked in each layer whether this rank wants the step to end.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        placement: Placement,
        collective: Collective,
        *,
        invariant: bool,
        device: torch.device,
    ) -> None:
        self._c, self._w, self._comm, self._invariant = config, weights, collective, invariant
        self._targets = {at: to.to(device) for at, to in targets(placement, config, collective.rank).items()}
        few = config.experts >= _FEW_ROWS_SHARE * config.experts_per_token
        self._tile = DECODE_ROWS if few else PROMPT_ROWS
        self.call_off: Callable[[], bool] = lambda: False
        self.tokens = torch.zeros(len(config.moe_layers), config.experts, dtype=torch.int64, device=device)

    def forward(self, layer: int, x: torch.Tensor, products: Products) -> torch.Tensor:
        """Output (rows, hidden) of the routed experts for x (rows, hidden); every rank must call it.

        Ranks of one tensor-parallel group hold the same tokens; each sends its part of them, and the parts are
        gathered after.
        """
        c, comm, rows = self._c, self._comm, x.shape[0]
        share = -(-rows // comm.tensor_parallel)
        low = min(comm.tp_rank * share, rows)
        mine = max(0, min(rows - low, share))
        if not rows:
            # Nothing to route, but the others' tokens may go to experts that live here.
            self._serve(layer, x.new_empty((0, c.hidden_size + 2)), [0] * comm.size)
            return x.new_zeros((0, c.hidden_size))
        scores, chosen = self.route(layer, x, products)
        scores, chosen = scores[low : low + mine], chosen[low : low + mine]
        self.tokens[c.moe_layers.index(layer)] += torch.bincount(chosen.reshape(-1), minlength=c.experts)
        results = self._dispatch(layer, x[low : low + mine], chosen)
        total = x.new_zeros((share, c.hidden_size))
        for choice in range(c.experts_per_token):
            total[:mine] += results[:, choice] * scores[:, choice, None]
        if comm.tensor_parallel == 1:
            return total
        return torch.cat(comm.gather_shards(total))[:rows]

    def route(self, layer: int, x: torch.Tensor, products: Products) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and numbers (rows, choices) of the experts that each token goes to."""
        c = self._c
        logits = products.linear(x, self._w.tensors[layer, f"{c.router_name}.weight"])
        if c.router_dtype_is_float:
            logits = logits.float()
        shares = torch.softmax(logits, dim=-1, dtype=torch.float32)
        if c.route_groups is not None:
            groups, allowed = c.route_groups
            best = shares.view(-1, groups, c.experts // groups).max(dim=-1).values
            usable = torch.zeros_like(best).scatter_(1, torch.topk(best, allowed, dim=-1).indices, 1)
            shares = shares.masked_fill(~usable.bool().repeat_interleave(c.experts // groups, dim=-1), 0.0)
        scores, chosen = torch.topk(shares, c.experts_per_token, dim=-1)
        if c.normalise_top_k:
            scores = scores / scores.sum(dim=-1, keepdim=True)
        return (scores * c.routed_scale).to(x.dtype), chosen

    def _dispatch(self, layer: int, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Outputs (tokens, choices, hidden) of the chosen experts, computed where these live."""
        comm, choices = self._comm, chosen.shape[1]
        target = self._targets[layer][chosen.reshape(-1)]
        order = torch.argsort(target[:, 0], stable=True)
        sources = torch.arange(x.shape[0], device=x.device).repeat_interleave(choices)[order]
        slots = target[order, 1]
        sent = torch.bincount(target[:, 0], minlength=comm.size).tolist()
        # The slot travels with its row as two small numbers, exact in every float type.
        tags = torch.stack((slots // 256, slots % 256), dim=1).to(x.dtype)
        outputs = self._serve(layer, torch.cat((x[sources], tags), dim=1), sent)
        back = torch.empty_like(outputs)
        back[order] = outputs
        return back.view(x.shape[0], choices, self._c.hidden_size)

    def _serve(self, layer: int, tagged: torch.Tensor, sent: list[int]) -> torch.Tensor:
        """Send rows with their slots to the ranks where these are, compute what comes, and get back what was sent."""
        rows, received, off = self._comm.exchange(tagged, sent, flag=self.call_off())
        if off:
            raise StepCalledOffError
        local = rows[:, -2].long() * 256 + rows[:, -1].long()
        outputs, _, _ = self._comm.exchange(self._run(self._w.experts[layer], rows[:, :-2], local), received)
        return outputs

    def _run(self, experts: Experts, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Each row through the expert in its slot."""
        if not rows.shape[0]:
            return rows
        out = rows.new_empty((rows.shape[0], experts.down.shape[1]))
        order = torch.argsort(slots, stable=True)
        rows = rows[order]
        done = torch.empty_like(out)
        at = 0
        for slot, count in enumerate(torch.bincount(slots, minlength=0).tolist()):
            tile = self._tile if self._invariant else max(count, 1)
            for start in range(at, at + count, tile):
                size = min(tile, at + count - start)
                x = functional.pad(rows[start : start + size], (0, 0, 0, tile - size))
                hidden = gated(functional.linear(x, experts.gate_up[slot]))
                done[start : start + size] = functional.linear(hidden, experts.down[slot])[:size]
            at += count
        out[order] = done
        return out
