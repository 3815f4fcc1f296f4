"""Facts of a model, read from a Hugging Face ``config.json``, and how an engine is laid out over ranks.

Three families are served; they share one skeleton (pre-norm attention with rotary positions, then a sparse MLP) and
differ in names and in small points that :class:`ModelConfig` turns into plain fields, so that nothing after this
module asks for the family again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

DType = Literal["float32", "float64", "bfloat16"]
QueryKeyNorm = Literal["none", "head", "full"]

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


class UnsupportedModelError(ValueError):
    """The checkpoint asks for something this engine does not compute; the message names the field."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder-only mixture-of-experts model.

    ``expert_names`` holds the (gate, up, down) projection names inside ``expert_prefix``; ``dense_layers`` are layers
    whose MLP is an ordinary one; ``qk_norm`` tells whether queries and keys are normalised per head (Qwen3) or over
    all heads (OLMoE).
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

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers that hold experts."""
        return tuple(i for i in range(self.layers) if i not in self.dense_layers)

    def kv_token_elements(self, tensor_parallel: int) -> int:
        """Elements that one token adds to the KV cache of one tensor-parallel shard, over all layers."""
        return self.layers * 2 * (self.kv_heads // tensor_parallel) * self.head_dim


@dataclass(frozen=True, slots=True)
class Topology:
    """How an instance is spread: ``data_parallel`` groups of ``tensor_parallel`` ranks; experts are spread over all
    ranks.

    ``shared_domain`` says that all ranks can map the same memory (the CPUs of one node); otherwise each rank has a
    memory of its own (a GPU, or a CPU that stands in for one).
    """

    data_parallel: int
    tensor_parallel: int = 1
    shared_domain: bool = True

    def __post_init__(self) -> None:
        if self.data_parallel < 1 or self.tensor_parallel < 1:
            raise ValueError("a topology needs at least one data-parallel group of at least one rank")

    @property
    def ranks(self) -> int:
        """Number of ranks, which is also the expert-parallel size."""
        return self.data_parallel * self.tensor_parallel

    def tp_index(self, rank: int) -> int:
        """Position of a rank inside its tensor-parallel group."""
        return rank % self.tensor_parallel

    def leader(self, data_index: int) -> int:
        """First rank of a data-parallel group; it owns the group's scheduler."""
        return data_index * self.tensor_parallel

    def domain(self, rank: int) -> str:
        """Name of the memory that a rank computes from."""
        return "node" if self.shared_domain else f"device{rank}"


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


def _rope_theta(raw: Mapping[str, Any]) -> float:
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", None):
        raise UnsupportedModelError(f"config.json: rope_type {kind!r} is not supported (only 'default')")
    return float(parameters.get("rope_theta", raw.get("rope_theta", 10_000.0)))


def _check_activation(raw: Mapping[str, Any]) -> None:
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise UnsupportedModelError(f"config.json: hidden_act {raw['hidden_act']!r} is not supported (only 'silu')")


def parse_model_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Read ``config.json``.

    Raises:
        UnsupportedModelError: the family or one of its options is not served.
    """
    family = str(raw.get("model_type"))
    if family not in ("qwen3_moe", "mixtral", "olmoe"):
        raise UnsupportedModelError(f"config.json: model_type {family!r} is not one of qwen3_moe, mixtral, olmoe")
    _check_activation(raw)
    layers, heads = int(_required(raw, "num_hidden_layers")), int(_required(raw, "num_attention_heads"))
    hidden = int(_required(raw, "hidden_size"))
    mixtral, qwen = family == "mixtral", family == "qwen3_moe"
    dense = frozenset[int]()
    if qwen:
        step = int(raw.get("decoder_sparse_step", 1))
        dense = frozenset(i for i in range(layers) if i in raw.get("mlp_only_layers", []) or (i + 1) % step != 0)
    width = int(_required(raw, "moe_intermediate_size") if qwen else _required(raw, "intermediate_size"))
    windowed = raw.get("sliding_window") if (mixtral or raw.get("use_sliding_window")) else None
    return ModelConfig(
        family=family,
        vocab_size=int(_required(raw, "vocab_size")),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=int(raw.get("num_key_value_heads") or heads),
        head_dim=int(raw.get("head_dim") or hidden // heads),
        experts=int(_required(raw, "num_local_experts", "num_experts")),
        experts_per_token=int(_required(raw, "num_experts_per_tok")),
        expert_width=width,
        dense_width=int(raw.get("intermediate_size") or width),
        dense_layers=dense,
        rms_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=_rope_theta(raw),
        qk_norm="none" if mixtral else ("head" if qwen else "full"),
        qkv_bias=bool(raw.get("attention_bias", False)),
        qkv_clip=raw.get("clip_qkv"),
        normalise_top_k=mixtral or bool(raw.get("norm_topk_prob", False)),
        router_dtype_is_float=mixtral,
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        sliding_window=int(windowed) if windowed else None,
        max_context_tokens=int(raw.get("max_position_embeddings", 4096)),
        eos_token_ids=_eos(raw),
        router_name="block_sparse_moe.gate" if mixtral else "mlp.gate",
        expert_prefix="block_sparse_moe.experts" if mixtral else "mlp.experts",
        expert_names=("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj"),
    )


def check_tensor_parallel(config: ModelConfig, tensor_parallel: int) -> None:
    """Refuse a tensor-parallel size that does not divide the heads.

    Raises:
        UnsupportedModelError: with the numbers that do not fit.
    """
    if config.heads % tensor_parallel or config.kv_heads % tensor_parallel or config.dense_width % tensor_parallel:
        raise UnsupportedModelError(
            f"tensor parallel {tensor_parallel} does not divide {config.heads} heads, {config.kv_heads} KV heads "
            f"and a dense width of {config.dense_width}"
        )
    if tensor_parallel > 1 and config.qk_norm == "full":
        raise UnsupportedModelError("OLMoE normalises queries over all heads: tensor parallel must be 1")
