"""Which group gets the next sequence, and where the sequences of a handover go."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from medley_engine.serving.handover import by_ranks
from medley_engine.serving.settings import Settings
from medley_engine.spreading import group_for

COUNTS = st.dictionaries(st.integers(0, 7), st.integers(0, 40), min_size=1)


def fill(groups: int, sequences: int, abreast: int) -> list[int]:
    """Sequences by group, given out one after the other."""
    counts = dict.fromkeys(range(groups), 0)
    for _ in range(sequences):
        counts[group_for(counts, abreast)] += 1
    return list(counts.values())


@given(COUNTS, st.integers(0, 8))
def test_where_every_group_has_its_processor_the_emptiest_gets_it(counts: dict[int, int], more: int):
    assert group_for(counts, len(counts) + more) == min(counts, key=lambda group: (counts[group], group))


def test_few_processors_have_few_groups_filled_with_what_is_computed_for_the_price_of_one():
    assert fill(4, 3, abreast=2) == [2, 1, 0, 0]
    assert fill(4, 8, abreast=2) == [3, 3, 1, 1]
    assert fill(4, 13, abreast=2) == [4, 3, 3, 3]
    assert fill(3, 4, abreast=1) == [3, 1, 0]
    assert group_for({0: 0, 1: 0, 2: 0, 3: 1}, abreast=1) == 3


@given(st.integers(1, 6), st.integers(0, 60), st.integers(1, 8))
def test_no_group_gets_far_ahead_of_another(groups: int, sequences: int, abreast: int):
    counts = fill(groups, sequences, abreast)
    assert max(counts) - min(counts) <= 3


def sequence(computed: int) -> dict[str, Any]:
    """One with a prompt of four tokens."""
    return {"id": "s", "prompt": [1, 2, 3, 4], "computed": computed, "blocks": [7]}


def settings(abreast: int, *, shared: bool) -> Settings:
    """Of a machine with this many processors."""

    class Machine(Settings):
        abreast = property(lambda _: where)  # type: ignore[assignment]

    where = abreast
    return Machine("model", "run", shared_domain=shared)


def test_on_few_processors_streams_are_handed_over_close_together_and_prompts_apart():
    running = [(0, sequence(4)), (1, sequence(0)), (2, sequence(5)), (2, sequence(2))]
    found = by_ranks(running, dict.fromkeys(range(4), 0), settings(2, shared=True))
    assert sorted(found) == [(0, 0), (1, 1), (2, 0), (2, 1)]
    found = by_ranks(running, dict.fromkeys(range(4), 0), settings(4, shared=True))
    assert sorted(target for _, target in found) == [0, 1, 2, 3]


def test_with_a_memory_per_rank_a_sequence_stays_where_its_keys_are_and_leaves_without_blocks_where_it_has_none():
    running = [(0, sequence(0)), (1, sequence(4)), (3, sequence(4))]
    found = by_ranks(running, dict.fromkeys(range(3), 0), settings(2, shared=False))
    assert sorted(found) == [(0, 0), (1, 1), (3, 1)]
    assert [s["blocks"] for of in found.values() for s in of if not s["computed"]] == [[]]
    assert [s["blocks"] for of in found.values() for s in of if s["computed"]] == [[7], [7]]
