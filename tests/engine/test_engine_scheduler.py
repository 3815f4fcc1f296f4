"""The scheduler against a model of what a rank computes: every token once, in order, within budgets and blocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley_engine.scheduler import SamplingParams, Scheduler, Sequence

BLOCK, CHUNK, BUDGET, RUNNING = 4, 8, 16, 4


def make(blocks: int) -> Scheduler:
    scheduler = Scheduler(block_tokens=BLOCK, chunk_tokens=CHUNK, budget_tokens=BUDGET, max_running=RUNNING)
    scheduler.free = list(range(blocks))
    return scheduler


def next_token(sequence_id: str, position: int) -> int:
    return (hash((len(sequence_id), sequence_id[-1], position)) & 0xFF) + 1


def run(scheduler: Scheduler, blocks: int, steps: int = 400) -> dict[str, list[int]]:
    """Drive to the end, checking every step; returns the tokens of each sequence."""
    out: dict[str, list[int]] = {}
    seen: dict[str, int] = {}
    for _ in range(steps):
        if not scheduler.busy:
            return out
        batch = scheduler.schedule()
        assert sum(piece.count for piece in batch) <= BUDGET
        assert len({piece.id for piece in batch}) == len(batch) <= RUNNING
        used = [b for s in scheduler.running for b in s.blocks]
        assert sorted([*used, *scheduler.free]) == list(range(blocks)), "a block was lost or shared"
        sampled = {}
        for piece in batch:
            sequence = next(s for s in scheduler.running if s.id == piece.id)
            assert piece.start == sequence.computed
            if piece.start < len(sequence.prompt):
                assert piece.start % CHUNK == 0, "a chunk starts off its boundary"
                assert piece.start + piece.count in (piece.start + CHUNK, len(sequence.prompt))
            else:
                assert piece.count == 1
            assert len(piece.blocks) * BLOCK >= piece.start + piece.count
            if piece.sample:
                sampled[piece.id] = next_token(piece.id, piece.start + piece.count)
            seen[piece.id] = piece.start + piece.count
        for sequence, reason in scheduler.complete(batch, sampled):
            if reason:
                out[sequence.id] = list(sequence.generated)
    raise AssertionError("the scheduler made no progress")


REQUESTS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10)), min_size=1, max_size=8)


@given(REQUESTS, st.integers(10, 40))
def test_every_sequence_ends_with_its_own_tokens_whatever_its_company(requests, blocks):
    scheduler = make(blocks)
    for number, (prompt, count) in enumerate(requests):
        scheduler.add(Sequence(f"s{number}", tuple(range(prompt)), SamplingParams(count)))
    out = run(scheduler, blocks)
    assert len(scheduler.free) == blocks
    for number, (prompt, count) in enumerate(requests):
        assert out[f"s{number}"] == [next_token(f"s{number}", prompt + i) for i in range(count)]


@given(st.integers(1, 30), st.integers(2, 10), st.integers(1, 9))
def test_a_replayed_sequence_goes_on_where_it_was(prompt, count, known):
    known = min(known, count - 1)
    generated = [next_token("s0", prompt + i) for i in range(known)]
    scheduler = make(20)
    scheduler.add(Sequence("s0", tuple(range(prompt)), SamplingParams(count), generated=list(generated)))
    assert run(scheduler, 20)["s0"] == [next_token("s0", prompt + i) for i in range(count)]


@given(REQUESTS, st.integers(0, 12))
def test_sequences_handed_to_another_scheduler_lose_nothing(requests, steps):
    first = make(100)
    out = {}
    for number, (prompt, count) in enumerate(requests):
        first.add(Sequence(f"s{number}", tuple(range(prompt)), SamplingParams(count)))
    for _ in range(steps):
        batch = first.schedule()
        sampled = {p.id: next_token(p.id, p.start + p.count) for p in batch if p.sample}
        out |= {s.id: list(s.generated) for s, reason in first.complete(batch, sampled) if reason}
    given_blocks = first.export()
    second = make(0)
    owned = sorted(b for s in given_blocks for b in s.blocks)
    second.free = [b for b in range(100) if b not in owned]
    for sequence in given_blocks:
        second.add(Sequence.parse(sequence.dump()))
    second._max_running = 100
    second._budget = 1000
    for _ in range(400):
        if not second.busy:
            break
        batch = second.schedule()
        sampled = {p.id: next_token(p.id, p.start + p.count) for p in batch if p.sample}
        out |= {s.id: list(s.generated) for s, reason in second.complete(batch, sampled) if reason}
    assert out == {
        f"s{n}": [next_token(f"s{n}", prompt + i) for i in range(count)] for n, (prompt, count) in enumerate(requests)
    }


def test_stop_tokens_and_aborts_free_blocks():
    scheduler = make(10)
    stop = next_token("s0", 5)
    scheduler.add(Sequence("s0", (1, 2, 3, 4, 5), SamplingParams(100, stop_token_ids=(stop,))))
    scheduler.add(Sequence("s1", (1, 2, 3), SamplingParams(100)))
    batch = scheduler.schedule()
    results = scheduler.complete(batch, {p.id: next_token(p.id, p.start + p.count) for p in batch})
    assert {s.id: reason for s, reason in results} == {"s0": "stop", "s1": None}
    assert scheduler.abort("s1")
    assert not scheduler.abort("s1")
    assert sorted(scheduler.free) == list(range(10))


def test_it_asks_for_the_blocks_it_lacks():
    scheduler = make(0)
    scheduler.add(Sequence("s0", tuple(range(8)), SamplingParams(4)))
    assert scheduler.wanted_blocks() == 2
    assert scheduler.schedule() == []
    scheduler.free = [7, 9]
    assert scheduler.wanted_blocks() == 0
    assert scheduler.schedule()[0].blocks == (7, 9)


def test_the_step_after_a_handover_has_no_prompts_in_it():
    scheduler = make(20)
    scheduler.add(Sequence("old", (1, 2), SamplingParams(9), generated=[3], computed=2, blocks=[19]))
    scheduler.free.remove(19)
    scheduler.add(Sequence("half", tuple(range(12)), SamplingParams(2), computed=8, blocks=[17, 18]))
    scheduler.free = scheduler.free[:17]
    scheduler.add(Sequence("new", (1, 2, 3), SamplingParams(2)))
    scheduler.skip_prompts_once = True
    (only,) = scheduler.schedule()
    assert (only.id, only.decoding, only.sample) == ("old", True, True)
    scheduler.complete([only], {"old": 4})
    assert [(piece.id, piece.decoding) for piece in scheduler.schedule()] == [
        ("old", True),
        ("half", False),
        ("new", False),
    ]


def test_a_budget_must_hold_a_chunk_beside_every_other_sequence():
    with pytest.raises(ValueError, match="a budget of 10 tokens"):
        Scheduler(block_tokens=4, chunk_tokens=8, budget_tokens=10, max_running=4)
