"""`medley workload`: traces, packed or not, to a workload that a spec takes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from medley_operator.api.llmservice import Workload
from medley_operator.api.manifest import parse
from medley_operator.cli.app import app

HEADER = "arrival_s,input_tokens,output_tokens\n"
TRACE = HEADER + "".join(f"{second},{100 + 10 * second},{20 + second}\n" for second in range(101))


def medley(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["workload", *arguments], env={"COLUMNS": "120", "NO_COLOR": "1"})


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return path


def test_yaml_is_the_workload_of_a_spec(trace: Path) -> None:
    result = medley(str(trace), "-o", "yaml")
    assert result.exit_code == 0
    workload = parse(Workload, yaml.safe_load(result.stdout)["workload"])
    assert workload.rate == 1
    assert workload.sizes.histogram is not None
    assert sum(entry.weight for entry in workload.sizes.histogram) == pytest.approx(1, abs=1e-4)
    mean = sum(entry.weight * entry.input_tokens for entry in workload.sizes.histogram)
    assert mean == pytest.approx(600, rel=0.01)


def test_json_has_the_statistics(trace: Path) -> None:
    statistics: dict[str, Any] = json.loads(medley(str(trace), "-o", "json").stdout)["statistics"]
    assert statistics["requests"] == 101
    assert statistics["ratePerSecond"] == 1
    assert statistics["interarrivalCV"] == 0
    assert statistics["inputTokens"] == {"mean": 600, "p50": 600, "p90": 1000, "p99": 1090}


def test_a_packed_trace_is_the_same(trace: Path, tmp_path: Path) -> None:
    packed = tmp_path / "whatever.bin"
    packed.write_bytes(gzip.compress(TRACE.encode()))
    assert medley(str(packed), "-o", "json").stdout == medley(str(trace), "-o", "json").stdout


def test_rate_and_buckets(trace: Path) -> None:
    made = json.loads(medley(str(trace), "--rate", "12.5", "--buckets", "1", "-o", "json").stdout)["workload"]
    assert made["rate"] == 12.5
    assert made["sizes"]["histogram"] == [{"inputTokens": 600, "outputTokens": 70, "weight": 1.0}]


def test_the_table_shows_figures_and_buckets(trace: Path) -> None:
    shown = medley(str(trace)).stdout
    assert "101 requests in 100 s: 1.0 per second" in shown
    assert "1,090" in shown
    assert "█" in shown


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ":1: there is no request"),
        (b"a,b\n1,2\n", ":2: the columns a, b are of no known trace"),
        ((HEADER + "0,5,5\n1,x,5\n").encode(), ":3: input_tokens: must be a whole number"),
        ((HEADER + "0,5,5\n0,5,5\n").encode(), "give one with --rate"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (gzip.compress(TRACE.encode())[:-20], "cannot be read"),
        (b"\x1f\x8b" + b"not gzip at all", "cannot be read"),
        ((HEADER + "1," * 700_000).encode(), ":2: is too long"),
    ],
)
def test_traces_that_cannot_be_read(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(data)
    result = medley(str(path))
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.startswith(f"error: {path}")
    assert "Traceback" not in result.stderr


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    result = medley(str(tmp_path / "missing.csv"))
    assert result.exit_code == 2
    assert "No such file" in result.stderr
