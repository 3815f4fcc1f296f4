"""The page of figures shows what was measured, and the rows follow from it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def report(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return pytest.importorskip("engine_report")


@pytest.fixture
def results():
    return json.loads((BENCHMARKS / "results" / "engine.json").read_text())


def test_the_page_shows_the_last_results(report, results):
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.fill(page, report.tables(results["parts"])) == page, "python benchmarks/engine.py --write"


def test_rows_follow_from_the_parts(report, results):
    assert results["rows"] == [asdict(row) for row in report.rows(results["parts"])]
    assert len({row["name"] for row in results["rows"]}) == len(results["rows"])
    assert all((row["met"] is None) == (not row["goal"]) for row in results["rows"])


def test_a_missed_goal_is_told_as_missed(report):
    step = {
        "first_token_s": {"median": 1.0, "worst": 2.0}, "cold_start_s": 10.0, "share_of_cold_start": 0.1,
        "throughput_ratio": 0.5, "throughput_ratio_by_cycle": [0.4, 0.6], "throughput_ratio_of_control": 1.0,
        "ttft_p99_ratio": 1.6, "ttft_p99_ratio_of_control": 1.0, "longest_pause_s": {"before": 0.1, "inside": 0.2},
        "peak_ratio": 1.03, "requests": {"before": 9, "inside": 9},
        "each": [{"phases_s": {"planning": 0.25, "switching": 0.75}}],
    }  # fmt: skip
    part = {
        "steps": {"3→2": step}, "capacity_rps": {"2": 1.0}, "rate_rps": 0.6, "prompt_tokens": [4, 8], "tokens_each": 4,
        "requests": 18, "errors": ["broken"], "different_answers": 0, "machine": "m", "load_average": [0.5],
        "seconds": 9.0,
    }  # fmt: skip
    rows = {row.name: row for row in report.rows({"scale": part})}
    missed = {name for name, row in rows.items() if row.met is False}
    assert len(missed) == 5, missed
    assert rows["one memory, DP3→2: first token, share of a cold start"].goal == "≤ 0.021"
    assert report.tables({"scale": part})["scale"].count("**missed**") == 4
    assert "250 (25 %)" in report.tables({"scale": part})["scale-phases"]
