import pytest

from medley_planner.catalogue.known_models import UnknownModelError, catalogue_of_models, known_model, known_models
from medley_planner.catalogue.shapes import Transformer

# What publishers' weights add up to, each counted once: the model cards, and the totals of the safetensors files.
# Of models with a vision tower, the language model's part (Gemma 3: less 416,866,032 of the tower, and its projector).
PUBLISHED_PARAMETERS = {
    "01-ai/Yi-1.5-34B-Chat": 34_388_917_248,
    "01-ai/Yi-1.5-9B-Chat": 8_829_407_232,
    "ByteDance-Seed/Seed-OSS-36B-Instruct": 36_151_104_512,
    "CohereForAI/c4ai-command-r-08-2024": 32_296_476_672,
    "CohereForAI/c4ai-command-r-plus": 103_810_674_688,
    "CohereForAI/c4ai-command-r-v01": 34_980_831_232,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "MiniMaxAI/MiniMax-M2.5": 228_689_764_864,
    "Qwen/Qwen2-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen2-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-32B-Instruct-AWQ": 32_763_876_352,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-7B-Instruct-AWQ": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "Qwen/Qwen3-235B-A22B-FP8": 235_093_634_560,
    "Qwen/Qwen3-235B-A22B-Instruct-2507": 235_093_634_560,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-30B-A3B-FP8": 30_532_122_624,
    "Qwen/Qwen3-30B-A3B-Instruct-2507": 30_532_122_624,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-32B-FP8": 32_762_123_264,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-4B-Instruct-2507": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": 480_154_875_392,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": 79_674_391_296,
    "THUDM/glm-4-9b-chat": 9_399_951_360,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "allenai/OLMo-2-0325-32B-Instruct": 32_234_279_936,
    "allenai/OLMo-2-1124-13B-Instruct": 13_716_198_400,
    "allenai/OLMo-2-1124-7B-Instruct": 7_298_617_344,
    "allenai/OLMoE-1B-7B-0924-Instruct": 6_919_161_856,
    "bigcode/starcoder2-15b": 15_957_889_024,
    "bigcode/starcoder2-3b": 3_030_371_328,
    "bigcode/starcoder2-7b": 7_173_923_840,
    "codellama/CodeLlama-34b-Instruct-hf": 33_743_970_304,
    "codellama/CodeLlama-7b-Instruct-hf": 6_738_546_688,
    "databricks/dbrx-instruct": 131_596_523_520,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": 14_770_033_664,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": 32_763_876_352,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "deepseek-ai/DeepSeek-V2-Lite-Chat": 15_706_484_224,
    "deepseek-ai/DeepSeek-V2.5": 235_741_434_880,
    "deepseek-ai/DeepSeek-V3": 671_026_419_200,
    "google/gemma-2-27b-it": 27_227_128_320,
    "google/gemma-2-2b-it": 2_614_341_888,
    "google/gemma-2-9b-it": 9_241_705_984,
    "google/gemma-3-12b-it": 11_766_034_176,
    "google/gemma-3-1b-it": 999_885_952,
    "google/gemma-3-27b-it": 27_009_346_304,
    "google/gemma-3-4b-it": 3_880_263_168,
    "google/gemma-7b-it": 8_537_680_896,
    "ibm-granite/granite-3.1-2b-instruct": 2_533_531_648,
    "ibm-granite/granite-3.1-8b-instruct": 8_170_848_256,
    "internlm/internlm2_5-20b-chat": 19_861_149_696,
    "internlm/internlm2_5-7b-chat": 7_737_708_544,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-405B-Instruct": 405_853_388_800,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Meta-Llama-3-70B-Instruct": 70_553_706_496,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "microsoft/Phi-3-medium-128k-instruct": 13_960_238_080,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/Phi-3.5-MoE-instruct": 41_873_153_344,
    "microsoft/Phi-3.5-mini-instruct": 3_821_079_552,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "microsoft/phi-4": 14_659_507_200,
    "mistralai/Codestral-22B-v0.1": 22_247_282_688,
    "mistralai/Mistral-7B-Instruct-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "mistralai/Mistral-Large-Instruct-2411": 122_610_069_504,
    "mistralai/Mistral-Nemo-Instruct-2407": 12_247_782_400,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23_572_403_200,
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": 23_572_403_200,
    "mistralai/Mixtral-8x22B-Instruct-v0.1": 140_630_071_296,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "moonshotai/Kimi-K2-Instruct": 1_026_408_232_448,
    "moonshotai/Kimi-K2.5": 1_026_408_232_448,
    "nvidia/Llama-3.1-70B-Instruct-FP8": 70_553_706_496,
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": 31_577_940_288,
    "openai/gpt-oss-120b": 116_829_156_672,
    "openai/gpt-oss-20b": 20_914_757_184,
    "tiiuae/Falcon3-10B-Instruct": 10_305_653_760,
    "tiiuae/Falcon3-7B-Instruct": 7_455_550_464,
    "tiiuae/falcon-40b-instruct": 41_303_293_952,
    "tiiuae/falcon-7b-instruct": 6_921_720_704,
    "zai-org/GLM-4-9B-0414": 9_400_279_040,
}

# Billions of parameters and of active ones, as publishers round them; embeddings are counted or not as each likes.
PUBLISHED_BILLIONS = {
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (109, 17),
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": (400, 17),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": (47, 13),
    "mistralai/Mixtral-8x22B-Instruct-v0.1": (141, 39),
    "microsoft/Phi-3.5-MoE-instruct": (42, 6.6),
    "Qwen/Qwen2-57B-A14B-Instruct": (57, 14),
    "Qwen/Qwen3-30B-A3B": (30.5, 3.3),
    "Qwen/Qwen3-235B-A22B": (235, 22),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": (480, 35),
    "Qwen/Qwen3.5-27B": (27, 27),
    "Qwen/Qwen3.5-35B-A3B": (35, 3),
    "Qwen/Qwen3.5-122B-A10B": (122, 10),
    "Qwen/Qwen3.5-397B-A17B": (397, 17),
    "deepseek-ai/DeepSeek-V2-Lite-Chat": (15.7, 2.4),
    "deepseek-ai/DeepSeek-V2.5": (236, 21),
    "deepseek-ai/DeepSeek-V3": (671, 37),
    "deepseek-ai/DeepSeek-V3.2": (671, 37),
    "moonshotai/Kimi-K2-Instruct": (1000, 32),
    "zai-org/GLM-4.5": (355, 32),
    "zai-org/GLM-4.5-Air": (106, 12),
    "zai-org/GLM-5": (744, 40),
    "openai/gpt-oss-20b": (21, 3.6),
    "openai/gpt-oss-120b": (117, 5.1),
    "databricks/dbrx-instruct": (132, 36),
    "allenai/OLMoE-1B-7B-0924-Instruct": (6.9, 1.3),
    "MiniMaxAI/MiniMax-M2.5": (230, 10),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (31.6, 3.6),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED_PARAMETERS))
def test_parameters_by_the_shapes_are_those_of_the_published_weights(name: str) -> None:
    assert known_models()[name].parameters == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(PUBLISHED_BILLIONS))
def test_sparse_models_have_the_sizes_that_they_are_known_by(name: str) -> None:
    model = known_models()[name]
    total, active = PUBLISHED_BILLIONS[name]

    assert model.parameters / 1e9 == pytest.approx(total, rel=0.03)
    embeddings = catalogue_of_models()[name].reading.transformer.embedding
    counted = [model.parameters_per_token - left_out * embeddings for left_out in (0, 1, 2)]
    assert min(abs(count / 1e9 / active - 1) for count in counted) <= 0.15


def test_the_catalogue_has_the_models_that_are_widely_served() -> None:
    rows = {known.names[0] for known in catalogue_of_models().values()}

    assert len(rows) >= 40
    assert {name.partition("/")[0] for name in rows} >= {
        "meta-llama",
        "mistralai",
        "Qwen",
        "google",
        "microsoft",
        "deepseek-ai",
        "zai-org",
        "openai",
        "moonshotai",
        "allenai",
        "ibm-granite",
        "tiiuae",
        "01-ai",
        "databricks",
        "bigcode",
        "internlm",
        "HuggingFaceTB",
        "nvidia",
    }
    assert list(known_models()) == sorted(known_models())
    assert all(len(known.source) > 10 for known in catalogue_of_models().values())


def by_hand(name: str) -> int:
    """Parameters of three unlike models, each by a formula written out for it alone."""
    if name == "deepseek-ai/DeepSeek-V3":
        hidden, heads = 7168, 128
        attention = hidden * 1536 + 1536 + 1536 * heads * 192 + hidden * 576 + 512 + 512 * heads * 256
        attention += heads * 128 * hidden
        dense = 3 * hidden * 18432
        sparse = 257 * 3 * hidden * 2048 + 256 * hidden + 256
        return 2 * 129280 * hidden + 61 * (attention + 2 * hidden) + 3 * dense + 58 * sparse + hidden
    if name == "openai/gpt-oss-20b":
        hidden = 2880
        attention = hidden * 64 * 80 + 64 * 80 + 64 * 64 * hidden + hidden + 64
        experts = 32 * (hidden * 2 * 2880 + 2 * 2880 + 2880 * hidden + hidden) + 32 * hidden + 32
        return 2 * 201088 * hidden + 24 * (attention + experts + 2 * hidden) + hidden
    assert name == "google/gemma-2-9b-it"
    hidden = 3584
    attention = hidden * 256 * (16 + 2 * 8) + 16 * 256 * hidden
    return 256000 * hidden + 42 * (attention + 3 * hidden * 14336 + 4 * hidden) + hidden


@pytest.mark.parametrize("name", ["deepseek-ai/DeepSeek-V3", "openai/gpt-oss-20b", "google/gemma-2-9b-it"])
def test_parameters_are_those_of_the_formula_by_hand(name: str) -> None:
    assert known_models()[name].parameters == by_hand(name)


def test_latent_attention_caches_one_compressed_key_for_all_heads() -> None:
    model = known_models()["deepseek-ai/DeepSeek-V3"]

    assert (model.attention_heads, model.key_value_heads, model.head_size) == (128, 1, 160)
    assert model.key_value_bytes_per_token == 61 * (512 + 64) * 2
    assert model.window_layers == model.constant_layers == 0


def test_windows_bound_what_a_request_caches() -> None:
    model = known_models()["google/gemma-3-27b-it"]
    per_layer = 2 * 16 * 128 * 2

    assert (model.layers, model.window_layers, model.window_tokens) == (62, 52, 1024)
    assert model.cache_bytes(1000) == 62 * 1000 * per_layer
    assert model.cache_bytes(100_000) == (10 * 100_000 + 52 * 1024) * per_layer


def test_layers_that_keep_a_state_cache_nothing_per_token() -> None:
    model = known_models()["Qwen/Qwen3-Next-80B-A3B-Instruct"]

    assert (model.layers, model.attention_layers, model.constant_layers) == (48, 12, 36)
    assert model.key_value_bytes_per_token == 12 * 2 * 2 * 256 * 2
    assert model.state_bytes_per_request == 36 * 2 * (8192 * 3 + 32 * 128 * 128)
    assert model.cache_bytes(1000) == 1000 * model.key_value_bytes_per_token + model.state_bytes_per_request


def test_quantised_checkpoints_take_the_memory_of_their_files() -> None:
    # Gibibytes of the weights' files, by model cards and file lists.
    for name, gibibytes in (
        ("openai/gpt-oss-20b", 12.8),
        ("openai/gpt-oss-120b", 60.8),
        ("Qwen/Qwen3-32B-FP8", 32.0),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", 5.2),
        ("Qwen/Qwen2.5-32B-Instruct-AWQ", 18.0),
        ("moonshotai/Kimi-K2.5", 554.0),
    ):
        assert known_models()[name].weight_bytes / 2**30 == pytest.approx(gibibytes, rel=0.03), name
    assert known_models()["Qwen/Qwen3-32B-FP8"].computes_in_8_bit
    assert not known_models()["openai/gpt-oss-20b"].computes_in_8_bit


def test_an_input_embedding_of_its_own_is_looked_up_only() -> None:
    assert known_models()["meta-llama/Llama-3.1-8B-Instruct"].lookup_parameters == 128256 * 4096
    assert known_models()["meta-llama/Llama-3.2-1B-Instruct"].lookup_parameters == 0


def test_names_are_found_whatever_their_case_and_under_every_id() -> None:
    assert known_model("qwen/qwen3-8b").names[0] == "Qwen/Qwen3-8B"
    assert known_model("meta-llama/Llama-3.3-70B-Instruct") is known_model("meta-llama/Llama-3.1-70B-Instruct")


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("unsloth/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen-3-8B", "Qwen/Qwen3-8B"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, first: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        known_model(name)

    assert caught.value.nearest[0] == first
    assert f"did you mean {first}" in str(caught.value)


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(UnknownModelError, match=r"^the catalogue has no model 'zzzz'$"):
        known_model("zzzz")


def test_shapes_count_tied_embeddings_once() -> None:
    shapes: Transformer = catalogue_of_models()["Qwen/Qwen3-0.6B"].reading.transformer

    assert shapes.tied
    assert shapes.output == 0
    assert shapes.embedding == 151936 * 1024
