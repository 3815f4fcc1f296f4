"""Allocation of page runs inside one pooled memory object. Pure: it hands out numbers, others touch memory."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


class OutOfPagesError(MemoryError):
    """The pool's capacity does not hold another run of this size."""


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """A run of bytes in a pool, both numbers multiples of the page."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """First byte after the run."""
        return self.offset + self.size


class ExtentAllocator:
    """First-fit allocator over ``[0, capacity)`` that merges neighbours when they are freed.

    First fit keeps the pool dense at its start, so the file behind it stays short.
    """

    def __init__(self, capacity_bytes: int, page_bytes: int, taken: Iterable[Extent] = ()) -> None:
        if page_bytes <= 0 or capacity_bytes % page_bytes:
            raise ValueError(f"capacity {capacity_bytes} is not a multiple of the page {page_bytes}")
        self._page = page_bytes
        self._free: list[Extent] = []
        self._taken: dict[int, int] = {}
        position = 0
        for extent in sorted(taken):
            self._check(extent.offset)
            self._check(extent.size)
            if extent.offset < position or extent.end > capacity_bytes:
                raise ValueError(f"{extent} overlaps another or lies outside the pool")
            if extent.offset > position:
                self._free.append(Extent(position, extent.offset - position))
            self._taken[extent.offset] = extent.size
            position = extent.end
        if position < capacity_bytes:
            self._free.append(Extent(position, capacity_bytes - position))

    def _check(self, value: int) -> None:
        if value % self._page:
            raise ValueError(f"{value} is not a multiple of the page {self._page}")

    @property
    def taken(self) -> Mapping[int, int]:
        """Size by offset of every run handed out."""
        return self._taken

    @property
    def taken_bytes(self) -> int:
        """Sum of all runs handed out."""
        return sum(self._taken.values())

    @property
    def free_runs(self) -> tuple[Extent, ...]:
        """Free runs in order; no two of them touch."""
        return tuple(self._free)

    def allocate(self, size_bytes: int) -> Extent:
        """Take the first run that is large enough.

        Raises:
            OutOfPagesError: no free run is large enough.
        """
        if size_bytes <= 0:
            raise ValueError(f"cannot allocate {size_bytes} bytes")
        self._check(size_bytes)
        for index, run in enumerate(self._free):
            if run.size >= size_bytes:
                if run.size == size_bytes:
                    del self._free[index]
                else:
                    self._free[index] = Extent(run.offset + size_bytes, run.size - size_bytes)
                self._taken[run.offset] = size_bytes
                return Extent(run.offset, size_bytes)
        raise OutOfPagesError(f"no free run of {size_bytes} bytes")

    def free(self, extent: Extent) -> None:
        """Give a run back. It must be exactly one that was handed out."""
        if self._taken.get(extent.offset) != extent.size:
            raise ValueError(f"{extent} was not handed out")
        del self._taken[extent.offset]
        index = bisect.bisect(self._free, extent)
        start, end = extent.offset, extent.end
        if index < len(self._free) and self._free[index].offset == end:
            end = self._free.pop(index).end
        if index and self._free[index - 1].end == start:
            start = self._free.pop(index - 1).offset
            index -= 1
        self._free.insert(index, Extent(start, end - start))
