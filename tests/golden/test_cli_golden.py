"""What `medley plan` prints, as files that a reviewer can look at.

`MEDLEY_UPDATE_GOLDEN=1 pytest tests/golden/test_cli_golden.py` writes the outputs anew; the test then fails, so that an
update is never mistaken for a check.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medley_operator.cli.app import app

FOLDER = Path(__file__).parent / "cli"
INPUTS = sorted(FOLDER.glob("*.input.yaml"))


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.name.removesuffix(".input.yaml"))
def test_tables_are_as_recorded(path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", "-f", str(path)], env={"COLUMNS": "120", "NO_COLOR": "1"})
    text = f"{result.stdout}{result.stderr.replace(str(FOLDER) + '/', '')}exit status {result.exit_code}\n"
    recorded = path.with_name(path.name.replace(".input.yaml", ".output.txt"))
    if os.environ.get("MEDLEY_UPDATE_GOLDEN"):
        recorded.write_text(text, encoding="utf-8")
        pytest.fail(f"wrote {recorded.name}; run again without MEDLEY_UPDATE_GOLDEN")
    assert text == recorded.read_text(encoding="utf-8")


def test_no_line_ends_in_blanks_or_is_too_wide() -> None:
    for path in FOLDER.glob("*.output.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert line == line.rstrip(), path.name
            assert len(line) <= 120 or line.startswith("error: "), path.name


def test_every_output_has_its_input() -> None:
    outputs = {path.name.replace(".output.txt", ".input.yaml") for path in FOLDER.glob("*.output.txt")}
    assert outputs == {path.name for path in INPUTS}
