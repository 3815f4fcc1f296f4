"""What `medley model` makes of models of unlike kinds, as files that a reviewer can look at.

`MEDLEY_UPDATE_GOLDEN=1 pytest tests/golden/test_model_golden.py` writes the outputs anew; the test then fails, so that
an update is never mistaken for a check.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medley_operator.cli.app import app

FOLDER = Path(__file__).parent / "models"
MODELS = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "deepseek-ai/DeepSeek-V3",
    "google/gemma-3-27b-it",
    "openai/gpt-oss-120b",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "Qwen/Qwen2.5-32B-Instruct-AWQ",
)


@pytest.mark.parametrize("name", MODELS)
def test_tables_and_profiles_are_as_recorded(name: str) -> None:
    environment = {"COLUMNS": "120", "NO_COLOR": "1"}
    answers = [CliRunner().invoke(app, ["model", name, "-o", output], env=environment) for output in ("table", "yaml")]
    assert [answer.exit_code for answer in answers] == [0, 0]
    text = "---\n".join(answer.stdout for answer in answers)
    recorded = FOLDER / f"{name.rpartition('/')[2]}.txt"
    if os.environ.get("MEDLEY_UPDATE_GOLDEN"):
        recorded.write_text(text, encoding="utf-8")
        pytest.fail(f"wrote {recorded.name}; run again without MEDLEY_UPDATE_GOLDEN")
    assert text == recorded.read_text(encoding="utf-8")


def test_every_file_is_of_a_model() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == {name.rpartition("/")[2] for name in MODELS}
