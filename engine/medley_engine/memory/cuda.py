"""Pools in the memory of GPUs: one allocation per item, one for all KV blocks of a GPU.

The manager keeps every allocation mapped, to copy into it, and its descriptor with the supervisor, under
``POOL@OFFSET+SIZE``. A descriptor keeps memory alive, so it is dropped there when a run is punched.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from medley_engine.memory.cuda_driver import call, ordinal_of, readers_of, use
from medley_engine.memory.cuda_vmm import CudaPages, CudaRange
from medley_engine.memory.pools import FdKeeper, Pool, Run

_STREAM_NON_BLOCKING = 1


def copy_between(target: int, target_device: int, source: int, source_device: int, size_bytes: int) -> None:
    """Copy between addresses of two GPUs, or of one, and wait: peer to peer where these can reach each other, else
    the driver goes through the node's memory. There is no copying between GPUs of different nodes.
    """
    far = use(source_device)
    near = use(target_device)
    stream = call("cuStreamCreate", _STREAM_NON_BLOCKING)
    try:
        call("cuMemcpyPeerAsync", target, near, source, far, size_bytes, stream)
        call("cuStreamSynchronize", stream)
    finally:
        call("cuStreamDestroy", stream)


@dataclass(frozen=True)
class _Segment:
    """One allocation at its place in a pool."""

    fd: int
    shown: CudaRange


class CudaPool:
    """Allocations on one GPU, by the offsets that the manager's book gives them."""

    def __init__(self, name: str, device: int, keeper: FdKeeper) -> None:
        self.name, self.device = name, device
        self._keeper = keeper
        self._segments: dict[int, _Segment] = {}

    @property
    def resident_bytes(self) -> int:
        """See :class:`medley_engine.memory.pools.Pool`."""
        return sum(segment.shown.size_bytes for segment in self._segments.values())

    def _kept_name(self, offset: int, size_bytes: int) -> str:
        return f"{self.name}@{offset}+{size_bytes}"

    def back(self, offset: int, size_bytes: int) -> None:
        """Allocate a run as one handle; its size is rounded up to the granularity."""
        if offset in self._segments:
            return
        use(self.device)
        pages = CudaPages.create(self.device, size_bytes)
        try:
            fd = pages.export()
            self._keeper.put(self._kept_name(offset, pages.size_bytes), fd)
            self._hold(offset, fd, pages)
        finally:
            pages.release()

    def adopt(self, offset: int, size_bytes: int, fd: int) -> None:
        """Take over an allocation of a manager that died; the descriptor is the pool's from now on."""
        use(self.device)
        pages = CudaPages.adopt(fd, size_bytes)
        try:
            self._hold(offset, fd, pages)
        finally:
            pages.release()

    def _hold(self, offset: int, fd: int, pages: CudaPages) -> None:
        shown = CudaRange(readers_of(self.device), pages.size_bytes)
        shown.map_pages(pages, 0, writable=True)
        self._segments[offset] = _Segment(fd, shown)

    def _at(self, offset: int, size_bytes: int) -> int:
        """Address of a run, which must lie in one allocation."""
        starts = sorted(self._segments)
        place = bisect.bisect_right(starts, offset) - 1
        shown = self._segments[starts[place]].shown if place >= 0 else None
        if shown is None or offset + size_bytes > starts[place] + shown.size_bytes:
            raise ValueError(f"{self.name}: nothing is allocated at [{offset}, {offset + size_bytes})")
        return shown.address + offset - starts[place]

    def located(self, offset: int, size_bytes: int) -> tuple[int, int]:
        """A run is a whole allocation, so the offset in its descriptor is always 0."""
        del size_bytes
        return self._segments[offset].fd, 0

    @contextmanager
    def filling(self, offset: int, size_bytes: int) -> Iterator[memoryview]:
        """A buffer in the node's memory, uploaded at the end."""
        staged = bytearray(size_bytes)
        yield memoryview(staged)
        self._upload(offset, staged)

    def _upload(self, offset: int, data: bytearray | memoryview) -> None:
        use(self.device)
        call("cuMemcpyHtoD", self._at(offset, len(data)), data, len(data))

    def reading(self, offset: int, size_bytes: int) -> memoryview:
        """A copy in the node's memory."""
        use(self.device)
        staged = bytearray(size_bytes)
        call("cuMemcpyDtoH", staged, self._at(offset, size_bytes), size_bytes)
        return memoryview(staged)

    def copy_from(self, offset: int, source: Run) -> None:
        """From another GPU without the node's memory between, where the two can reach each other."""
        if isinstance(source.pool, CudaPool):
            far = source.pool._at(source.offset, source.size_bytes)
            near = self._at(offset, source.size_bytes)
            copy_between(near, self.device, far, source.pool.device, source.size_bytes)
        else:
            self._upload(offset, source.pool.reading(source.offset, source.size_bytes))

    def punch(self, offset: int, size_bytes: int) -> None:
        """Let go of the allocations in a run. A rank that has one mapped keeps it until it unmaps it."""
        gone = [start for start in self._segments if offset <= start < offset + size_bytes]
        if not gone:
            return
        names = []
        use(self.device)
        for start in gone:
            segment = self._segments.pop(start)
            names.append(self._kept_name(start, segment.shown.size_bytes))
            segment.shown.close()
            os.close(segment.fd)
        self._keeper.drop(names)

    def close(self) -> None:
        """Unmap all; memory lives on with the descriptors that are kept elsewhere."""
        for segment in self._segments.values():
            segment.shown.close()
            os.close(segment.fd)
        self._segments.clear()


class CudaMemory:
    """See :class:`medley_engine.memory.pools.Memory`. Rank r's domain ``device{r}`` is a GPU."""

    sparse = False

    def __init__(self, keeper: FdKeeper, kept: Mapping[str, int]) -> None:
        self._keeper = keeper
        self.pools: dict[str, Pool] = {}
        self._made: dict[str, CudaPool] = {}
        for name, fd in sorted(kept.items()):
            pool, _, place = name.rpartition("@")
            offset, _, size = place.partition("+")
            self._pool(pool).adopt(int(offset), int(size), fd)

    def _pool(self, name: str) -> CudaPool:
        if name not in self._made:
            domain = name.split("/")[1]
            if not domain.startswith("device"):
                raise ValueError(f"{name}: GPUs have a memory each; {domain} is none of theirs")
            made = CudaPool(name, ordinal_of(int(domain.removeprefix("device"))), self._keeper)
            self._made[name] = self.pools[name] = made
        return self._made[name]

    def pool(self, name: str) -> Pool:
        """See :class:`medley_engine.memory.pools.Memory`."""
        return self._pool(name)
