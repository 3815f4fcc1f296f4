"""Memory in which items and KV blocks live: what the manager and the ranks ask of it, whatever it is made of.

There are two kinds: pages of this node's memory in sparse files (:mod:`medley_engine.memory.host`), and memory of GPUs
through the driver's virtual memory management (:mod:`medley_engine.memory.cuda`). To both, a *pool* is a space of
offsets in which runs are backed with memory, filled, located for other processes to map, and punched out again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

POOL_BYTES = 1 << 40
"""Offsets of a pool; memory is taken only for what is backed or written."""


class FdKeeper(Protocol):
    """Keeps descriptors, and with them memory, while the manager is dead."""

    def put(self, name: str, fd: int) -> None:
        """Keep a duplicate under this name."""

    def drop(self, names: Sequence[str]) -> None:
        """Close what is kept under these names; names that are not kept are no error."""


class NoKeeper:
    """Keeps nothing: where nobody is to come after this manager."""

    def put(self, name: str, fd: int) -> None:
        """See :class:`FdKeeper`."""

    def drop(self, names: Sequence[str]) -> None:
        """See :class:`FdKeeper`."""


class Pool(Protocol):
    """Runs of bytes in one memory. Offsets and sizes are in bytes, multiples of the layout's page."""

    @property
    def name(self) -> str:
        """``weights/DOMAIN`` or ``kv/DOMAIN/SHARD``."""

    @property
    def resident_bytes(self) -> int:
        """Memory that the pool takes now."""

    def back(self, offset: int, size_bytes: int) -> None:
        """Make sure that a run can be written; one that can be already stays as it is.

        Raises:
            MemoryError: there is no memory left for it.
        """

    def located(self, offset: int, size_bytes: int) -> tuple[int, int]:
        """Where another process finds a run: a descriptor, which stays the pool's, and the offset in it."""

    def filling(self, offset: int, size_bytes: int) -> AbstractContextManager[memoryview]:
        """A buffer whose bytes are the run's once the context ends."""

    def reading(self, offset: int, size_bytes: int) -> memoryview:
        """The run's bytes, to be read before it changes; perhaps a copy."""

    def copy_from(self, offset: int, source: Run) -> None:
        """Copy a run, which may lie in another memory, to ``offset``; returns when it is there."""

    def punch(self, offset: int, size_bytes: int) -> None:
        """Give the memory of everything in a run back. Who has it mapped keeps it, or reads zeros."""

    def close(self) -> None:
        """Drop this process's hold on it."""


@dataclass(frozen=True)
class Run:
    """A run of bytes of a pool."""

    pool: Pool
    offset: int
    size_bytes: int

    def part(self, at: int, most_bytes: int) -> Run:
        """From ``at`` on so many bytes, or what there is."""
        return Run(self.pool, self.offset + at, min(most_bytes, self.size_bytes - at))


class Memory(Protocol):
    """Pools of one kind, of all domains. ``sparse``: what is not backed can be located and mapped all the same, and
    comes to be as it is written.
    """

    sparse: bool

    @property
    def pools(self) -> Mapping[str, Pool]:
        """Pools that were used, by name."""

    def pool(self, name: str) -> Pool:
        """The pool of this name, made on first use."""


class Range(Protocol):
    """A contiguous run of a process's addresses, into which runs of pools are mapped."""

    @property
    def address(self) -> int:
        """Its first byte."""

    @property
    def size_bytes(self) -> int:
        """Its length, whole pages."""

    def map(
        self, fd: int, offset: int, at: int, size_bytes: int, *, writable: bool = False, populate: bool = False
    ) -> None:
        """Show what was located as (``fd``, ``offset``) at ``at``, in place of what is shown there."""

    def close(self) -> None:
        """Unmap everything and give the addresses back. Nothing may read there any more."""
