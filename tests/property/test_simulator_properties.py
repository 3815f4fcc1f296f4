"""What holds for every simulated service, whatever arrives."""

from __future__ import annotations

import numpy as np
from hypothesis import given, note, settings
from hypothesis import strategies as st

from medley_planner.simulator.book import Fate
from medley_planner.simulator.routing import Balancing, Knowledge
from simulated_services import BIG, DECODE, PREFILL, SMALL, kind, requests, run_of, shares

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    rate_rps=st.floats(0.1, 30.0),
    cv=st.sampled_from([0.5, 1.0, 4.0]),
    cache_tokens=st.integers(2300, 20_000),
    mix=st.tuples(st.integers(1, 3), st.integers(0, 2)),
    knowledge=st.sampled_from(list(Knowledge)),
    balancing=st.sampled_from(list(Balancing)),
    drain_s=st.floats(0.0, 60.0),
    lose_s=st.floats(0.0, 60.0),
)
def test_nothing_is_lost_or_made_up(
    seed, rate_rps, cv, cache_tokens, mix, knowledge, balancing, drain_s, lose_s
) -> None:
    asked = requests(seed, rate_rps=rate_rps, duration_s=60.0, cv=cv)
    note(f"seed {seed}, {len(asked)} requests")
    kinds = [kind(variant, key_value_tokens=cache_tokens, max_sequences=8) for variant in (SMALL, BIG)]
    split = shares((SMALL, 0.5, 3.0), (BIG, 0.5, 3.0))
    options = {"knowledge": knowledge, "balancing": balancing, "seed": seed}
    run = run_of(asked, {SMALL: mix[0], BIG: mix[1]}, split, kinds=kinds, **options)
    kept = run.add(BIG, asked_s=5.0)
    run.drain(0, drain_s)
    if mix[0] > 1:
        run.lose(1, lose_s)
    run.finish()
    book = run.book
    assert kept in {each.number for each in run.instances}
    assert set(book.fate) <= {Fate.SERVED}
    arrived, admitted = np.array(book.arrived_s), np.array(book.admitted_s)
    first, finished = np.array(book.first_token_s), np.array(book.finished_s)
    assert (arrived <= admitted).all()
    assert (admitted < first).all() or not len(asked)
    assert (first <= finished).all()
    assert ((finished > first) == (asked.output_tokens > 1)).all()
    for each in run.instances:
        for unit in each.units:
            assert unit.blocks_used == 0
            assert unit.gauges.most_blocks <= each.kind.limits.blocks
            assert unit.waiting == unit.running == 0
            assert abs(unit.load) < 1e-6
    decoded = sum(unit.gauges.reading().decoded_tokens for each in run.instances for unit in each.units)
    assert decoded >= int((asked.output_tokens - 1).sum()) - sum(book.preemptions.values())


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, rate_rps=st.floats(1.0, 12.0), replicas=st.integers(1, 4))
def test_more_replicas_do_not_wait_longer(seed, rate_rps, replicas) -> None:
    asked = requests(seed, rate_rps=rate_rps, duration_s=60.0)
    note(f"seed {seed}, {len(asked)} requests")
    waits = []
    for count in (replicas, replicas + 1):
        run = run_of(asked, {SMALL: count})
        run.finish()
        waits.append(float(np.sum(np.array(run.book.admitted_s) - np.array(run.book.arrived_s))))
    assert waits[1] <= waits[0] + 0.03 * len(asked)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, stops_s=st.lists(st.floats(0.0, 100.0), max_size=6))
def test_looking_on_the_way_changes_nothing(seed, stops_s) -> None:
    asked = requests(seed, rate_rps=5.0, duration_s=60.0)
    split = shares((PREFILL, 0.6, 8.0), (SMALL, 0.4, 8.0), (DECODE, 0.6, 8.0))
    ends = []
    for stops in ([], sorted(stops_s)):
        run = run_of(asked, {PREFILL: 1, DECODE: 2, SMALL: 1}, split, seed=seed)
        for stop_s in stops:
            run.run_until(stop_s)
        run.finish()
        ends.append(run.book.finished_s)
    assert ends[0] == ends[1]
