"""Processes that help `medley plan` where many services compete for stock; they start when they are first asked."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager

from medley_planner.programme.goals import Lent

_MOST = 3
"""More help little: what is not shared out takes a third of the time."""


@contextmanager
def helping_processes() -> Iterator[Lent]:
    """Lends an executor with a process of its own for each processor beside the one that plans."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    spawn = multiprocessing.get_context("spawn")
    interrupted_by_us = functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with ExitStack() as stack:

        @functools.cache
        def lent() -> tuple[Executor, ...]:
            return tuple(
                stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn, initializer=interrupted_by_us))
                for _ in range(min(processors - 1, _MOST))
            )

        yield lent
