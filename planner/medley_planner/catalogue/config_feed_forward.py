"""What follows attention in a layer, read from a `config.json`: dense matrices or experts, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from medley_planner.catalogue.config_attention import hidden_size
from medley_planner.catalogue.config_fields import MAX_EXPERTS, MAX_LAYERS, Fields
from medley_planner.catalogue.shapes import FeedForward, Weights

FeedForwards = Sequence[FeedForward]
"""One for each layer."""

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_top_k", "top_k_experts", "moe_k")
_EXPERT_WIDTH = ("moe_intermediate_size", "intermediate_size")
_DENSE_WIDTH = ("intermediate_size_mlp", "dense_intermediate_size", "intermediate_size", "ffn_hidden_size")


def dense(fields: Fields, *, gated: bool = True) -> FeedForward:
    """A dense feed-forward: two matrices, and a third where it is gated."""
    hidden, width = hidden_size(fields), fields.integer(*_DENSE_WIDTH)
    inner = 2 * width if gated else width
    biased = fields.flag("mlp_bias", "use_bias", default=False)
    return FeedForward(weights=Weights(hidden * inner + width * hidden, inner + hidden if biased else 0))


def feed_forwards(
    fields: Fields,
    layers: int,
    *,
    shared_experts: int = 0,
    biased_experts: bool = False,
    biased_router: bool = False,
) -> FeedForwards:
    """What follows attention in each layer: dense where there are no experts, or in the layers that have none.

    Args:
        fields: The config.
        layers: Number of layers.
        shared_experts: Experts that every token passes through, where the config does not say.
        biased_experts: Experts have biases.
        biased_router: The router has a bias, whether in its product or only in its choice.
    """
    if not fields.integer(*_EXPERTS, default=0, minimum=0, maximum=MAX_EXPERTS):
        return [dense(fields)] * layers
    routed = _experts(fields, shared_experts, biased_experts, biased_router)
    sparse = _sparse_layers(fields, layers)
    if all(sparse):
        return [routed] * layers
    plain = dense(fields)
    return [routed if has_experts else plain for has_experts in sparse]


def relu_experts(fields: Fields) -> FeedForward:
    """Experts of two matrices each, as in Nemotron-H, with a shared one of its own width."""
    hidden = hidden_size(fields)
    experts = fields.integer("n_routed_experts", minimum=2, maximum=MAX_EXPERTS)
    shared = fields.integer("n_shared_experts", default=0, minimum=0, maximum=1024)
    width = fields.integer("moe_shared_expert_intermediate_size") if shared else 0
    return FeedForward(
        weights=Weights(2 * hidden * width * shared, hidden * experts + experts),
        experts=experts,
        active_experts=fields.integer(*_ACTIVE, maximum=experts),
        expert=Weights(2 * hidden * fields.integer("moe_intermediate_size")),
    )


def _experts(fields: Fields, shared_experts: int, biased_experts: bool, biased_router: bool) -> FeedForward:
    hidden, width = hidden_size(fields), fields.integer(*_EXPERT_WIDTH)
    experts = fields.integer(*_EXPERTS, minimum=2, maximum=MAX_EXPERTS)
    shared = width * fields.integer(
        "n_shared_experts", "num_shared_experts", default=shared_experts, minimum=0, maximum=1024
    )
    rest = hidden * experts
    if biased_router or fields.text("topk_method") == "noaux_tc" or fields.flag("use_routing_bias", default=False):
        rest += experts
    if "shared_expert_intermediate_size" in fields:
        own = fields.integer("shared_expert_intermediate_size", minimum=0)
        shared += own
        rest += hidden if own else 0
    return FeedForward(
        weights=Weights(3 * hidden * shared, rest),
        experts=experts,
        active_experts=fields.integer(*_ACTIVE, maximum=experts),
        expert=Weights(3 * hidden * width, 2 * width + hidden if biased_experts else 0),
    )


def _sparse_layers(fields: Fields, layers: int) -> Sequence[bool]:
    """Which layers have experts, by the fields of all families that mix both kinds."""
    first_dense = fields.integer("first_k_dense_replace", default=0, minimum=0, maximum=MAX_LAYERS)
    step = fields.integer(
        "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq", default=1, maximum=MAX_LAYERS
    )
    only_dense = frozenset(fields.integers("mlp_only_layers"))
    if "moe_layers" in fields:
        chosen = frozenset(fields.integers("moe_layers"))
        return [place in chosen for place in range(layers)]
    offset = 0 if "moe_layer_freq" in fields else 1
    return [
        place >= first_dense and (place + offset) % step == 0 and place not in only_dense for place in range(layers)
    ]
