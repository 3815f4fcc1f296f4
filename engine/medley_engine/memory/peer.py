"""Copies between memories: by whoever can reach both, or over a link by gloo."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Protocol

from medley_engine.memory.pools import Run


class PeerTransport(Protocol):
    """Moves the bytes of one item."""

    def copy(self, source: Run, target: Run) -> None:
        """Copy one run to another of the same size; returns when it is there."""


class DirectTransport:
    """Both memories can be reached from here: the processor copies, or a GPU from its peer."""

    def copy(self, source: Run, target: Run) -> None:
        """See :class:`PeerTransport`."""
        target.pool.copy_from(target.offset, source)


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

    def copy(self, source: Run, target: Run) -> None:
        """See :class:`PeerTransport`."""
        with target.pool.filling(target.offset, target.size_bytes) as view:
            received = self._receiving.submit(self._receiver.receive, view)
            self._sender.send(source.pool.reading(source.offset, source.size_bytes))
            received.result()
