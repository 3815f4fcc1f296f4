"""Pools in this node's memory: one sparse memfd each, of which only pages that were written take memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

from medley_engine.memory.mapping import punch
from medley_engine.memory.pools import POOL_BYTES, FdKeeper, Pool, Run


class HostPool:
    """One memfd that holds many items at offsets."""

    def __init__(self, name: str, fd: int) -> None:
        self.name, self.fd = name, fd

    @classmethod
    def create(cls, name: str, capacity_bytes: int = POOL_BYTES) -> HostPool:
        """Make an empty pool. ``capacity_bytes`` bounds addresses, not memory."""
        fd = os.memfd_create(f"medley:{name}", os.MFD_CLOEXEC)
        os.ftruncate(fd, capacity_bytes)
        return cls(name, fd)

    @property
    def resident_bytes(self) -> int:
        """See :class:`medley_engine.memory.pools.Pool`."""
        return os.fstat(self.fd).st_blocks * 512

    @cached_property
    def _view(self) -> memoryview:
        return memoryview(mmap.mmap(self.fd, os.fstat(self.fd).st_size))

    def back(self, offset: int, size_bytes: int) -> None:
        """Nothing: pages come as they are written."""

    def located(self, offset: int, size_bytes: int) -> tuple[int, int]:
        """See :class:`medley_engine.memory.pools.Pool`."""
        del size_bytes
        return self.fd, offset

    @contextmanager
    def filling(self, offset: int, size_bytes: int) -> Iterator[memoryview]:
        """See :class:`medley_engine.memory.pools.Pool`."""
        yield self._view[offset : offset + size_bytes]

    def reading(self, offset: int, size_bytes: int) -> memoryview:
        """See :class:`medley_engine.memory.pools.Pool`."""
        return self._view[offset : offset + size_bytes]

    def copy_from(self, offset: int, source: Run) -> None:
        """Written as a file: pages are neither cleared nor mapped before, which takes half the time of a memmove into
        fresh ones. The interpreter lock is released meanwhile.
        """
        data, at = source.pool.reading(source.offset, source.size_bytes), 0
        while at < len(data):
            at += os.pwrite(self.fd, data[at:], offset + at)

    def punch(self, offset: int, size_bytes: int) -> None:
        """Who has it mapped reads zeros from then on."""
        punch(self.fd, offset, size_bytes)

    def close(self) -> None:
        """The memory lives as long as any process holds a descriptor or a mapping."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class HostMemory:
    """See :class:`medley_engine.memory.pools.Memory`. Pools are kept by their names."""

    sparse = True

    def __init__(self, keeper: FdKeeper, kept: Mapping[str, int]) -> None:
        self._keeper = keeper
        self.pools: dict[str, Pool] = {name: HostPool(name, fd) for name, fd in kept.items()}

    def pool(self, name: str) -> Pool:
        """See :class:`medley_engine.memory.pools.Memory`."""
        if name not in self.pools:
            made = HostPool.create(name)
            self._keeper.put(name, made.fd)
            self.pools[name] = made
        return self.pools[name]
