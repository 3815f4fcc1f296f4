"""The table of an operation's life, and the estimator that asks for operations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley_engine import operations as ops
from medley_engine.load import LoadEstimator, Objectives, Served


def walk(phases):
    operation = ops.begin("o", 3, False, 0.0)
    for number, phase in enumerate(phases):
        operation = ops.move(operation, phase, float(number + 1))
    return operation


def test_the_way_forward_is_legal_and_timed():
    operation = walk(ops.FORWARD[1:])
    assert operation.finished
    assert operation.committed
    assert set(operation.seconds()) == set(ops.FORWARD[:-1])
    report = operation.report()
    assert (report["percent"], report["result"]) == (100, "succeeded")


@given(st.lists(st.sampled_from(sorted(ops.MOVES)), max_size=12))
def test_no_walk_ends_both_ways(phases):
    """Whatever is tried, an operation never leaves a terminal phase and never goes back over the commit."""
    operation = ops.begin("o", 3, False, 0.0)
    committed = False
    for phase in phases:
        try:
            operation = ops.move(operation, phase, 1.0)
        except ops.IllegalMoveError:
            continue
        assert not (committed and operation.phase in {"aborting", "aborted", "failed"})
        committed = committed or operation.committed
    if operation.phase == "succeeded":
        assert committed


@pytest.mark.parametrize("phase", sorted(ops.BEFORE_COMMIT))
def test_an_abort_is_possible_up_to_the_commit(phase):
    operation = walk(ops.FORWARD[1 : ops.FORWARD.index(phase) + 1])
    assert ops.check_abort(operation)
    assert ops.move(ops.move(operation, "aborting", 9.0), "aborted", 9.5).finished


@pytest.mark.parametrize("phase", ["switching", "draining", "releasing", "succeeded"])
def test_an_abort_is_too_late_after_it(phase):
    with pytest.raises(ops.TooLateError, match="in force"):
        ops.check_abort(walk(ops.FORWARD[1 : ops.FORWARD.index(phase) + 1]))


def test_operations_survive_their_json_form():
    operation = ops.with_details(walk(ops.FORWARD[1:4]), note=1)
    assert ops.parse(ops.dump(operation)) == operation


def estimator(**changes):
    return LoadEstimator(Objectives(1.0, 0.1, window_s=10, windows=3, min_requests=5, **changes), 0.0)


def feed(e, start, end, ttft, gap=0.5):
    at = start
    while at < end:
        e.record(Served(at, ttft, 0.05))
        at += gap


def test_a_spike_is_no_reason_but_persistence_is():
    e = estimator()
    feed(e, 0, 20, 0.5)
    feed(e, 20, 30, 5.0)
    assert e.advise(30.0, 2) == "hold"
    feed(e, 30, 50, 5.0)
    assert e.advise(50.0, 2) == "grow"
    assert e.attainments(50.0) == (0.0, 0.0, 0.0)


def test_silence_and_too_few_requests_hold():
    e = estimator()
    assert e.advise(1000.0, 4) == "hold"
    feed(e, 970, 1000, 5.0, gap=4.0)
    assert e.advise(1000.0, 4) == "hold"


def test_it_shrinks_only_where_the_smaller_engine_would_still_be_idle_enough():
    for share, expected in ((0.1, "shrink"), (0.35, "hold")):
        e = estimator()
        feed(e, 0, 30, 0.5)
        for second in range(30):
            e.record_utilisation(float(second), share)
        assert e.advise(30.0, 2) == expected


def test_a_change_of_size_starts_the_windows_anew():
    e = estimator()
    feed(e, 0, 30, 5.0)
    assert e.advise(30.0, 2) == "grow"
    e.reset(30.0)
    feed(e, 30, 45, 5.0)
    assert e.advise(45.0, 3) == "hold"
