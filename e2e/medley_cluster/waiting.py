"""Polling with a deadline: the one place in the harness and its tests where anything sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class WaitTimeoutError(TimeoutError):
    """The condition did not hold before its deadline."""


def wait_until(
    condition: Callable[[], T | None],
    timeout_s: float,
    describe: str | Callable[[], str],
    *,
    first_interval_s: float = 0.02,
    longest_interval_s: float = 0.5,
    tolerate: tuple[type[Exception], ...] = (),
) -> T:
    """Call `condition` until what it returns is true, and return that; raise when `timeout_s` is over.

    Exceptions of the types in `tolerate` count as "not yet"; the last one is named when time is up.
    """
    deadline_s = time.monotonic() + timeout_s
    interval_s = first_interval_s
    last_error: Exception | None = None
    while True:
        try:
            outcome = condition()
            last_error = None
            if outcome:
                return outcome
        except tolerate as error:
            last_error = error
        if time.monotonic() >= deadline_s:
            what = describe if isinstance(describe, str) else describe()
            because = f" (last error: {last_error!r})" if last_error else ""
            raise WaitTimeoutError(f"not within {timeout_s:g} s: {what}{because}")
        time.sleep(min(interval_s, max(0.0, deadline_s - time.monotonic())))
        interval_s = min(interval_s * 1.5, longest_interval_s)
