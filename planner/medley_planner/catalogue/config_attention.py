"""How a layer looks back, read from a `config.json`: grouped queries, latent attention, or a state that it keeps."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from medley_planner.catalogue.config_fields import MAX_HEAD_SIZE, MAX_HEADS, MAX_LAYERS, Fields
from medley_planner.catalogue.shapes import PLAIN_BYTES, Attention, Weights

FULL, WINDOWED, CHUNKED, LINEAR = "full_attention", "sliding_attention", "chunked_attention", "linear_attention"
"""Kinds of layers, as `layer_types` names them."""


class Bias(enum.Enum):
    """Which of a layer's attention matrices have biases."""

    NEVER = "never"
    ALWAYS_INPUTS = "always inputs"
    """Query, key and value, whatever the config says."""
    FLAG_INPUTS = "flag inputs"
    """Query, key and value, where `attention_bias` is set."""
    FLAG_ALL = "flag all"
    """All four, where `attention_bias` is set."""


class QueryKeyNorm(enum.Enum):
    """Norms of queries and keys that have parameters."""

    NONE = "none"
    HEAD = "head"
    """One for all heads of queries, one for all heads of keys."""
    WIDTH = "width"
    """As wide as all heads together."""


def hidden_size(fields: Fields) -> int:
    """Width of the residual stream."""
    return fields.integer("hidden_size", "d_model", "n_embd")


def layer_count(fields: Fields) -> int:
    """Number of layers."""
    return fields.integer("num_hidden_layers", "num_layers", "n_layers", "n_layer", maximum=MAX_LAYERS)


def head_size(fields: Fields, heads: int, *, default: int | None = None) -> int:
    """Width of a head; by default the hidden size over the heads."""
    if default is None:
        hidden = hidden_size(fields)
        if "head_dim" not in fields and "attention_head_dim" not in fields and hidden % heads:
            raise fields.error("head_dim", f"is missing, and {heads} heads do not divide the hidden size {hidden}")
        default = max(1, hidden // heads)
    size = fields.integer("head_dim", "attention_head_dim", "kv_channels", default=default, maximum=MAX_HEAD_SIZE)
    if size > MAX_HEAD_SIZE:
        raise fields.error("head_dim", f"is {size} by the hidden size, must be at most {MAX_HEAD_SIZE}")
    return size


def grouped_attention(
    fields: Fields,
    *,
    bias: Bias = Bias.FLAG_ALL,
    query_key_norm: QueryKeyNorm = QueryKeyNorm.NONE,
    default_head_size: int | None = None,
    gated: bool = False,
    sinks: bool = False,
    window_tokens: int = 0,
) -> Attention:
    """Attention whose query heads share key and value heads in groups.

    Args:
        fields: The config.
        bias: Which matrices have biases.
        query_key_norm: Norms of queries and keys.
        default_head_size: Width of a head where the config does not say; None is the hidden size over the heads.
        gated: The query's matrix also makes a gate for the output.
        sinks: Every head has a learnt sink.
        window_tokens: Tokens that the layer looks back at most; 0 is no bound.
    """
    hidden = hidden_size(fields)
    heads = fields.integer("num_attention_heads", "n_heads", "n_head", maximum=MAX_HEADS)
    key_value_heads = fields.integer("num_key_value_heads", "num_kv_heads", default=heads, maximum=MAX_HEADS)
    if heads % key_value_heads:
        raise fields.error("num_key_value_heads", f"{key_value_heads} does not divide the {heads} attention heads")
    size = head_size(fields, heads, default=default_head_size)
    inputs = size * (heads * (2 if gated else 1) + 2 * key_value_heads)
    norms = {
        QueryKeyNorm.NONE: 0,
        QueryKeyNorm.HEAD: 2 * size,
        QueryKeyNorm.WIDTH: (heads + key_value_heads) * size,
    }[query_key_norm]
    flagged = fields.flag("attention_bias", "use_bias", "bias", default=False)
    rest = norms + (heads if sinks else 0)
    if bias is Bias.ALWAYS_INPUTS or (bias in (Bias.FLAG_INPUTS, Bias.FLAG_ALL) and flagged):
        rest += inputs
    if bias is Bias.FLAG_ALL and flagged:
        rest += hidden
    return Attention(
        weights=Weights(hidden * inputs + heads * size * hidden, rest),
        heads=heads,
        key_value_heads=key_value_heads,
        head_size=size,
        window_tokens=window_tokens,
    )


def latent_attention(fields: Fields) -> Attention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): all heads share one compressed key and value.

    A token's cache is that and the rotary part of its key. Without `q_lora_rank` queries are not compressed.
    """
    hidden = hidden_size(fields)
    heads = fields.integer("num_attention_heads", maximum=MAX_HEADS)
    plain = fields.integer("qk_nope_head_dim", maximum=MAX_HEAD_SIZE // 2)
    rotary = fields.integer("qk_rope_head_dim", maximum=MAX_HEAD_SIZE // 2)
    value = fields.integer("v_head_dim", maximum=MAX_HEAD_SIZE)
    latent = fields.integer("kv_lora_rank", maximum=100_000)
    query = heads * (plain + rotary)
    matrices = hidden * (latent + rotary) + latent * heads * (plain + value) + heads * value * hidden
    rest = latent
    if "q_lora_rank" in fields:
        rank = fields.integer("q_lora_rank")
        matrices += hidden * rank + rank * query
        rest += rank
    else:
        matrices += hidden * query
    index, indexed = _index(fields) if "index_topk" in fields else (Weights(), 0)
    return Attention(
        weights=Weights(matrices + index.matrices, rest + index.rest),
        heads=heads,
        key_value_heads=1,
        head_size=(plain + rotary + value) // 2,
        latent_size=latent + rotary + indexed,
    )


def _index(fields: Fields) -> tuple[Weights, int]:
    """The index of sparse attention (DeepSeek-V3.2): its weights, and its cached key in elements of 16 bits.

    The key is cached in 8 bits with one 32-bit scale.
    """
    hidden, rank = hidden_size(fields), fields.integer("q_lora_rank")
    heads, size = (
        fields.integer("index_n_heads", maximum=MAX_HEADS),
        fields.integer("index_head_dim", maximum=MAX_HEAD_SIZE),
    )
    return Weights(rank * heads * size + hidden * size + hidden * heads, 2 * size), (size + 4) // 2


def delta_net(fields: Fields) -> Attention:
    """A gated delta net (Qwen3-Next): a request keeps a short convolution and one matrix for each value head."""
    hidden = hidden_size(fields)
    key_size, value_size = fields.integer("linear_key_head_dim"), fields.integer("linear_value_head_dim")
    key_heads = fields.integer("linear_num_key_heads", maximum=MAX_HEADS)
    value_heads = fields.integer("linear_num_value_heads", maximum=MAX_HEADS)
    kernel = fields.integer("linear_conv_kernel_dim", maximum=1024)
    keys, values = key_heads * key_size, value_heads * value_size
    convolved = 2 * keys + values
    return Attention(
        weights=Weights(
            hidden * (convolved + values + 2 * value_heads) + values * hidden,
            convolved * kernel + 2 * value_heads + value_size,
        ),
        state_bytes=PLAIN_BYTES * convolved * (kernel - 1)
        + _state_element_bytes(fields) * value_heads * key_size * value_size,
    )


def state_space(fields: Fields) -> Attention:
    """A Mamba-2 layer (Nemotron-H): a short convolution, and a state of `ssm_state_size` for every channel."""
    hidden = hidden_size(fields)
    heads = fields.integer("mamba_num_heads", maximum=MAX_HEADS)
    inner = heads * fields.integer("mamba_head_dim")
    state, groups = fields.integer("ssm_state_size"), fields.integer("n_groups", maximum=MAX_HEADS)
    kernel = fields.integer("conv_kernel", maximum=1024)
    convolved = inner + 2 * groups * state
    projected = inner + convolved + heads
    rest = convolved * (kernel + (1 if fields.flag("use_conv_bias", default=True) else 0)) + 3 * heads + inner
    if fields.flag("use_bias", "mamba_proj_bias", default=False):
        rest += projected + hidden
    return Attention(
        weights=Weights(hidden * projected + inner * hidden, rest),
        state_bytes=PLAIN_BYTES * convolved * (kernel - 1) + _state_element_bytes(fields) * inner * state,
    )


def layer_kinds(fields: Fields, *, full_every: int = 1, otherwise: str = WINDOWED) -> Sequence[str]:
    """The kind of every layer: as `layer_types` lists them, else every `full_every`-th is full.

    Raises:
        ConfigError: There are more or fewer kinds than layers, or one that is not known.
    """
    layers = layer_count(fields)
    listed = fields.texts("layer_types")
    if not listed:
        return [FULL if (place + 1) % full_every == 0 else otherwise for place in range(layers)]
    if len(listed) != layers:
        raise fields.error("layer_types", f"lists {len(listed)} layers of {layers}")
    unknown = sorted(set(listed) - {FULL, WINDOWED, CHUNKED, LINEAR})
    if unknown:
        raise fields.error("layer_types", f"{unknown[0][:60]!r} is no known kind of layer")
    return listed


def window(fields: Fields, max_context_tokens: int, *, default: int = 0) -> int:
    """Tokens that a windowed layer looks back; 0 where the window holds every request."""
    tokens = fields.integer("sliding_window", "sliding_window_size", default=default, minimum=0, maximum=2**31)
    return 0 if tokens >= max_context_tokens else tokens


def _state_element_bytes(fields: Fields) -> float:
    kept = fields.text("mamba_ssm_cache_dtype", "mamba_ssm_dtype", default="")
    return 4.0 if kept == "float32" else PLAIN_BYTES
