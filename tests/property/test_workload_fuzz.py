"""Whatever a trace or a file of margins holds, `medley workload` answers with a workload or a named mistake."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from medley_operator.api.llmservice import Workload
from medley_operator.api.manifest import parse
from medley_operator.cli.app import app

SEEDS = range(4)
MUTANTS = 40

TRACES = (
    "arrival_s,input_tokens,output_tokens\n0,100,10\n1,200,20\n3,300,30\n",
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:50.95,396,109\n",
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,1,2.5,ChatGPT,100,10,110,Conversation log\n7,,1.5,GPT-4,200,20,220,API log\n",
    '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [1]}\n'
    '{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [2]}\n',
)
MARGINS = (
    'vllm:request_prompt_tokens_bucket{le="500.0",model_name="m"} 20.0\n'
    'vllm:request_prompt_tokens_bucket{le="+Inf",model_name="m"} 100.0\n'
    'vllm:request_prompt_tokens_sum{model_name="m"} 90000.0\n'
    'vllm:request_generation_tokens_bucket{le="50.0",model_name="m"} 25.0\n'
    'vllm:request_generation_tokens_bucket{le="+Inf",model_name="m"} 100.0\n',
    yaml.safe_dump(
        {
            "inputTokens": [{"upTo": 500, "weight": 2}, {"upTo": 8000, "weight": 8}],
            "outputTokens": [{"upTo": 50, "weight": 5}, {"upTo": 800, "weight": 5}],
            "meanInputTokens": 3000,
            "requests": 500,
        }
    ),
)
PIECES = (
    "", "0", "-1", "1e999", "nan", "NaN", "+Inf", "9" * 5000, "99999999", "0.5", ",", ",,", '"', "\n", "\r", "\0", "{",
    "}", "[" * 2000, "{le=", "#", "- ", ": ", "&a *a", "!!python/object:os.system", "\ud7ff", "é", "\ufeff", "true",
    "null",
)  # fmt: skip


def mutated(rng: random.Random, text: str) -> str:
    for _ in range(rng.choice((1, 1, 2, 4))):
        begin = rng.randrange(len(text) + 1)
        end = min(len(text), begin + rng.choice((0, 0, 1, 3, 12, 60)))
        text = text[:begin] + rng.choice(PIECES) + text[end:]
    return text


def judged(result: Result, what: str) -> bool:
    """Whether a workload came out; a refusal must be one that a person can read."""
    assert result.exit_code in {0, 2}, f"{what}: {result.exception!r}"
    assert isinstance(result.exception, SystemExit | None), what
    if result.exit_code == 2:
        assert result.stderr.startswith("error: "), what
        assert len(result.stderr) < 4000, what
        return False
    parse(Workload, json.loads(result.stdout)["workload"])
    return True


@pytest.mark.parametrize("seed", SEEDS)
def test_mutated_traces(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / "trace"
    made = 0
    for index in range(MUTANTS):
        text = mutated(rng, rng.choice(TRACES)).encode("utf-8", "surrogatepass")
        path.write_bytes(gzip.compress(text) if rng.random() < 0.2 else text)
        made += judged(
            CliRunner().invoke(app, ["workload", str(path), "-o", "json"]), f"seed {seed}, {index}: {text!r}"
        )
    assert 0 < made < MUTANTS


@pytest.mark.parametrize("seed", SEEDS)
def test_mutated_margins(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / "margins"
    made = 0
    for index in range(MUTANTS):
        text = mutated(rng, rng.choice(MARGINS)).encode("utf-8", "surrogatepass")
        path.write_bytes(text)
        arguments = ["workload", "--marginals", str(path), "--rate", "1", "-o", "json"]
        made += judged(CliRunner().invoke(app, arguments), f"seed {seed}, {index}: {text!r}")
    assert 0 < made < MUTANTS
