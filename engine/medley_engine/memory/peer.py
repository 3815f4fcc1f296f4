"""Copies between memories: within one node by the processor, or over a link by gloo (NCCL where both ends are GPUs)."""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

from medley_engine.memory.mapping import copy_memory


class PeerTransport(Protocol):
    """Moves the bytes of one item."""

    def copy(self, source: memoryview, target: memoryview) -> None:
        """Copy ``source`` to ``target`` (same length; the source may be read-only)."""


def address_of(view: memoryview) -> int:
    """Address of a view's first byte."""
    if view.readonly:
        raise ValueError("the address of a read-only view cannot be taken")
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


class MemoryTransport:
    """Both memories are mapped here: one memmove, outside the interpreter lock."""

    def copy(self, source: memoryview, target: memoryview) -> None:
        """See :class:`PeerTransport`."""
        if source.readonly:
            target[:] = source
        else:
            copy_memory(address_of(target), address_of(source), len(source))


class GlooTransport:
    """Sends through gloo as two nodes would: a pair of endpoints in this process, connected over the loopback.

    It needs torch, which the manager otherwise does without, and exists so that the networked path is exercised on
    one node.
    """

    def __init__(self, chunk_bytes: int = 16 * 1024 * 1024) -> None:
        import threading  # noqa: PLC0415
        from datetime import timedelta  # noqa: PLC0415

        import torch.distributed  # noqa: PLC0415

        dist: Any = torch.distributed
        self._torch = torch
        self._chunk = chunk_bytes
        store = dist.HashStore()
        made: dict[int, Any] = {}

        def make(rank: int) -> None:
            made[rank] = dist.ProcessGroupGloo(dist.PrefixStore("peer", store), rank, 2, timedelta(seconds=60))

        threads = [threading.Thread(target=make, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._ends = made

    def copy(self, source: memoryview, target: memoryview) -> None:
        """See :class:`PeerTransport`."""
        torch = self._torch
        if source.readonly:
            source = memoryview(bytearray(source))
        for start in range(0, len(source), self._chunk):
            sent = torch.frombuffer(source[start : start + self._chunk], dtype=torch.uint8)
            received = torch.frombuffer(target[start : start + self._chunk], dtype=torch.uint8)
            incoming = self._ends[1].recv([received], 0, 0)
            self._ends[0].send([sent], 1, 0).wait()
            incoming.wait()
