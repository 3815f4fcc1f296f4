"""Keeps work that nobody waits for from taking the processors of those who serve."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress


class Pace:
    """Lets a thread have a share of one processor and no more: after each piece of work it rests for as long as that
    takes to be true. Time that it did not use is not saved up. It counts the thread's own processor time, so that
    a thread which is kept waiting by others needs not rest besides.
    """

    def __init__(self, share: float) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"a share of {share} of a processor")
        self._share = share
        self._used_s, self._at_s = time.thread_time(), time.monotonic()

    def rest(self) -> None:
        """Call after a piece of work, in the thread that did it."""
        used_s, now_s = time.thread_time(), time.monotonic()
        earned_s = now_s - self._at_s
        owed_s = (used_s - self._used_s) / self._share - earned_s
        if owed_s > 0:
            time.sleep(owed_s)
        self._used_s, self._at_s = used_s, time.monotonic()


def at_leisure(work: Callable[[], None]) -> None:
    """Do a piece of work while processors have nothing better to do, and return when it is done. In a thread of its
    own: one that took this priority could not give it up again without being privileged.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="leisure", initializer=_take_what_is_left) as pool:
        pool.submit(work).result()


def _take_what_is_left() -> None:
    # Where the system does not allow it, the work is done at the usual priority.
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
