"""Copies between memories: within one node by the processor, or over a link by gloo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from medley_engine.memory.mapping import Pool


@dataclass(frozen=True)
class Target:
    """Where an item goes: a run of a pool, and a way to map it."""

    pool: Pool
    offset: int
    view: Callable[[], memoryview]


class PeerTransport(Protocol):
    """Moves the bytes of one item."""

    def copy(self, source: memoryview, target: Target) -> None:
        """Copy ``source`` (which may be read-only) to ``target``."""


class MemoryTransport:
    """Both memories belong to this node. The target is written as a file: its pages are neither cleared nor mapped
    before, which takes half the time of a memmove into fresh pages.
    """

    def copy(self, source: memoryview, target: Target) -> None:
        """See :class:`PeerTransport`."""
        target.pool.write(target.offset, source)


class GlooEnd:
    """One end of a pair that exchanges bytes over gloo, in whatever processes the two are.

    It needs torch, which the manager otherwise does without.
    """

    def __init__(self, store: Any, rank: int, timeout_s: float = 60.0, chunk_bytes: int = 16 * 1024 * 1024) -> None:
        import torch.distributed  # noqa: PLC0415

        dist: Any = torch.distributed
        options = dist.ProcessGroupGloo._Options()
        options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        options._timeout = timedelta(seconds=timeout_s)
        self._torch, self._rank, self._chunk = torch, rank, chunk_bytes
        self._group = dist.ProcessGroupGloo(dist.PrefixStore("peer", store), rank, 2, options)

    def _chunks(self, view: memoryview) -> Iterator[Any]:
        for start in range(0, len(view), self._chunk):
            yield self._torch.frombuffer(view[start : start + self._chunk], dtype=self._torch.uint8)

    def send(self, source: memoryview) -> None:
        """Send bytes to the other end, which must receive as many."""
        if source.readonly:
            source = memoryview(bytearray(source))
        for chunk in self._chunks(source):
            self._group.send([chunk], 1 - self._rank, 0).wait()

    def receive(self, target: memoryview) -> None:
        """Fill a view with what the other end sends."""
        for chunk in self._chunks(target):
            self._group.recv([chunk], 1 - self._rank, 0).wait()


class GlooTransport:
    """Sends through gloo as two nodes would, with both ends in this process, connected over the loopback."""

    def __init__(self) -> None:
        import torch.distributed  # noqa: PLC0415

        dist: Any = torch.distributed
        store = dist.HashStore()
        with ThreadPoolExecutor(2) as threads:
            # Each end waits for the other.
            self._sender, self._receiver = threads.map(lambda rank: GlooEnd(store, rank), (0, 1))
        self._receiving = ThreadPoolExecutor(1, thread_name_prefix="gloo-receive")

    def copy(self, source: memoryview, target: Target) -> None:
        """See :class:`PeerTransport`."""
        received = self._receiving.submit(self._receiver.receive, target.view())
        self._sender.send(source)
        received.result()
