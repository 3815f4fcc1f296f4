"""Model families: from the fields of a `config.json` to the shapes of all weights.

Most decoders are one layout with a few switches (`Decoder`); the others have a function of their own
(`medley_planner.catalogue.config_unlike`).
What a switch means in a family was read off its published modelling code; where a config leaves a field out, the
family's own default counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from medley_planner.catalogue.config_attention import (
    FULL,
    LINEAR,
    WINDOWED,
    Bias,
    QueryKeyNorm,
    delta_net,
    grouped_attention,
    hidden_size,
    latent_attention,
    layer_count,
    layer_kinds,
    window,
)
from medley_planner.catalogue.config_feed_forward import FeedForwards, dense, feed_forwards
from medley_planner.catalogue.config_fields import ConfigError, Fields
from medley_planner.catalogue.config_unlike import chatglm, dbrx, falcon, nemotron_h, transformer_of, vocabulary
from medley_planner.catalogue.shapes import Attention, Transformer

Reader = Callable[[Fields, int], Transformer]
"""From the fields and the context in tokens to the shapes."""

_NEVER = 1_000_000
"""`full_every` of a family whose layers all have the window, if there is one."""


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The common layout: attention and feed-forward in turn, each behind a norm.

    Args:
        tied: Whether the output's embedding is the input's where the config does not say.
        bias: Which attention matrices have biases.
        query_key_norm: Norms of queries and keys that have parameters.
        norms: Norm vectors of a layer, as wide as the residual stream; a norm with a bias counts twice.
        last_norms: The same for the norm after the last layer.
        full_every: Every so many layers one has no window, where the config does not list them; 0 in families without
            windows.
        default_window: The family's window where the config does not say.
        default_head_size: Width of a head where the config does not say.
        gated_attention: The attention's output is gated.
        linear_otherwise: Layers that are not full keep a state; every `full_attention_interval`-th is full.
        sinks: Heads have sinks.
        feed_forwards: What follows attention, layer by layer.
    """

    tied: bool = False
    bias: Bias = Bias.FLAG_ALL
    query_key_norm: QueryKeyNorm | Callable[[Fields], QueryKeyNorm] = QueryKeyNorm.NONE
    norms: int = 2
    last_norms: int = 1
    full_every: int = 0
    default_window: int = 0
    default_head_size: int | None = None
    gated_attention: bool = False
    linear_otherwise: bool = False
    sinks: bool = False
    feed_forwards: Callable[[Fields, int], FeedForwards] = feed_forwards

    def __call__(self, fields: Fields, max_context_tokens: int) -> Transformer:
        """The shapes of a config."""
        norm = self.query_key_norm if isinstance(self.query_key_norm, QueryKeyNorm) else self.query_key_norm(fields)
        span = window(fields, max_context_tokens, default=self.default_window) if self.full_every else 0

        def attention(window_tokens: int) -> Attention:
            return grouped_attention(
                fields,
                bias=self.bias,
                query_key_norm=norm,
                default_head_size=self.default_head_size,
                gated=self.gated_attention,
                sinks=self.sinks,
                window_tokens=window_tokens,
            )

        if self.linear_otherwise:
            full_every = fields.integer("full_attention_interval", default=4)
            kinds = layer_kinds(fields, full_every=full_every, otherwise=LINEAR)
        else:
            full_every = fields.integer("sliding_window_pattern", default=self.full_every or 1)
            kinds = layer_kinds(fields, full_every=full_every)
        made = {FULL: attention(0), WINDOWED: attention(span)}
        if LINEAR in kinds:
            made[LINEAR] = delta_net(fields)
        hidden = hidden_size(fields)
        return transformer_of(
            fields,
            tied=self.tied,
            layers=[(made.get(kind, made[FULL]), self.norms * hidden) for kind in kinds],
            rest=self.last_norms * hidden + (vocabulary(fields) if fields.flag("lm_head_bias", default=False) else 0),
            follow=self.feed_forwards(fields, len(kinds)),
        )


def _latent(fields: Fields, max_context_tokens: int) -> Transformer:
    """DeepSeek-V2, -V3 and those built like them: latent attention, the first layers dense."""
    del max_context_tokens
    if "indexer_types" in fields:
        raise fields.error("indexer_types", "indices that several layers share are not supported")
    hidden, layers = hidden_size(fields), layer_count(fields)
    attention = latent_attention(fields)
    return transformer_of(
        fields,
        tied=False,
        layers=[(attention, 2 * hidden)] * layers,
        rest=hidden,
        follow=feed_forwards(fields, layers),
    )


def _norm_where_asked(kind: QueryKeyNorm) -> Callable[[Fields], QueryKeyNorm]:
    return lambda fields: kind if fields.flag("use_qk_norm", default=False) else QueryKeyNorm.NONE


def _ungated(fields: Fields, layers: int) -> FeedForwards:
    return [dense(fields, gated=False)] * layers


_LLAMA = Decoder()
_QWEN3 = Decoder(query_key_norm=QueryKeyNorm.HEAD, default_head_size=128)
_QWEN3_NEXT = Decoder(query_key_norm=QueryKeyNorm.HEAD, gated_attention=True, linear_otherwise=True)
_GEMMA3 = Decoder(
    tied=True, query_key_norm=QueryKeyNorm.HEAD, norms=4, full_every=6, default_window=4096, default_head_size=256
)

FAMILIES: Mapping[str, Reader] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": Decoder(full_every=_NEVER),
        "ministral3": Decoder(full_every=_NEVER),
        "mixtral": Decoder(full_every=_NEVER),
        "qwen2": Decoder(bias=Bias.ALWAYS_INPUTS),
        "qwen2_moe": Decoder(bias=Bias.ALWAYS_INPUTS),
        "qwen3": _QWEN3,
        "qwen3_moe": _QWEN3,
        "gemma": Decoder(tied=True, default_head_size=256),
        "gemma2": Decoder(tied=True, norms=4, full_every=2, default_window=4096, default_head_size=256),
        "gemma3_text": _GEMMA3,
        "phi3": Decoder(full_every=_NEVER),
        "phimoe": Decoder(norms=4, last_norms=2, full_every=_NEVER),
        "deepseek_v2": _latent,
        "deepseek_v3": _latent,
        "gpt_oss": Decoder(
            sinks=True,
            full_every=2,
            default_window=128,
            default_head_size=64,
            feed_forwards=partial(feed_forwards, biased_experts=True, biased_router=True),
        ),
        "llama4_text": Decoder(default_head_size=128, feed_forwards=partial(feed_forwards, shared_experts=1)),
        "glm": Decoder(bias=Bias.FLAG_INPUTS),
        "glm4": Decoder(bias=Bias.FLAG_INPUTS, norms=4),
        "glm4_moe": Decoder(
            bias=Bias.FLAG_INPUTS,
            query_key_norm=_norm_where_asked(QueryKeyNorm.HEAD),
            feed_forwards=partial(feed_forwards, biased_router=True),
        ),
        "chatglm": chatglm,
        "granite": _LLAMA,
        "granitemoe": _LLAMA,
        "cohere": Decoder(tied=True, norms=1, query_key_norm=_norm_where_asked(QueryKeyNorm.WIDTH)),
        "cohere2": Decoder(tied=True, norms=1, full_every=4, default_window=4096),
        "olmo": Decoder(norms=0, last_norms=0),
        "olmo2": Decoder(query_key_norm=QueryKeyNorm.WIDTH),
        "olmo3": Decoder(query_key_norm=QueryKeyNorm.WIDTH, full_every=4, default_window=4096),
        "olmoe": Decoder(query_key_norm=QueryKeyNorm.WIDTH),
        "falcon": falcon,
        "dbrx": dbrx,
        "starcoder2": Decoder(tied=True, norms=4, last_norms=2, full_every=_NEVER, feed_forwards=_ungated),
        "internlm2": _LLAMA,
        "smollm3": Decoder(tied=True),
        "seed_oss": Decoder(bias=Bias.FLAG_INPUTS),
        "minimax_m2": Decoder(query_key_norm=_norm_where_asked(QueryKeyNorm.WIDTH)),
        "nemotron": Decoder(norms=4, last_norms=2, feed_forwards=_ungated),
        "nemotron_h": nemotron_h,
        "qwen3_next": _QWEN3_NEXT,
        "qwen3_5_text": _QWEN3_NEXT,
        "qwen3_5_moe_text": _QWEN3_NEXT,
    }
)
"""Readers by `model_type`."""


def reader(model_type: str, fields: Fields) -> Reader:
    """The reader of a family.

    Raises:
        ConfigError: The family is not known.
    """
    found = FAMILIES.get(model_type)
    if found is None:
        known = ", ".join(sorted(FAMILIES))
        raise ConfigError(fields.path("model_type"), f"{model_type[:60]!r} is no known family; known are {known}")
    return found
