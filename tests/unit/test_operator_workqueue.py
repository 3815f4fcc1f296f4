"""The queue of keys: one at a time, none lost, failures later and later."""

from __future__ import annotations

import asyncio

import pytest

from medley_operator.workqueue import FIRST_RETRY_S, RetryLater, Workqueue


async def run_until(queue: Workqueue[str], process, done: asyncio.Event) -> None:  # type: ignore[no-untyped-def]
    work = asyncio.create_task(queue.work(process, workers=4))
    try:
        await asyncio.wait_for(done.wait(), 10)
    finally:
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work


async def test_a_key_added_while_it_is_worked_on_is_worked_on_again_and_never_twice_at_a_time() -> None:
    queue: Workqueue[str] = Workqueue()
    done, running, runs = asyncio.Event(), 0, 0

    async def process(key: str) -> None:
        nonlocal running, runs
        running += 1
        runs += 1
        assert running == 1
        if runs == 1:
            queue.add(key)
            queue.add(key)
            await asyncio.sleep(0)
        else:
            done.set()
        running -= 1

    queue.add("a")
    queue.add("a")
    await run_until(queue, process, done)
    assert runs == 2


async def test_failures_are_tried_again_later_and_later() -> None:
    queue: Workqueue[str] = Workqueue()
    done, times = asyncio.Event(), []

    async def process(key: str) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) < 3:
            raise RetryLater
        done.set()

    queue.add("a")
    await run_until(queue, process, done)
    first, second = times[1] - times[0], times[2] - times[1]
    assert first >= FIRST_RETRY_S * 0.9
    assert second >= FIRST_RETRY_S * 1.9


async def test_the_earliest_of_several_times_counts() -> None:
    queue: Workqueue[str] = Workqueue()
    done = asyncio.Event()

    async def process(key: str) -> None:
        done.set()

    queue.add_after("a", 3600)
    queue.add_after("a", 0.01)
    queue.add_after("a", 7200)
    await run_until(queue, process, done)


async def test_an_unforeseen_error_ends_the_work() -> None:
    queue: Workqueue[str] = Workqueue()

    async def process(key: str) -> None:
        raise ZeroDivisionError

    queue.add("a")
    with pytest.raises(ExceptionGroup):
        await asyncio.wait_for(queue.work(process, workers=2), 10)
