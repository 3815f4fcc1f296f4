import json
from typing import Any

import pytest

from medley_planner.catalogue.config_json import ConfigError, ModelReading, read_config
from medley_planner.catalogue.known_models import known_models

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
MOE = {
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 40960,
}
LATENT = {
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "topk_method": "noaux_tc",
    "max_position_embeddings": 163840,
    "num_nextn_predict_layers": 1,
}
EXPERTS = 48 * 128 * 3 * 2048 * 768
HIDDEN_AND_ROUTERS = 48 * (128 * 2048 + 2 * 2048 + 2 * 128) + 2048


def read(config: dict[str, Any], **changes: Any) -> ModelReading:
    return read_config(json.dumps(config | changes))


def test_llama_3_1_8b() -> None:
    made = read(LLAMA)

    assert made.architecture == known_models()["meta-llama/Llama-3.1-8B-Instruct"]
    assert (made.family, made.data_type, made.notes) == ("llama", "bf16", ())


def test_a_config_that_wraps_a_language_model() -> None:
    made = read({"model_type": "mistral3", "text_config": LLAMA | {"model_type": "mistral"}, "vision_config": {}})

    assert made.family == "mistral"
    assert made.architecture.parameters == 8_030_261_248
    assert "other towers" in made.notes[0]


def test_gemma_3_leaves_out_what_its_code_knows() -> None:
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    scaling = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    made = read({"model_type": "gemma3", "text_config": text | scaling})

    assert made.architecture == known_models()["google/gemma-3-4b-it"]


@pytest.mark.parametrize(
    ("scaling", "positions", "tokens"),
    [
        (None, 8192, 8192),
        ({"rope_type": "llama3", "factor": 8.0}, 131072, 131072),
        ({"type": "linear", "factor": 4.0}, 4096, 16384),
        ({"type": "dynamic", "factor": 2.0}, 4096, 8192),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 32768, 131072),
        ({"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}, 163840, 163840),
        ({"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}, 131072, 131072),
        ({"rope_type": "default", "rope_theta": 1e6}, 40960, 40960),
        (None, 10_485_760, 10_000_000),
    ],
)
def test_the_context_is_that_which_engines_derive(scaling: Any, positions: int, tokens: int) -> None:
    assert (
        read(LLAMA, rope_scaling=scaling, max_position_embeddings=positions).architecture.max_context_tokens == tokens
    )


def test_windows_by_the_family_by_the_list_and_beyond_the_context() -> None:
    every = read(LLAMA, model_type="mistral", sliding_window=4096).architecture
    assert (every.window_layers, every.window_tokens) == (32, 4096)
    listed = ["sliding_attention"] * 24 + ["full_attention"] * 8
    some = read(LLAMA, model_type="mistral", sliding_window=4096, layer_types=listed).architecture
    assert (some.window_layers, some.window_tokens) == (24, 4096)
    none = read(LLAMA, model_type="phi3", sliding_window=262144).architecture
    assert (none.window_layers, none.window_tokens) == (0, 0)
    unused = read(LLAMA, model_type="qwen2", sliding_window=4096, use_sliding_window=False).architecture
    assert unused.window_layers == 0


def test_biases_norms_and_tied_embeddings_count() -> None:
    plain = read(LLAMA).architecture.parameters
    assert read(LLAMA, attention_bias=True).architecture.parameters == plain + 32 * (128 * 48 + 4096)
    assert read(LLAMA, mlp_bias=True).architecture.parameters == plain + 32 * (2 * 14336 + 4096)
    assert read(LLAMA, model_type="qwen2").architecture.parameters == plain + 32 * 128 * 48
    assert read(LLAMA, model_type="qwen3").architecture.parameters == plain + 32 * 2 * 128
    assert read(LLAMA, model_type="olmo2").architecture.parameters == plain + 32 * 128 * 40
    tied = read(LLAMA, tie_word_embeddings=True).architecture
    assert (tied.parameters, tied.lookup_parameters) == (plain - 128256 * 4096, 0)


def test_layers_without_experts_are_dense() -> None:
    sparse = read(MOE).architecture
    assert sparse == known_models()["Qwen/Qwen3-30B-A3B"]
    mixed = read(MOE, mlp_only_layers=[0, 1]).architecture
    difference = 2 * (128 * 3 * 2048 * 768 + 128 * 2048 - 3 * 2048 * 6144)
    assert mixed.parameters == sparse.parameters - difference
    every_other = read(MOE, decoder_sparse_step=2).architecture
    assert every_other.expert_parameters == pytest.approx(sparse.expert_parameters / 2)


def test_latent_attention_first_dense_layers_and_prediction_layers() -> None:
    made = read(LATENT)

    assert made.architecture.parameters == 671_026_419_200
    assert made.architecture.latent_size == 576
    assert any("MTP" in note for note in made.notes)
    without = read(LATENT, q_lora_rank=None).architecture
    query = 7168 * 1536 + 1536 + 1536 * 128 * 192
    assert without.parameters == made.architecture.parameters + 61 * (7168 * 128 * 192 - query)


def test_an_index_adds_weights_and_a_cached_key() -> None:
    plain, indexed = read(LATENT), read(LATENT, index_topk=2048, index_n_heads=64, index_head_dim=128)

    more = 61 * (1536 * 64 * 128 + 7168 * 128 + 7168 * 64 + 2 * 128)
    assert indexed.architecture.parameters == plain.architecture.parameters + more
    assert indexed.architecture.latent_size == 576 + 66
    assert any("index" in note for note in indexed.notes)


INT4_128 = 0.5 + 20 / 8 / 128


@pytest.mark.parametrize(
    ("quantisation", "data_type", "of_experts", "of_attention", "eight_bit"),
    [
        (None, "bf16", 2.0, 2.0, False),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", 1.0, 1.0, True),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4", INT4_128, INT4_128, False),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8", 1.0, 1.0, False),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["layers.*.self_attn"]}, "mxfp4", 17 / 32, 2.0, False),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}, "fp8", 1.0, 1.0, True),
        ({"quant_algo": "NVFP4", "exclude_modules": ["lm_head", "*self_attn*"]}, "nvfp4", 9 / 16, 2.0, True),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4", 0.5625, 0.5625, False),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}},
                "ignore": ["lm_head", "re:.*self_attn.*"],
            },
            "int4", 0.5625, 2.0, False,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "weights": {"num_bits": 8, "type": "int"},
                        "input_activations": {"num_bits": 8, "type": "int"},
                    }
                },
                "ignore": [f"model.layers.{layer}.self_attn.q_proj" for layer in range(12)],
            },
            "int8", 1.0, 1.25, True,
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 16}}}},
            "bf16", 2.0, 2.0, False,
        ),
    ],
)  # fmt: skip
def test_checkpoints_are_stored_as_they_say(
    quantisation: Any, data_type: str, of_experts: float, of_attention: float, eight_bit: bool
) -> None:
    made = read(MOE, quantization_config=quantisation)
    model = made.architecture

    assert made.data_type == data_type
    assert model.computes_in_8_bit is eight_bit
    attention = 48 * (2048 * 128 * 40 + 4096 * 2048)
    plain = 2 * (2 * 151936 * 2048 + HIDDEN_AND_ROUTERS)
    assert model.weight_bytes == pytest.approx(plain + of_attention * attention + of_experts * EXPERTS)


def test_quantisation_in_a_file_of_its_own() -> None:
    beside = json.dumps({"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": []}})
    made = read_config(json.dumps(LLAMA), quantisation_text=beside)

    assert made.data_type == "fp8"
    assert made.architecture.weight_bytes == pytest.approx(8_030_261_248 + 2 * 128256 * 4096 + 65 * 4096, rel=1e-9)
    assert made.architecture.key_value_bytes_per_element == 2.0
    assert "8-bit cache" in made.notes[0]


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"model_type": "kimi_linear"}, "model_type"),
        (LLAMA | {"model_type": None}, "model_type"),
        (LLAMA | {"hidden_size": None}, "hidden_size"),
        (LLAMA | {"hidden_size": "4096"}, "hidden_size"),
        (LLAMA | {"hidden_size": True}, "hidden_size"),
        (LLAMA | {"hidden_size": 10**9}, "hidden_size"),
        (LLAMA | {"num_hidden_layers": 0}, "num_hidden_layers"),
        (LLAMA | {"num_hidden_layers": 32.5}, "num_hidden_layers"),
        (LLAMA | {"num_attention_heads": 40}, "head_dim"),
        (LLAMA | {"num_key_value_heads": 5}, "num_key_value_heads"),
        (LLAMA | {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        (LLAMA | {"max_position_embeddings": -1}, "max_position_embeddings"),
        (LLAMA | {"rope_scaling": {"type": "yarn", "factor": float("nan")}}, "rope_scaling.factor"),
        (LLAMA | {"rope_scaling": [1]}, "rope_scaling"),
        (LLAMA | {"layer_types": ["full_attention"]}, "layer_types"),
        (LLAMA | {"layer_types": ["odd"] * 32}, "layer_types"),
        (LLAMA | {"quantization_config": {"quant_method": "aqlm"}}, "quantization_config.quant_method"),
        (LLAMA | {"quantization_config": {}}, "quantization_config.quant_method"),
        (LLAMA | {"quantization_config": {"quant_algo": "MIXED_PRECISION"}}, "quantization_config.quant_algo"),
        ({"model_type": "x", "text_config": LLAMA | {"hidden_size": -1}}, "text_config.hidden_size"),
        (MOE | {"num_experts_per_tok": 129}, "num_experts_per_tok"),
        (MOE | {"num_experts": 1}, "num_experts"),
        (LATENT | {"kv_lora_rank": None}, "kv_lora_rank"),
        (LATENT | {"index_topk": 2048, "indexer_types": ["full"]}, "indexer_types"),
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_named_by_its_field(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(config)

    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON: Expecting value, line 1, column 1"),
        ("[]", "must be a JSON object, is []"),
        ('{"model_type": "llama", "model_type": "qwen2"}', "model_type: is there twice"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "is nested deeper than 24 levels"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "has a number of more than 18 digits"),
        ('{"hidden_size": 0.' + "9" * 5000 + "}", "has a number of more than 100 digits"),
        ('{"a": "' + "x" * (4 * 2**20) + '"}', "is larger than 4 MiB"),
    ],
    ids=["empty", "list", "twice", "deep", "long number", "long fraction", "large"],
)
def test_hostile_text_is_bounded(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(text)

    assert str(caught.value) == message


def test_brackets_in_strings_are_not_nesting() -> None:
    assert read(LLAMA, note='{"' * 50).family == "llama"
