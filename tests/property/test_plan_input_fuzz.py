"""Odd inputs to `medley plan`: answered, or refused with an error, and never a traceback.

`benchmarks/planner_fuzz.py` tries 100,000 of them; this is a sample, and what the trying itself must notice.
"""

from __future__ import annotations

import os
import sys

import pytest

from medley_bench.odd_inputs import case
from planner_fuzz import tried, wrong

SEED = int(os.environ.get("MEDLEY_SEED", "20261122"))
INPUTS = 200


def test_a_sample_is_answered_or_refused() -> None:
    sys.stdout.write(f"MEDLEY_SEED={SEED}\n")
    tally = tried(SEED, range(INPUTS))
    assert [str(failure) for failure in tally.failures] == []
    statuses = {status: sum(n for (_, each), n in tally.statuses.items() if each == status) for status in (0, 1, 2)}
    assert sum(statuses.values()) == INPUTS
    assert min(statuses.values()) >= 5, statuses


def test_the_same_number_gives_the_same_input() -> None:
    assert [case(SEED, number) for number in range(50)] == [case(SEED, number) for number in range(50)]
    assert case(SEED, 1) != case(SEED + 1, 1)


@pytest.mark.parametrize(
    ("status", "stdout", "stderr", "arguments", "words"),
    [
        (0, "", "Traceback (most recent call last)\n", [], "a traceback was printed"),
        (3, "x", "", [], "ended with status 3"),
        (-11, "", "", [], "ended with status -11"),
        (2, "an answer", "error: x", [], "an answer was printed"),
        (2, "", " \n", [], "says nothing of what is wrong"),
        (1, "", "", [], "no answer was printed"),
        (0, '{"a": NaN}', "", ["-o", "json"], "NaN is not JSON"),
        (0, '{"a": ', "", ["-o", "yaml", "-o", "json"], "the answer is not JSON"),
        (0, "{}", "", ["--report", "/nowhere/plan.html"], "no page was written"),
    ],
)
def test_what_must_not_be_is_noticed(status: int, stdout: str, stderr: str, arguments: list[str], words: str) -> None:
    assert words in wrong(status, stdout, stderr, arguments)


@pytest.mark.parametrize(
    ("status", "stdout", "stderr", "arguments"),
    [(0, '{"a": 1}', "", ["-o", "json"]), (1, "no plan", "", []), (2, "", "error: x", ["-o", "json"])],
)
def test_what_may_be_is_not_taken_for_wrong(status: int, stdout: str, stderr: str, arguments: list[str]) -> None:
    assert wrong(status, stdout, stderr, arguments) == ""
