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


BURST = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,1,2.5,ChatGPT,100,10,110,Conversation log
7,1,1.5,GPT-4,200,20,220,Conversation log
9,,0.5,GPT-4,300,30,330,API log
"""

METRICS = """# HELP vllm:request_prompt_tokens Number of prefill tokens processed.
# TYPE vllm:request_prompt_tokens histogram
vllm:request_prompt_tokens_sum{model_name="org/a"} 600000.0
vllm:request_prompt_tokens_bucket{le="500.0",model_name="org/a"} 200.0
vllm:request_prompt_tokens_bucket{le="2000.0",model_name="org/a"} 900.0
vllm:request_prompt_tokens_bucket{le="+Inf",model_name="org/a"} 1000.0
vllm:request_prompt_tokens_count{model_name="org/a"} 1000.0
vllm:request_prompt_tokens_bucket{le="500.0",model_name="org/b"} 5.0
vllm:request_prompt_tokens_bucket{le="+Inf",model_name="org/b"} 5.0
vllm:request_generation_tokens_bucket{le="50.0",model_name="org/a"} 250.0
vllm:request_generation_tokens_bucket{le="500.0",model_name="org/a"} 1000.0
vllm:request_generation_tokens_bucket{le="+Inf",model_name="org/a"} 1000.0
vllm:request_generation_tokens_sum{model_name="org/a"} 150000.0
vllm:request_generation_tokens_bucket{le="50.0",model_name="org/b"} 5.0
vllm:request_generation_tokens_bucket{le="+Inf",model_name="org/b"} 5.0
vllm:num_requests_running{model_name="org/a"} 3.0
"""

CELLS = {
    "inputTokens": [{"upTo": 500, "weight": 2}, {"upTo": 8000, "weight": 8}],
    "outputTokens": [{"upTo": 50, "weight": 5}, {"upTo": 800, "weight": 5}],
}


def share_of(spec: dict[str, Any], field: str, up_to: int) -> float:
    entries = spec["sizes"]["histogram"]
    return sum(entry["weight"] for entry in entries if entry[field] <= up_to)


def test_requests_are_chosen_by_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(BURST)
    made = json.loads(medley(str(path), "--where", "Model=GPT-4", "-o", "json").stdout)
    assert made["statistics"]["requests"] == 2
    result = medley(str(path), "--where", "Model=GPT-4", "--where", "Log Type=nothing")
    assert result.exit_code == 2
    assert "it has 'API log', 'Conversation log'" in result.stderr


def test_a_trace_from_standard_input(trace: Path) -> None:
    piped = CliRunner().invoke(app, ["workload", "-", "-o", "json"], input=trace.read_bytes())
    assert piped.stdout == medley(str(trace), "-o", "json").stdout


def test_timestamps_on_a_grid_are_told(tmp_path: Path) -> None:
    path = tmp_path / "grid.csv"
    rows = [f"{3 * (request // 4)},{100 + request % 7},{10 + request % 3}" for request in range(2000)]
    path.write_text(HEADER + "\n".join(rows))
    assert "lie on a grid of 3 s" in medley(str(path)).stdout
    statistics = json.loads(medley(str(path), "-o", "json").stdout)["statistics"]
    assert statistics["timestampGridSeconds"] == 3
    assert statistics["interarrivalCV"] == 0
    assert statistics["dispersion"] == {"60s": 0.0}


def test_measured_histograms_of_an_engine_are_fitted_to_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "metrics.txt"
    path.write_text(METRICS)
    result = medley("--marginals", str(path), "--rate", "7", "--where", "model_name=org/a", "-o", "json")
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    parse(Workload, made["workload"])
    assert made["workload"]["rate"] == 7
    assert share_of(made["workload"], "inputTokens", 500) == pytest.approx(0.2, abs=1e-4)
    assert share_of(made["workload"], "inputTokens", 2000) == pytest.approx(0.9, abs=1e-4)
    assert share_of(made["workload"], "outputTokens", 50) == pytest.approx(0.25, abs=1e-4)
    assert made["statistics"]["fit"]["meanInputTokens"] == pytest.approx(600, rel=0.01)
    assert made["statistics"]["fit"]["meanOutputTokens"] == pytest.approx(150, rel=0.01)
    assert (
        "fitted to the measured margins"
        in medley("--marginals", str(path), "--rate", "7", "--where", "model_name=org/a").stdout
    )


def test_cells_in_yaml_are_fitted_to_a_trace(trace: Path, tmp_path: Path) -> None:
    path = tmp_path / "cells.yaml"
    path.write_text(yaml.safe_dump(CELLS | {"requests": 50}))
    made = json.loads(medley(str(trace), "--marginals", str(path), "--rate", "1", "-o", "json").stdout)
    assert made["statistics"]["fit"]["measuredShare"] == 0.25
    assert share_of(made["workload"], "inputTokens", 500) == pytest.approx(0.25 * 0.2 + 0.75 * 0.41, abs=0.03)
    shown = medley(str(trace), "--marginals", str(path), "--rate", "1").stdout
    assert "too few requests: 75 %" in shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has neither a Prometheus histogram"),
        ("[]", "has neither a Prometheus histogram"),
        ("a: {", ":1: "),
        ("inputTokens: []", ":1: inputTokens: must be a list of cells"),
        (json.dumps(CELLS | {"inputTokens": [{"upTo": 5}]}), "inputTokens[0].weight: must be a number"),
        (json.dumps(CELLS | {"inputTokens": [{"upTo": 5, "weight": -1}]}), "inputTokens[0].weight: must be between 0"),
        (json.dumps(CELLS | {"outputTokens": [{"upTo": 5, "weight": 0}]}), "outputTokens: all weights are zero"),
        (json.dumps(CELLS | {"meanInputTokens": 1}), "inputTokens: a mean of 1 tokens is impossible"),
        (json.dumps(CELLS | {"inputTokens": [{"upTo": 5, "weight": 1}]}), "these are not the same requests"),
        (json.dumps(CELLS | {"typo": 1}), "typo: is unknown"),
        (METRICS, "vllm:request_prompt_tokens: has series of model_name 'org/a' and 'org/b': choose one"),
        (METRICS.replace("request_generation", "other"), "vllm:request_generation_tokens: the histogram is missing"),
        (METRICS.replace(" 200.0", " x"), ":4: must be a number, is 'x'"),
        (METRICS.replace(" 200.0", " -5"), ":4: must be a number, at least 0, is -5"),
        (METRICS.replace(" 200.0", " 950"), "900 requests are at most 2000 long, but 950 are shorter"),
        (METRICS.replace('{le="500.0",model_name="org/a"} 200', "{{ 200"), ":4: is no sample"),
    ],
)  # fmt: skip
def test_margins_that_make_no_sense(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "margins"
    path.write_text(text)
    where = () if "series of" in words else ("--where", "model_name=org/a")
    result = medley("--marginals", str(path), "--rate", "1", *where)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.startswith(f"error: {path}")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give a trace, or measured histograms with --marginals"),
        (("--marginals", "FILE"), "--rate: is needed with --marginals"),
        (("--marginals", "FILE", "--rate", "1", "--prior", "nobody"), "there is no preset 'nobody'"),
        (("--marginals", "FILE", "--rate", "1", "--error"), "--error: needs a trace"),
        (("TRACE", "--where", "Model"), "--where: must be COLUMN=VALUE, is 'Model'"),
        (("TRACE", "--where", "a=1", "--where", "a=2"), "--where: names 'a' twice"),
        (("TRACE", "--error", "--model", "org/none"), "--model: the catalogue has no model 'org/none'"),
    ],
)
def test_what_is_missing_is_told(trace: Path, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    path = tmp_path / "cells.yaml"
    path.write_text(yaml.safe_dump(CELLS))
    files = {"FILE": str(path), "TRACE": str(trace)}
    result = medley(*(files.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2
    assert words in result.stderr


def test_the_error_of_bucketing_has_bounds_that_close_in(trace: Path) -> None:
    rows = json.loads(medley(str(trace), "--error", "-o", "json").stdout)["bucketing"]
    assert [row["bins"] for row in rows] == [10, 20, 40, 80]
    assert all(row["atLeast"] <= row["usdPerHour"] <= row["atMost"] for row in rows)
    assert [row["errorAtMost"] for row in rows] == sorted((row["errorAtMost"] for row in rows), reverse=True)
    assert rows[-1]["errorAtMost"] < 0.05
    assert "error at most" in medley(str(trace), "--error").stdout


def test_other_packings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + b"\0" * 40)
    result = medley(str(path))
    assert result.exit_code == 2
    assert "is packed with zstd: unpack it" in result.stderr
