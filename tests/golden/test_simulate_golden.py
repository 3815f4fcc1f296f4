"""What `medley simulate` answers, as files that a reviewer can look at: everything in simulated time is reproducible.

`MEDLEY_UPDATE_GOLDEN=1 pytest tests/golden/test_simulate_golden.py` writes the outputs anew; the test then fails, so
that an update is never mistaken for a check.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medley_operator.cli.app import app

FOLDER = Path(__file__).parent / "simulate"


@pytest.mark.parametrize(("output", "suffix"), [("json", "json"), ("table", "txt")])
def test_answers_are_as_recorded(output: str, suffix: str) -> None:
    arguments = ["simulate", "-f", str(FOLDER / "chat.input.yaml"), "--duration", "60", "--seed", "1", "-o", output]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "120", "NO_COLOR": "1"})
    assert result.exit_code == 0
    recorded = FOLDER / f"chat.output.{suffix}"
    if os.environ.get("MEDLEY_UPDATE_GOLDEN"):
        recorded.write_text(result.stdout, encoding="utf-8")
        pytest.fail(f"wrote {recorded.name}; run again without MEDLEY_UPDATE_GOLDEN")
    assert result.stdout == recorded.read_text(encoding="utf-8")
