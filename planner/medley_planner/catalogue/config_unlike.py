"""Model families that are unlike the common layout, each with a function of its own; and what all families end with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from medley_planner.catalogue.config_attention import (
    grouped_attention,
    head_size,
    hidden_size,
    layer_count,
    state_space,
)
from medley_planner.catalogue.config_feed_forward import FeedForwards, dense, relu_experts
from medley_planner.catalogue.config_fields import MAX_VOCABULARY, Fields
from medley_planner.catalogue.shapes import Attention, FeedForward, Layers, Transformer, Weights


def transformer_of(
    fields: Fields, *, tied: bool, layers: Iterable[tuple[Attention, int]], rest: int, follow: FeedForwards
) -> Transformer:
    """The shapes of a config whose layers are given one by one: they are counted by kind.

    Args:
        fields: The config.
        tied: Whether the output's embedding is the input's where the config does not say.
        layers: How each layer looks back, and the parameters of its norms.
        rest: Parameters outside of layers and embeddings.
        follow: What follows attention in each layer.
    """
    kinds: Counter[tuple[Attention, FeedForward, int]] = Counter()
    for (attention, norms), feed_forward in zip(layers, follow, strict=True):
        kinds[attention, feed_forward, norms] += 1
    return Transformer(
        hidden_size=hidden_size(fields),
        vocabulary=vocabulary(fields),
        tied=fields.flag("tie_word_embeddings", default=tied),
        layers=tuple(Layers(count, *kind) for kind, count in kinds.items()),
        rest=rest,
    )


def vocabulary(fields: Fields) -> int:
    """Rows of the embedding."""
    return fields.integer("vocab_size", "padded_vocab_size", maximum=MAX_VOCABULARY)


def falcon(fields: Fields, max_context_tokens: int) -> Transformer:
    """Falcon: attention and a feed-forward of 4 × the width in parallel; LayerNorms with biases, no other biases."""
    del max_context_tokens
    for name in ("bias", "alibi"):
        if fields.flag(name, default=False):
            raise fields.error(name, "is not supported")
    hidden, layers = hidden_size(fields), layer_count(fields)
    heads = fields.integer("num_attention_heads", "n_head", maximum=10_000)
    new = fields.flag("new_decoder_architecture", default=False)
    shared = fields.flag("multi_query", default=True) and not new
    groups = 1 if shared else fields.integer("num_kv_heads", "n_head_kv", default=heads, maximum=10_000)
    size = head_size(fields, heads)
    two_norms = new and fields.integer("num_ln_in_parallel_attn", default=2) == 2
    attention = Attention(
        weights=Weights(2 * hidden * hidden + 2 * hidden * groups * size),
        heads=heads,
        key_value_heads=groups,
        head_size=size,
    )
    width = fields.integer("ffn_hidden_size", default=4 * hidden, maximum=8_000_000)
    return transformer_of(
        fields,
        tied=True,
        layers=[(attention, (4 if two_norms else 2) * hidden)] * layers,
        rest=2 * hidden,
        follow=[FeedForward(weights=Weights(2 * hidden * width))] * layers,
    )


def dbrx(fields: Fields, max_context_tokens: int) -> Transformer:
    """DBRX: experts in every layer, LayerNorms without biases; its facts lie in two sections."""
    del max_context_tokens
    heads = fields.integer("n_heads", maximum=10_000)
    hidden, layers = hidden_size(fields), layer_count(fields)
    attending, feeding = fields.section("attn_config"), fields.section("ffn_config")
    if attending is None or feeding is None:
        raise fields.error("attn_config" if attending is None else "ffn_config", "is missing")
    groups = attending.integer("kv_n_heads", maximum=10_000)
    size = head_size(fields, heads)
    attention = Attention(
        weights=Weights(2 * hidden * heads * size + 2 * hidden * groups * size),
        heads=heads,
        key_value_heads=groups,
        head_size=size,
    )
    experts = feeding.integer("moe_num_experts", maximum=100_000)
    follow = FeedForward(
        weights=Weights(0, hidden * experts),
        experts=experts,
        active_experts=feeding.integer("moe_top_k", maximum=experts),
        expert=Weights(3 * hidden * feeding.integer("ffn_hidden_size")),
    )
    return transformer_of(
        fields,
        tied=False,
        layers=[(attention, 2 * hidden)] * layers,
        rest=hidden,
        follow=[follow] * layers,
    )


def chatglm(fields: Fields, max_context_tokens: int) -> Transformer:
    """ChatGLM and GLM-4 under their first names of fields."""
    del max_context_tokens
    for name, wanted in (("rmsnorm", True), ("add_bias_linear", False), ("multi_query_attention", True)):
        if fields.flag(name, default=wanted) is not wanted:
            raise fields.error(name, f"must be {str(wanted).lower()}: the other is not supported")
    hidden, layers = hidden_size(fields), layer_count(fields)
    heads = fields.integer("num_attention_heads", maximum=10_000)
    groups, size = fields.integer("multi_query_group_num", maximum=10_000), head_size(fields, heads)
    inputs = size * (heads + 2 * groups)
    attention = Attention(
        weights=Weights(
            hidden * inputs + heads * size * hidden, inputs if fields.flag("add_qkv_bias", default=False) else 0
        ),
        heads=heads,
        key_value_heads=groups,
        head_size=size,
    )
    width = fields.integer("ffn_hidden_size")
    return transformer_of(
        fields,
        tied=False,
        layers=[(attention, 2 * hidden)] * layers,
        rest=hidden,
        follow=[FeedForward(weights=Weights(3 * hidden * width))] * layers,
    )


def nemotron_h(fields: Fields, max_context_tokens: int) -> Transformer:
    """Nemotron-H: every layer is one thing only: state space, attention, feed-forward or experts."""
    del max_context_tokens
    name = "layers_block_type" if "layers_block_type" in fields else "hybrid_override_pattern"
    kinds = fields.texts(name) if name == "layers_block_type" else tuple(fields.text(name))
    if not kinds:
        raise fields.error(name, "is missing")
    if len(kinds) != layer_count(fields):
        raise fields.error(name, f"tells of {len(kinds)} layers of {layer_count(fields)}")
    if "moe_latent_size" in fields:
        raise fields.error("moe_latent_size", "experts in a latent space are not supported")
    hidden = hidden_size(fields)
    makers: Mapping[str, Callable[[], tuple[Attention, FeedForward]]] = {
        "mamba": lambda: (state_space(fields), FeedForward()),
        "attention": lambda: (grouped_attention(fields), FeedForward()),
        "mlp": lambda: (Attention(), dense(fields, gated=False)),
        "moe": lambda: (Attention(), relu_experts(fields)),
    }
    names = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
    made: dict[str, tuple[Attention, FeedForward]] = {}
    for kind in sorted(set(kinds)):
        maker = makers.get(names.get(kind, kind))
        if maker is None:
            raise fields.error(name, f"{kind[:60]!r} is no known kind of layer")
        made[kind] = maker()
    return transformer_of(
        fields,
        tied=False,
        layers=[(made[kind][0], hidden) for kind in kinds],
        rest=hidden,
        follow=[made[kind][1] for kind in kinds],
    )
