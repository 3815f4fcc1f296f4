"""Work that nobody waits for keeps to its share of a processor."""

from __future__ import annotations

import time

import pytest

from medley_engine.memory.pace import Pace


def work(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_it_takes_its_share_and_no_more():
    pace, start, used = Pace(0.25), time.monotonic(), time.thread_time()
    for _ in range(5):
        work(0.004)
        pace.rest()
    assert time.monotonic() - start >= (time.thread_time() - used) / 0.25 * 0.9


def test_a_whole_processor_needs_no_rest():
    pace = Pace(1.0)
    work(0.02)
    start = time.monotonic()
    pace.rest()
    assert time.monotonic() - start < 0.01


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_a_share_is_above_nothing_and_at_most_all(share):
    with pytest.raises(ValueError, match="share"):
        Pace(share)
