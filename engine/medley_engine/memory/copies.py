"""The part of the manager's book that says which items lie where, and the memory behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medley_engine.extents import Extent, ExtentAllocator
from medley_engine.layout import Layout
from medley_engine.memory.pools import POOL_BYTES, Memory
from medley_engine.memory.records import Copy


class Copies(dict[tuple[str, str], Copy]):
    """Copies by (domain, item). It decides nothing: whether one is wanted is the store's to say."""

    def __init__(self, layout: Layout, memory: Memory) -> None:
        super().__init__()
        self._layout, self._memory = layout, memory
        self._allocators: dict[str, ExtentAllocator] = {}
        self._freed: list[tuple[str, Extent]] = []

    def _allocator(self, domain: str) -> ExtentAllocator:
        if domain not in self._allocators:
            taken = [copy.extent for (where, _), copy in self.items() if where == domain]
            self._allocators[domain] = ExtentAllocator(POOL_BYTES, self._layout.page_bytes, taken)
        return self._allocators[domain]

    def reserve(self, domain: str, item: str) -> Copy:
        """Find a place for a copy that will be filled; a half-filled one of a broken attempt is taken over."""
        copy = self.get((domain, item))
        if copy is None:
            copy = Copy(self._allocator(domain).allocate(self._layout.items[item].size_bytes), valid=False)
            self[domain, item] = copy
        return copy

    def free(self, keys: Iterable[tuple[str, str]]) -> int:
        """Strike copies off the book; returns their bytes. Their memory goes with :meth:`punch_freed`, which must
        follow before anything is reserved.
        """
        freed = 0
        for key in keys:
            allocator = self._allocator(key[0])
            copy = self.pop(key)
            allocator.free(copy.extent)
            self._freed.append((f"weights/{key[0]}", copy.extent))
            freed += copy.extent.size
        return freed

    def drop_half_filled(self) -> None:
        """Strike off what no thread goes on filling."""
        self.free(sorted(key for key, copy in self.items() if not copy.valid))

    def punch_freed(self) -> None:
        """Give the memory of what was struck off back to the system. Only once that is written down: a manager that
        starts anew must not take empty pages for weights.
        """
        for pool, extent in self._freed:
            self._memory.pool(pool).punch(extent.offset, extent.size)
        self._freed.clear()

    def punch_strays(self) -> None:
        """Give back what a predecessor had struck off and did not live to give back."""
        for name, pool in sorted(self._memory.pools.items()):
            kind, _, domain = name.partition("/")
            if kind == "weights":
                at = 0
                ends = sorted((copy.extent.offset, copy.extent.end) for (d, _), copy in self.items() if d == domain)
                for start, end in [*ends, (POOL_BYTES, POOL_BYTES)]:
                    if start > at:
                        pool.punch(at, start - at)
                    at = end

    def whole(self, domain: str, item: str) -> bool:
        """Whether all bytes of an item lie in a domain."""
        copy = self.get((domain, item))
        return copy is not None and copy.valid

    def domains_of(self, item: str) -> list[str]:
        """Domains that have a whole copy."""
        pools = sorted(name for name in self._memory.pools if name.startswith("weights/"))
        return [domain for name in pools if self.whole(domain := name.removeprefix("weights/"), item)]

    def residency(self) -> Mapping[str, set[str]]:
        """For each item, the domains that have a whole copy."""
        found: dict[str, set[str]] = {}
        for (domain, item), copy in self.items():
            if copy.valid:
                found.setdefault(item, set()).add(domain)
        return found

    def dump(self) -> list[list[Any]]:
        """As JSON."""
        return [[d, i, c.extent.offset, c.extent.size, c.valid] for (d, i), c in sorted(self.items())]

    def restore(self, dumped: Sequence[Sequence[Any]]) -> None:
        """From :meth:`dump`."""
        for domain, item, offset, size, valid in dumped:
            self[domain, item] = Copy(Extent(offset, size), valid)
