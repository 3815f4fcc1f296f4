"""What is on the page of `medley plan --report`, in order: headings, tables, plots. Not how it looks.

`MEDLEY_UPDATE_GOLDEN=1 pytest tests/golden/test_report_golden.py` writes it anew; the test then fails.
"""

from __future__ import annotations

import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medley_operator.cli.app import app

INPUT = Path(__file__).parent / "cli" / "two-services.input.yaml"
RECORDED = Path(__file__).parent / "report" / "two-services.outline.txt"


class Outline(HTMLParser):
    """Headings and paragraphs, tables by their header and number of rows, plots by title and description."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.text = ""
        self.header: list[str] = []
        self.rows = 0
        self.svg = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "svg":
            self.svg += 1
        if tag in {"h1", "h2", "h3", "p", "li", "th", "dt", "dd", "title", "desc", "figcaption", "summary"}:
            self.text = ""
        if tag == "table":
            self.header, self.rows = [], 0
        self.rows += tag == "tr"

    def handle_endtag(self, tag: str) -> None:
        told = " ".join(self.text.split())
        if tag == "svg":
            self.svg -= 1
        elif tag == "th":
            self.header.append(told)
        elif tag == "table":
            self.lines.append(f"table of {self.rows - 1}: {' | '.join(self.header)}")
        elif tag in {"h1", "h2", "h3", "p", "li", "dt", "dd", "summary"} or (tag in {"title", "desc"} and self.svg):
            self.lines.append(f"{tag}: {told}")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_as_recorded(tmp_path: Path) -> None:
    path = tmp_path / "plan.html"
    result = CliRunner().invoke(app, ["plan", "-f", str(INPUT), "--report", str(path)])
    assert result.exit_code == 0, result.output
    outline = Outline()
    outline.feed(path.read_text(encoding="utf-8"))
    text = "\n".join(outline.lines) + "\n"
    if os.environ.get("MEDLEY_UPDATE_GOLDEN"):
        RECORDED.write_text(text, encoding="utf-8")
        pytest.fail(f"wrote {RECORDED.name}; run again without MEDLEY_UPDATE_GOLDEN")
    assert text == RECORDED.read_text(encoding="utf-8")
