"""A small state that survives SIGKILL of its writer: two slots in a memfd, written in turn, the newer whole one wins.

Shared memory keeps what a killed process stored, so no disk is involved; the descriptor is kept by the supervisor.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from typing import Any

_HEAD = struct.Struct("<QQI")  # sequence, length, checksum
_FIRST_BYTES = 1 << 16


class Journal:
    """Latest state as JSON. ``load`` gives None for a new journal."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._sequence = 0

    @classmethod
    def create(cls, name: str) -> Journal:
        """Make an empty one."""
        fd = os.memfd_create(f"medley:journal:{name}", os.MFD_CLOEXEC)
        os.ftruncate(fd, 2 * _FIRST_BYTES)
        return cls(fd)

    def load(self) -> Any:
        """The newest state that was written wholly, or None."""
        size = os.fstat(self.fd).st_size // 2
        best: tuple[int, bytes] | None = None
        for slot in (0, 1):
            sequence, length, checksum = _HEAD.unpack(os.pread(self.fd, _HEAD.size, slot * size))
            if not sequence or length > size - _HEAD.size:
                continue
            body = os.pread(self.fd, length, slot * size + _HEAD.size)
            if len(body) == length and zlib.crc32(body) == checksum and (best is None or sequence > best[0]):
                best = sequence, body
        if best is None:
            return None
        self._sequence = best[0]
        return json.loads(best[1])

    def store(self, state: Any) -> None:
        """Write a state beside the last one."""
        body = json.dumps(state, separators=(",", ":")).encode()
        size = os.fstat(self.fd).st_size // 2
        if _HEAD.size + len(body) > size:
            self._grow(len(body))
            size = os.fstat(self.fd).st_size // 2
        self._sequence += 1
        slot = self._sequence % 2 * size
        # The checksum covers the body only: a torn header fails it as well, since length and checksum then disagree.
        os.pwrite(self.fd, body, slot + _HEAD.size)
        os.pwrite(self.fd, _HEAD.pack(self._sequence, len(body), zlib.crc32(body)), slot)

    def _grow(self, body_bytes: int) -> None:
        """Double the slots until the body fits. Slot 0 keeps its place, so the newest state is put there first."""
        last = self.load()
        size = os.fstat(self.fd).st_size // 2
        if last is not None and self._sequence % 2:
            self.store(last)
        while size < _HEAD.size + body_bytes:
            size *= 2
        os.ftruncate(self.fd, 2 * size)


def open_journals(fds: Mapping[str, int]) -> tuple[Journal, Journal, bool]:
    """The two journals (pages; holders), new or taken over. The flag tells whether they are new."""
    if "journal/pages" in fds and "journal/holders" in fds:
        return Journal(fds["journal/pages"]), Journal(fds["journal/holders"]), False
    return Journal.create("pages"), Journal.create("holders"), True
