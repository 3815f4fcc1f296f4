from dataclasses import replace

import pytest

from medley_planner.catalogue.known_models import known_models
from medley_planner.catalogue.models import ModelArchitecture, ModelError, ThroughputPoint

DENSE = known_models()["meta-llama/Llama-3.1-8B-Instruct"]
SPARSE = known_models()["Qwen/Qwen3-30B-A3B"]


def test_memory_of_llama_3_1_8b():
    assert DENSE.weight_bytes == 2 * 8_030_261_248
    assert DENSE.key_value_bytes_per_token == 128 * 1024
    assert replace(DENSE, key_value_bytes_per_element=1.0).key_value_bytes_per_token == 64 * 1024


def test_experts_of_qwen3_30b_a3b_are_told_from_shared_weights():
    assert SPARSE.expert_parameters == pytest.approx(48 * 128 * 3 * 2048 * 768)
    assert SPARSE.shared_parameters + SPARSE.expert_parameters == SPARSE.parameters


def test_a_dense_model_has_no_expert_parameters():
    assert DENSE.expert_parameters == 0
    assert DENSE.shared_parameters == DENSE.parameters == DENSE.parameters_per_token


def test_a_model_whose_experts_are_all_active_is_computed_as_a_dense_one():
    model = replace(SPARSE, experts=4, active_experts=4, active_parameters=SPARSE.parameters)

    assert model.shared_parameters == model.parameters


def test_latent_attention_has_one_head_to_cache():
    with pytest.raises(ModelError, match=r"^key_value_heads: must be 1 with latent attention, is 8$"):
        replace(DENSE, latent_size=576)

    model = replace(DENSE, latent_size=576, key_value_heads=1)
    assert model.key_value_bytes_per_token == 32 * 576 * 2


def test_experts_may_be_stored_in_another_type():
    model = replace(SPARSE, expert_bytes_per_parameter=0.5)

    assert model.weight_bytes == pytest.approx(2 * SPARSE.shared_parameters + 0.5 * SPARSE.expert_parameters)


def test_windows_hold_the_cache_down():
    model = replace(DENSE, window_layers=24, window_tokens=4096)

    assert model.cache_bytes(4096) == DENSE.cache_bytes(4096) == 4096 * 128 * 1024
    assert model.cache_bytes(8192) == DENSE.cache_bytes(8192) * 5 / 8
    assert model.key_value_bytes_per_token == DENSE.key_value_bytes_per_token


def test_only_8_bit_weights_are_computed_with_in_8_bits():
    assert [replace(DENSE, weight_bytes_per_parameter=size).computes_in_8_bit for size in (2.0, 1.0, 0.53)] == [
        False,
        True,
        False,
    ]
    assert replace(DENSE, weight_bytes_per_parameter=1.03, computes_in_bits=8).computes_in_8_bit
    assert not replace(DENSE, weight_bytes_per_parameter=1.0, computes_in_bits=16).computes_in_8_bit


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (DENSE, {"parameters": 0}, "parameters: must be at least 1, is 0"),
        (DENSE, {"layers": 1.5}, "layers: must be an integer, is 1.5"),
        (DENSE, {"hidden_size": True}, "hidden_size: must be an integer, is True"),
        (DENSE, {"key_value_heads": 5}, "key_value_heads: 5 does not divide the 32 attention heads"),
        (DENSE, {"max_context_tokens": -1}, "max_context_tokens: must be at least 1, is -1"),
        (DENSE, {"weight_bytes_per_parameter": 0.0}, "weight_bytes_per_parameter: must be a positive number, is 0.0"),
        (
            DENSE,
            {"key_value_bytes_per_element": float("nan")},
            "key_value_bytes_per_element: must be a positive number, is nan",
        ),
        (DENSE, {"active_experts": 2}, "active_experts: is 2, but there are no experts"),
        (
            DENSE,
            {"active_parameters": 10**9},
            "active_parameters: is less than all parameters, but there are no experts",
        ),
        (SPARSE, {"active_parameters": None}, "active_parameters: must be given for a model with experts"),
        (SPARSE, {"active_parameters": 10**12}, "active_parameters: 1000000000000 is more than all"),
        (SPARSE, {"active_parameters": 10**8}, "active_parameters: 100000000 is too few for 8 of 128 experts"),
        (SPARSE, {"active_experts": 0}, "active_experts: must be between 1 and the 128 experts"),
        (SPARSE, {"active_experts": 129}, "active_experts: must be between 1 and the 128 experts"),
        (SPARSE, {"expert_bytes_per_parameter": 0.0}, "expert_bytes_per_parameter: must be a positive number, is 0.0"),
        (DENSE, {"computes_in_bits": 4}, "computes_in_bits: must be 8 or 16, is 4"),
        (DENSE, {"lookup_parameters": -1}, "lookup_parameters: must be at least 0, is -1"),
        (DENSE, {"lookup_parameters": 10**12}, "lookup_parameters: 1000000000000 leaves nothing of the"),
        (DENSE, {"latent_size": 1.5}, "latent_size: must be an integer, is 1.5"),
        (DENSE, {"constant_layers": 32}, "constant_layers: 32 leaves none of the 32 layers"),
        (DENSE, {"window_layers": 33}, "window_layers: 33 is more than all 32 others"),
        (DENSE, {"window_tokens": 4096}, "window_tokens: must be given together with window_layers"),
        (DENSE, {"state_bytes_per_request": -1.0}, "state_bytes_per_request: must be a number, at least 0, is -1.0"),
    ],
)
def test_impossible_figures_of_a_model_are_refused_by_field(model, change, message):
    with pytest.raises(ModelError) as caught:
        replace(model, **change)

    assert str(caught.value).startswith(message)
    assert caught.value.field == next(iter(change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": ""}, "gpu: must not be empty"),
        ({"tensor_parallel": 0}, "tensor_parallel: must be at least 1, is 0"),
        ({"input_tokens": 0}, "input_tokens: must be at least 1, is 0"),
        ({"output_tokens": 1.0}, "output_tokens: must be an integer, is 1.0"),
        ({"requests_per_second": 0}, "requests_per_second: must be a positive number, is 0"),
        ({"time_per_output_token_s": float("inf")}, "time_per_output_token_s: must be a positive number, is inf"),
        ({"time_to_first_token_s": -1.0}, "time_to_first_token_s: must be a positive number, is -1.0"),
    ],
)
def test_impossible_measurements_are_refused_by_field(change, message):
    point = {
        "gpu": "L4",
        "tensor_parallel": 1,
        "input_tokens": 100,
        "output_tokens": 100,
        "requests_per_second": 1.0,
        "time_per_output_token_s": 0.05,
        "time_to_first_token_s": 0.2,
    }
    with pytest.raises(ModelError) as caught:
        ThroughputPoint(**point | change)

    assert str(caught.value) == message


def test_an_architecture_compares_by_value():
    again = ModelArchitecture(
        parameters=8_030_261_248,
        layers=32,
        hidden_size=4096,
        attention_heads=32,
        key_value_heads=8,
        head_size=128,
        max_context_tokens=131072,
        lookup_parameters=128256 * 4096,
    )
    assert again == DENSE
    assert hash(again) == hash(DENSE)
