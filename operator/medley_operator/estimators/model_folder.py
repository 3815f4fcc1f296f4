"""A model's architecture as a folder with a config.json, for estimators that read models from such folders.

Only shapes are written: a Llama for a dense model, a Qwen3 mixture for one with experts. What the two cannot say
(latent attention, windows, constant states, experts stored in another type) is not written at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from medley_planner.catalogue.models import ModelArchitecture

DEFAULT_VOCABULARY = 128_256


def config_values(model: ModelArchitecture) -> Mapping[str, object] | None:
    """The fields of a config.json with the model's shape; None where neither family has it.

    The feed-forward width follows from the number of parameters, so that all matrices together are as large as the
    model's.
    """
    if model.latent_size or model.window_layers or model.constant_layers or model.expert_bytes_per_parameter:
        return None
    hidden = model.hidden_size
    vocabulary = model.lookup_parameters // hidden or DEFAULT_VOCABULARY
    attention = hidden * model.head_size * 2 * (model.attention_heads + model.key_value_heads)
    tables = vocabulary * hidden + (model.lookup_parameters or 0)
    in_layers = (model.shared_parameters - tables) / model.layers - attention
    common: dict[str, object] = {
        "hidden_size": hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.attention_heads,
        "num_key_value_heads": model.key_value_heads,
        "head_dim": model.head_size,
        "vocab_size": vocabulary,
        "max_position_embeddings": model.max_context_tokens,
        "tie_word_embeddings": model.lookup_parameters == 0,
        "torch_dtype": "bfloat16",
    }
    if not model.experts:
        width = round(in_layers / (3 * hidden))
        if width < 1:
            return None
        return common | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "intermediate_size": width}
    expert_width = round(model.expert_parameters / (model.layers * model.experts * 3 * hidden))
    if expert_width < 1:
        return None
    return common | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "intermediate_size": expert_width,
        "moe_intermediate_size": expert_width,
        "num_experts": model.experts,
        "num_experts_per_tok": model.active_experts,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
    }


def write_config(values: Mapping[str, object], folder: Path) -> None:
    """Write the fields as `config.json` into a folder, which must exist."""
    text = json.dumps(values, indent=1, sort_keys=True)
    folder.joinpath("config.json").write_text(text, encoding="utf-8")
