"""`medley model`: a model's facts from the catalogue, a file, a folder or standard input, as a table or a profile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from medley_operator.api.manifest import parse
from medley_operator.api.modelprofile import ModelProfile
from medley_operator.api.resolve import ResolvedProfile, resolve_profile
from medley_operator.cli.app import app
from medley_planner.catalogue.known_models import known_models

CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
}


def medley(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(app, ["model", *arguments], input=given)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "My Model-8B"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return made


def test_a_model_of_the_catalogue_as_a_table() -> None:
    result = medley("qwen/qwen3-30b-a3b")

    assert result.exit_code == 0, result.stderr
    for words in ("Qwen/Qwen3-30B-A3B", "30,532,122,624", "8 of 128", "56.9 GiB", "40,960 tokens", "the catalogue"):
        assert words in result.stdout


def test_the_profile_of_a_model_can_be_applied_and_says_the_same() -> None:
    manifest = yaml.safe_load(medley("deepseek-ai/DeepSeek-V3", "-o", "yaml").stdout)

    assert manifest["metadata"] == {"name": "deepseek-v3"}
    resolved = resolve_profile(parse(ModelProfile, manifest))
    assert isinstance(resolved, ResolvedProfile)
    assert resolved.architecture == known_models()["deepseek-ai/DeepSeek-V3"]


def test_a_folder_a_file_and_standard_input_give_the_same(folder: Path) -> None:
    of_folder = yaml.safe_load(medley(str(folder), "-o", "yaml").stdout)
    of_file = yaml.safe_load(medley(str(folder / "config.json"), "-o", "yaml").stdout)
    of_input = yaml.safe_load(medley("-", "--name", "My Model-8B", "-o", "yaml", given=json.dumps(CONFIG)).stdout)

    assert of_folder == of_file == of_input
    assert (of_folder["metadata"]["name"], of_folder["spec"]["model"]) == ("my-model-8b", "My Model-8B")
    assert of_folder["spec"]["architecture"]["parameters"] == 8_190_735_360


def test_the_quantisation_beside_a_config_counts(folder: Path) -> None:
    beside = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    (folder / "hf_quant_config.json").write_text(json.dumps(beside), encoding="utf-8")
    made = json.loads(medley(str(folder), "-o", "json").stdout)

    assert made["dataType"] == made["profile"]["spec"]["architecture"]["dataType"] == "fp8"
    assert made["weightBytes"] == pytest.approx(8_190_735_360 + 2 * 151936 * 4096, rel=1e-3)
    assert any("8-bit cache" in note for note in made["notes"])


def test_json_says_what_the_figures_mean() -> None:
    made = json.loads(medley("openai/gpt-oss-20b", "-o", "json").stdout)

    assert made["family"] == "gpt_oss"
    assert made["keyValueBytesPerToken"] == 24 * 2 * 8 * 64 * 2
    assert made["cacheBytesAtMaxContext"] == 2 * 8 * 64 * 2 * (12 * 131072 + 12 * 128)


def test_the_gpus_that_hold_a_model_are_told() -> None:
    small = json.loads(medley("Qwen/Qwen3-8B", "-o", "json").stdout)["gpusForMaxContext"]
    assert (small["H100-80GB"], small["L4"], small["A10G"]) == (1, 2, 2)
    large = json.loads(medley("moonshotai/Kimi-K2-Instruct", "-o", "json").stdout)["gpusForMaxContext"]
    assert (large["B200"], large["H200"]) == (8, None)
    assert "8×B200" in medley("moonshotai/Kimi-K2-Instruct").stdout


def test_without_an_argument_the_catalogue_is_listed() -> None:
    listed = json.loads(medley("-o", "json").stdout)

    assert [row["model"] for row in listed] == list(known_models())
    assert "meta-llama/Llama-3.1-8B-Instruct" in medley().stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("{}", "model_type: is missing"),
        (json.dumps(CONFIG | {"model_type": "rwkv"}), "model_type: 'rwkv' is no known family"),
        (json.dumps(CONFIG | {"hidden_size": -1}), "hidden_size: must be between 1 and 1000000, is -1"),
    ],
)
def test_a_config_that_cannot_be_understood_is_refused_with_file_and_field(folder: Path, text: str, words: str) -> None:
    path = folder / "config.json"
    path.write_text(text, encoding="utf-8")
    result = medley(str(path))

    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}: ")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_what_is_not_there_is_told(tmp_path: Path, folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe")

    for asked, words in (
        (str(folder), "is not UTF-8 text"),
        (str(tmp_path), "the folder holds no config.json"),
        (str(tmp_path / "config.json"), "there is no such file"),
        ("Qwen3-8B", "did you mean Qwen/Qwen3-8B"),
        ("x" * 300, "File name too long"),
    ):
        result = medley(asked)
        assert result.exit_code == 2
        assert words in result.stderr
