"""Work that nobody waits for keeps to its share of a processor."""

from __future__ import annotations

import os
import threading
import time

import pytest

from medley_engine.memory.pace import Pace, at_leisure


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


def test_work_at_leisure_is_done_by_a_thread_that_nobody_waits_for_a_processor_behind():
    seen = []
    at_leisure(lambda: seen.append((os.sched_getscheduler(0), threading.get_ident())))
    ((policy, thread),) = seen
    assert policy == os.SCHED_IDLE
    assert thread != threading.get_ident()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_what_fails_at_leisure_fails_for_whom_it_was_done():
    with pytest.raises(KeyError):
        at_leisure({}.popitem)
