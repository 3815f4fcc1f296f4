"""Write random checkpoints in the hub's layout, for tests, benchmarks and trying the engine without a download.

Needs neither torch nor transformers; tensors are drawn and written one by one, so a checkpoint may be larger than
memory.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medley_engine.config import parse_model_config
from medley_engine.layout import Layout

_SAFE = {"float32": "F32", "float64": "F64", "bfloat16": "BF16"}
_FAMILY: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"architectures": ["Qwen3MoeForCausalLM"], "norm_topk_prob": True, "decoder_sparse_step": 1},
    "mixtral": {"architectures": ["MixtralForCausalLM"], "sliding_window": None},
    "olmoe": {"architectures": ["OlmoeForCausalLM"], "norm_topk_prob": False, "clip_qkv": None},
    "deepseek_v2": {
        "architectures": ["DeepseekV2ForCausalLM"], "first_k_dense_replace": 1, "n_shared_experts": 1,
        "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
        "topk_method": "greedy", "n_group": None, "topk_group": None, "routed_scaling_factor": 1.5,
    },
}  # fmt: skip
_EXPERTS = {"mixtral": "num_local_experts", "deepseek_v2": "n_routed_experts"}
_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"


def model_config(
    family: str,
    *,
    layers: int = 3,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    experts: int = 8,
    experts_per_token: int = 2,
    expert_width: int = 48,
    vocab: int = 288,
    context: int = 512,
    dtype: str = "float32",
    **extra: Any,
) -> dict[str, Any]:
    """A ``config.json`` of a family (qwen3_moe, mixtral, olmoe, deepseek_v2)."""
    counted = {_EXPERTS.get(family, "num_experts"): experts}
    width = {"moe_intermediate_size": expert_width, "intermediate_size": expert_width * 2}
    if family in ("mixtral", "olmoe"):
        width = {"intermediate_size": expert_width}
    if family in ("qwen3_moe", "mixtral"):
        width["head_dim"] = head_dim
    if family == "deepseek_v2":
        kv_heads = heads
    return {
        "model_type": family, **_FAMILY[family], "num_hidden_layers": layers, "hidden_size": hidden,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "num_experts_per_tok": experts_per_token,
        **counted, **width, "vocab_size": vocab, "max_position_embeddings": context, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False,
        "torch_dtype": dtype, "bos_token_id": None, "eos_token_id": None, **extra,
    }  # fmt: skip


def _tensors(config: dict[str, Any], dtype: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    layout = Layout(parse_model_config(config), dtype, 1, 4096)
    for item in layout.items.values():
        for piece in item.pieces:
            yield piece.tensor, piece.shape


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...], dtype: str) -> bytes:
    if "norm" in name:
        values = np.ones(shape, dtype=np.float32)
    else:
        # Scaled so that activations keep their size through the layers, and routers and heads are decided, not flat.
        values = rng.standard_normal(shape, dtype=np.float32) * (2.0 / shape[-1]) ** 0.5
    if dtype == "bfloat16":
        return bytes((values.view(np.uint32) >> 16).astype("<u2").tobytes())
    return bytes(values.astype("<f8" if dtype == "float64" else "<f4").tobytes())


def write(folder: Path, config: dict[str, Any], *, seed: int = 7, shards: int = 2) -> int:
    """Write a checkpoint; returns the bytes of its tensors. The same seed gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = config["torch_dtype"]
    width = {"float32": 4, "float64": 8, "bfloat16": 2}[dtype]
    tensors = list(_tensors(config, dtype))
    rng = np.random.default_rng(seed)
    weight_map: dict[str, str] = {}
    total = 0
    per_shard = -(-len(tensors) // shards)
    for shard in range(shards):
        part = tensors[shard * per_shard : (shard + 1) * per_shard]
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        header, at = {}, 0
        for tensor, shape in part:
            size = int(np.prod(shape)) * width
            header[tensor] = {"dtype": _SAFE[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
            weight_map[tensor] = name
            at += size
        head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        head += b" " * (-len(head) % 8)
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(head)) + head)
            for tensor, shape in part:
                file.write(_draw(rng, tensor, shape, dtype))
        total += at
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(folder, config["vocab_size"])
    return total


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level tokenizer: one token per byte, the rest of the vocabulary unused words; and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415 - only here

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: number for number, symbol in enumerate(alphabet)}
    vocab |= {f"<unused{number}>": number for number in range(len(vocab), vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": _TEMPLATE}))
