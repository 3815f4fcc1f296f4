"""A replica against the same rules computed step by step, and against what must hold for any engine."""

from __future__ import annotations

import random

import numpy as np
import pytest

from medley_planner.fleet import Role
from medley_planner.simulator.book import Book, Fate
from medley_planner.simulator.engine import EngineLimits, StepTimes
from medley_planner.simulator.gauges import Gauges
from medley_planner.simulator.replica import Replica
from medley_planner.simulator.requests import Requests
from stepwise_engine import StepwiseEngine

STEPS = StepTimes(
    fixed_s=tuple(0.01 + 0.0001 * max(tokens, 20) for tokens in range(65)),
    per_cached_token_s=2e-6,
    per_pair_s=3e-7,
    per_sequence_s=1e-5,
    per_prompt_token_s=2e-6,
)


def book_of(asked: list[tuple[float, int, int]]) -> Book:
    arrivals, inputs, outputs = zip(*asked, strict=True)
    return Book.of(Requests(np.array(arrivals, dtype=float), np.array(inputs), np.array(outputs)))


def serve(asked, steps, limits, role=Role.SHARED) -> tuple[Book, Replica]:
    book = book_of(asked)
    replica = Replica(0, steps, limits, book, Gauges(keeps_order=True), role=role)
    for request, (arrived_s, *_) in enumerate(asked):
        replica.advance(arrived_s)
        assert replica.can_ever_hold(request)
        assert replica.offer(request, arrived_s)
        assert replica.blocks_used <= limits.blocks
    replica.advance(1e12)
    return book, replica


def random_case(rng: random.Random, *, fewest_outputs: int = 1) -> tuple[list[tuple[float, int, int]], EngineLimits]:
    size = rng.choice([1, 3, 8, 16])
    longest_input, longest_output = rng.choice([(20, 20), (200, 30), (30, 150), (400, 5)])
    blocks = -(-(longest_input + longest_output) // size) + rng.randint(0, 200) // size
    limits = EngineLimits(
        blocks * size + rng.randint(0, size - 1),
        max_sequences=rng.choice([1, 2, 5, 50]),
        block_tokens=size,
        watermark=rng.choice([0.0, 0.01, 0.2]),
    )
    now_s, asked = 0.0, []
    spacing_s = rng.choice([0.02, 0.1, 0.5, 3.0])
    for _ in range(rng.randint(1, 60)):
        now_s += rng.expovariate(1 / spacing_s) if rng.random() < 0.8 else 0.0
        asked.append((now_s, rng.randint(1, longest_input), rng.randint(fewest_outputs, longest_output)))
    return asked, limits


@pytest.mark.parametrize("role", list(Role))
def test_a_replica_does_what_its_rules_say_step_by_step(role: Role) -> None:
    preempted = 0
    for seed in range(150):
        asked, limits = random_case(random.Random(seed), fewest_outputs=2 if role is Role.DECODE else 1)
        engine = StepwiseEngine(STEPS, limits, role)
        expected = engine.serve(asked)
        book, replica = serve(asked, STEPS, limits, role)
        for request, wanted in enumerate(expected):
            place = f"seed {seed}, request {request}"
            if role is Role.PREFILL and wanted.outputs > 1:
                ended_s = {other: at_s for at_s, other in replica.handed_over}[request]
            else:
                ended_s = book.finished_s[request]
                assert book.fate[request] is Fate.SERVED, place
            assert ended_s == pytest.approx(wanted.tokens_out_s[-1], rel=1e-9), place
            if role is not Role.DECODE:
                assert book.first_token_s[request] == pytest.approx(wanted.tokens_out_s[0], rel=1e-9), place
            assert book.preemptions.get(request, 0) == wanted.preemptions, place
        preempted += sum(each.preemptions for each in expected)
        assert replica.gauges.most_blocks <= engine.most_blocks <= limits.blocks, seed
    assert preempted > 20 or role is Role.PREFILL
