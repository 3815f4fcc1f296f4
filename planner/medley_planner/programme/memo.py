"""What a caller may keep between plans, so that an unchanged part of a fleet is not worked out again.

The planner itself remembers nothing: a `Memo` is a value that the caller owns and passes in.
Everything in it is keyed by *all* the values it was computed from, so that a plan with a memo equals the plan without
one.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

T = TypeVar("T")


class Memo:
    """A bounded memory of pure results, least recently used out first. Not safe for use from two threads at a time.

    Args:
        entries: How many results are kept at most.
        megabytes: How much memory they may take, by estimate; one result is always kept.
    """

    def __init__(self, entries: int = 65_536, *, megabytes: float = 512.0) -> None:
        if entries < 1:
            raise ValueError(f"entries must be at least 1, not {entries}")
        if not megabytes > 0:
            raise ValueError(f"megabytes must be positive, not {megabytes}")
        self._entries = entries
        self._bytes = megabytes * 2**20
        self._held_bytes = 0
        self._results: OrderedDict[Hashable, object] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}
        self._hints: OrderedDict[Hashable, object] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def recall(self, key: Hashable, compute: Callable[[], T], *, taken_bytes: int | None = None) -> T:
        """The result kept under `key`, else that of `compute`, which is kept.

        `key` must hold every value that `compute` depends on, and name the kind of result.

        Args:
            key: Of the result.
            compute: Works it out.
            taken_bytes: What the result takes, or may come to take when it is added to; None is to be estimated.
        """
        if key in self._results:
            self._results.move_to_end(key)
            self.hits += 1
            return cast("T", self._results[key])
        result = compute()
        self.misses += 1
        self._keep(key, result, _estimated_bytes(result) if taken_bytes is None else taken_bytes)
        return result

    def _keep(self, key: Hashable, result: object, taken: int) -> None:
        self._held_bytes += taken - self._sizes.get(key, 0)
        self._results[key] = result
        self._sizes[key] = taken
        while len(self._results) > 1 and (len(self._results) > self._entries or self._held_bytes > self._bytes):
            oldest, _ = self._results.popitem(last=False)
            self._held_bytes -= self._sizes.pop(oldest)

    def hint(self, key: Hashable) -> object | None:
        """What was last noted under `key`, to start a search with; None where nothing was.

        Unlike a result, a hint need not fit what is asked now: it may make a search shorter, and among plans within the
        allowed gap lead to another one.
        """
        return self._hints.get(key)

    def note(self, key: Hashable, value: object) -> None:
        """Note a hint, in place of an earlier one."""
        self._hints[key] = value
        self._hints.move_to_end(key)
        if len(self._hints) > self._entries:
            self._hints.popitem(last=False)


class Hashed:
    """A value that is part of many keys and expensive to hash: hashed once."""

    __slots__ = ("_hash", "_value")

    def __init__(self, value: Hashable) -> None:
        self._value = value
        self._hash = hash(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hashed) and self._hash == other._hash and self._value == other._value


_SAMPLED = 4
"""Of a long sequence, so many items tell how large all are."""


def _estimated_bytes(value: object) -> int:
    """About how much memory a result takes; what it shares with others counts as its own."""
    if isinstance(value, tuple | list | dict):
        items: list[object] = [*value.items()] if isinstance(value, dict) else [*value]
        sample = items[:: max(1, len(items) // _SAMPLED)]
        each = sum(_estimated_bytes(item) for item in sample) / max(1, len(sample))
        return int(sys.getsizeof(value) + len(items) * each)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (getattr(value, field.name) for field in dataclasses.fields(value))
        return sys.getsizeof(value) + sum(_estimated_bytes(each) for each in fields)
    return sys.getsizeof(value)
