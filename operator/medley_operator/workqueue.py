"""A queue of keys to work on: each key at most once at a time, failures retried later and later.

After client-go's workqueue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_RETRY_S = 0.25
LONGEST_RETRY_S = 30.0


class RetryLater(Exception):  # noqa: N818  it tells when, it is no failure
    """Raised by work that should be tried again after so many seconds."""

    def __init__(self, delay_s: float | None = None) -> None:
        super().__init__()
        self.delay_s = delay_s


class Workqueue(Generic[K]):
    """Keys that wait, and the workers that take them.

    A key that is added while it is worked on is worked on again afterwards, so no change is missed.
    """

    def __init__(self) -> None:
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._waiting: set[K] = set()
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, tuple[float, asyncio.TimerHandle]] = {}
        self._failures: dict[K, int] = {}

    def add(self, key: K) -> None:
        """Work on this key soon."""
        if key in self._working:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: K, delay_s: float) -> None:
        """Work on this key in so many seconds at the latest."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + max(0.0, delay_s)
        if key in self._timers:
            earlier_s, timer = self._timers[key]
            if earlier_s <= due_s:
                return
            timer.cancel()
        self._timers[key] = (due_s, loop.call_at(due_s, self._due, key))

    def forget(self, key: K) -> None:
        """Drop what is remembered of a key that is no more."""
        self._failures.pop(key, None)
        if key in self._timers:
            self._timers.pop(key)[1].cancel()

    async def work(self, process: Callable[[K], Awaitable[None]], *, workers: int) -> None:
        """Have so many workers process keys until cancelled.

        `process` may raise RetryLater; other errors end the work.
        """
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._worker(process))

    async def _worker(self, process: Callable[[K], Awaitable[None]]) -> None:
        while True:
            key = await self._ready.get()
            self._waiting.discard(key)
            self._working.add(key)
            try:
                await process(key)
                self._failures.pop(key, None)
            except RetryLater as later:
                if later.delay_s is not None:
                    self._failures.pop(key, None)
                self.add_after(key, self._next_delay_s(key) if later.delay_s is None else later.delay_s)
            finally:
                self._working.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.add(key)

    def _next_delay_s(self, key: K) -> float:
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        return min(FIRST_RETRY_S * 2.0**failures, LONGEST_RETRY_S)

    def _due(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)
