"""Facts of a model, read from a Hugging Face ``config.json``.

Four families are served; they share one skeleton (pre-norm attention with rotary positions, then a sparse MLP) and
differ in names and in points that :class:`ModelConfig` turns into plain fields, so that nothing after this module
asks for the family again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

DType = Literal["float32", "float64", "bfloat16"]
QueryKeyNorm = Literal["none", "head", "full"]

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


class UnsupportedModelError(ValueError):
    """The checkpoint asks for something this engine does not compute; the message names the field."""


@dataclass(frozen=True, slots=True)
class Latent:
    """DeepSeek-V2's attention: keys and values of all heads are made from one vector of ``kv_rank`` per token, and
    ``rope_dim`` elements that carry the position; that is all that the cache keeps. ``q_rank`` None: queries are made
    from the hidden state at once.
    """

    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int

    @property
    def query_dim(self) -> int:
        """Elements of a head's query."""
        return self.nope_dim + self.rope_dim


@dataclass(frozen=True, slots=True)
class Yarn:
    """Stretched rotary positions; see :func:`medley_engine.runtime.rotary.frequencies`."""

    factor: float
    original_context: int
    beta_fast: float
    beta_slow: float
    attention_factor: float | None
    magnitude: float | None
    magnitude_all: float | None
    truncate: bool


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder-only mixture-of-experts model.

    ``expert_names`` holds the (gate, up, down) projection names inside ``expert_prefix``; ``dense_layers`` are layers
    whose MLP is an ordinary one; ``qk_norm`` tells whether queries and keys are normalised per head (Qwen3) or over
    all heads (OLMoE). ``shared_width`` is the width of an MLP that every token passes beside its experts (0: none);
    ``route_groups`` is (groups, groups that a token may use); ``attention_scale`` multiplies query · key.
    """

    family: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    experts_per_token: int
    expert_width: int
    dense_width: int
    dense_layers: frozenset[int]
    rms_eps: float
    rope_theta: float
    qk_norm: QueryKeyNorm
    qkv_bias: bool
    qkv_clip: float | None
    normalise_top_k: bool
    router_dtype_is_float: bool
    tied_embeddings: bool
    sliding_window: int | None
    max_context_tokens: int
    eos_token_ids: tuple[int, ...]
    router_name: str
    expert_prefix: str
    expert_names: tuple[str, str, str]
    latent: Latent | None = None
    yarn: Yarn | None = None
    shared_width: int = 0
    route_groups: tuple[int, int] | None = None
    routed_scale: float = 1.0
    attention_scale: float = 1.0

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers that hold experts."""
        return tuple(i for i in range(self.layers) if i not in self.dense_layers)

    @property
    def rotary_dim(self) -> int:
        """Elements of a head that carry the position."""
        return self.latent.rope_dim if self.latent else self.head_dim

    def kv_shape(self, tensor_parallel: int) -> tuple[int, int, int]:
        """What one token adds to the KV cache of one tensor-parallel shard and layer: (sides, heads, size)."""
        if self.latent:
            return 1, 1, self.latent.kv_rank + self.latent.rope_dim
        return 2, self.kv_heads // tensor_parallel, self.head_dim

    def kv_token_elements(self, tensor_parallel: int) -> int:
        """Elements that one token adds to the KV cache of one tensor-parallel shard, over all layers."""
        sides, heads, size = self.kv_shape(tensor_parallel)
        return self.layers * sides * heads * size


def _required(raw: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if raw.get(name) is not None:
            return raw[name]
    raise UnsupportedModelError(f"config.json: {' or '.join(names)} is missing")


def _eos(raw: Mapping[str, Any]) -> tuple[int, ...]:
    value = raw.get("eos_token_id")
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)


def _rope(raw: Mapping[str, Any]) -> tuple[float, Yarn | None]:
    """The base of the rotary angles, and how they are stretched."""
    parameters = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    theta = float(parameters.get("rope_theta", raw.get("rope_theta", 10_000.0)))
    if kind in ("default", None):
        return theta, None
    if kind != "yarn":
        raise UnsupportedModelError(f"config.json: rope_type {kind!r} is not supported (only 'default' and 'yarn')")
    context = int(parameters.get("original_max_position_embeddings") or raw["max_position_embeddings"])
    factor = parameters.get("factor") or float(raw["max_position_embeddings"]) / context
    return theta, Yarn(
        factor=float(factor),
        original_context=context,
        beta_fast=float(parameters.get("beta_fast") or 32),
        beta_slow=float(parameters.get("beta_slow") or 1),
        attention_factor=parameters.get("attention_factor"),
        magnitude=parameters.get("mscale"),
        magnitude_all=parameters.get("mscale_all_dim"),
        truncate=bool(parameters.get("truncate", True)),
    )


def _check_activation(raw: Mapping[str, Any]) -> None:
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise UnsupportedModelError(f"config.json: hidden_act {raw['hidden_act']!r} is not supported (only 'silu')")


_FAMILIES = ("qwen3_moe", "mixtral", "olmoe", "deepseek_v2")


def parse_model_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Read ``config.json``.

    Raises:
        UnsupportedModelError: the family or one of its options is not served.
    """
    family = str(raw.get("model_type"))
    if family not in _FAMILIES:
        raise UnsupportedModelError(f"config.json: model_type {family!r} is not one of {', '.join(_FAMILIES)}")
    _check_activation(raw)
    layers, heads = int(_required(raw, "num_hidden_layers")), int(_required(raw, "num_attention_heads"))
    hidden = int(_required(raw, "hidden_size"))
    mixtral, qwen, deepseek = family == "mixtral", family == "qwen3_moe", family == "deepseek_v2"
    width = int(_required(raw, "moe_intermediate_size" if qwen or deepseek else "intermediate_size"))
    windowed = raw.get("sliding_window") if (mixtral or raw.get("use_sliding_window")) else None
    theta, yarn = _rope(raw)
    latent = _latent(raw) if deepseek else None
    head_dim = latent.query_dim if latent else int(raw.get("head_dim") or hidden // heads)
    return ModelConfig(
        family=family,
        vocab_size=int(_required(raw, "vocab_size")),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=int(raw.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        experts=int(_required(raw, "n_routed_experts" if deepseek else "num_local_experts", "num_experts")),
        experts_per_token=int(_required(raw, "num_experts_per_tok")),
        expert_width=width,
        dense_width=int(raw.get("intermediate_size") or width),
        dense_layers=_dense_layers(raw, layers, family),
        rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        qk_norm="head" if qwen else ("full" if family == "olmoe" else "none"),
        qkv_bias=bool(raw.get("attention_bias", False)),
        qkv_clip=raw.get("clip_qkv"),
        normalise_top_k=mixtral or (not deepseek and bool(raw.get("norm_topk_prob", False))),
        router_dtype_is_float=mixtral,
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        sliding_window=int(windowed) if windowed else None,
        max_context_tokens=int(raw.get("max_position_embeddings", 4096)),
        eos_token_ids=_eos(raw),
        router_name="block_sparse_moe.gate" if mixtral else "mlp.gate",
        expert_prefix="block_sparse_moe.experts" if mixtral else "mlp.experts",
        expert_names=("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj"),
        latent=latent,
        yarn=yarn,
        shared_width=width * int(raw.get("n_shared_experts") or 0) if deepseek else 0,
        route_groups=_route_groups(raw) if deepseek else None,
        routed_scale=float(raw.get("routed_scaling_factor", 1.0)) if deepseek else 1.0,
        attention_scale=_attention_scale(head_dim, yarn, latent),
    )


def _dense_layers(raw: Mapping[str, Any], layers: int, family: str) -> frozenset[int]:
    """Layers whose MLP is an ordinary one."""
    if family == "qwen3_moe":
        step = int(raw.get("decoder_sparse_step", 1))
        return frozenset(i for i in range(layers) if i in raw.get("mlp_only_layers", []) or (i + 1) % step != 0)
    return frozenset(range(int(raw.get("first_k_dense_replace", 0)))) if family == "deepseek_v2" else frozenset()


def _latent(raw: Mapping[str, Any]) -> Latent:
    if raw.get("attention_bias") or raw.get("mlp_bias"):
        raise UnsupportedModelError("config.json: attention_bias and mlp_bias are not supported for deepseek_v2")
    return Latent(
        q_rank=raw.get("q_lora_rank"),
        kv_rank=int(_required(raw, "kv_lora_rank")),
        nope_dim=int(_required(raw, "qk_nope_head_dim")),
        rope_dim=int(_required(raw, "qk_rope_head_dim")),
        value_dim=int(_required(raw, "v_head_dim")),
    )


def _route_groups(raw: Mapping[str, Any]) -> tuple[int, int] | None:
    method = raw.get("topk_method", "greedy")
    if method == "greedy":
        return None
    if method != "group_limited_greedy":
        raise UnsupportedModelError(f"config.json: topk_method {method!r} is not supported")
    return int(_required(raw, "n_group")), int(_required(raw, "topk_group"))


def _attention_scale(head_dim: int, yarn: Yarn | None, latent: Latent | None) -> float:
    """1 / √size; DeepSeek's models count YaRN's growth of attention here."""
    scale = float(head_dim**-0.5)
    if latent is not None and yarn is not None and yarn.magnitude_all and yarn.factor > 1:
        scale *= (0.1 * yarn.magnitude_all * math.log(yarn.factor) + 1.0) ** 2
    return scale


def check_tensor_parallel(config: ModelConfig, tensor_parallel: int) -> None:
    """Refuse a tensor-parallel size that does not divide the heads.

    Raises:
        UnsupportedModelError: with the numbers that do not fit.
    """
    split = [config.heads, config.dense_width, *([] if config.latent else [config.kv_heads])]
    if any(size % tensor_parallel for size in [*split, config.shared_width]):
        raise UnsupportedModelError(
            f"tensor parallel {tensor_parallel} does not divide {config.heads} heads, {config.kv_heads} KV heads, "
            f"a dense width of {config.dense_width} and a shared width of {config.shared_width}"
        )
    if tensor_parallel > 1 and config.qk_norm == "full":
        raise UnsupportedModelError("OLMoE normalises queries over all heads: tensor parallel must be 1")
