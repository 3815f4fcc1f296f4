"""Linux memory primitives: virtual ranges into which pages of files are mapped one item at a time.

Python's ``mmap`` takes no address, so ranges are reserved and filled through ``libc.mmap`` with ``MAP_FIXED``. A
range that is in use is never given other bytes under its reader: a new view is built beside the old one, and the old
one closed when nobody reads it. The same bytes from other pages may take their place at any time: ``MAP_FIXED``
replaces a mapping whole, and a reader that faults meanwhile waits for the new one.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from dataclasses import dataclass, field

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
_LIBC.memmove.restype = ctypes.c_void_p
_LIBC.memmove.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_MAP_FIXED, _MAP_NORESERVE, _MAP_POPULATE = 0x10, 0x4000, 0x8000
_PROT_NONE = 0
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 0x01, 0x02
_MADV_HUGEPAGE = 14
_FAILED = ctypes.c_void_p(-1).value

PAGE_BYTES = mmap.PAGESIZE
HUGE_PAGE_BYTES = 2 * 1024 * 1024


def _fail(call: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}")


def copy_memory(target: int, source: int, size_bytes: int) -> None:
    """Copy between two addresses of this process; the interpreter lock is released meanwhile."""
    _LIBC.memmove(target, source, size_bytes)


def punch(fd: int, offset: int, size_bytes: int) -> None:
    """Give the memory of a run of a file back to the system; it reads as zeros from then on."""
    if _LIBC.fallocate(fd, _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, offset, size_bytes) != 0:
        raise _fail("fallocate(PUNCH_HOLE)")


@dataclass
class VirtualRange:
    """A contiguous run of addresses, reserved first and then backed piece by piece."""

    size_bytes: int
    address: int = field(init=False)

    def __post_init__(self) -> None:
        self.size_bytes = -(-max(self.size_bytes, 1) // PAGE_BYTES) * PAGE_BYTES
        # Over-reserve so that the range can start on a huge page: the kernel then uses huge pages where it may.
        total = self.size_bytes + HUGE_PAGE_BYTES
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        base = _LIBC.mmap(None, total, _PROT_NONE, flags, -1, 0)
        if base == _FAILED or base is None:
            raise _fail("mmap(reserve)")
        self.address = -(-base // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        if self.address > base:
            _LIBC.munmap(base, self.address - base)
        tail = base + total - (self.address + self.size_bytes)
        if tail:
            _LIBC.munmap(self.address + self.size_bytes, tail)

    def _fixed(self, at: int, size_bytes: int, protection: int, flags: int, *, fd: int, offset: int) -> None:
        if at < 0 or at + size_bytes > self.size_bytes:
            raise ValueError(f"[{at}, {at + size_bytes}) lies outside a range of {self.size_bytes} bytes")
        got = _LIBC.mmap(self.address + at, size_bytes, protection, flags | _MAP_FIXED, fd, offset)
        if got != self.address + at:
            raise _fail("mmap(MAP_FIXED)")

    def map(
        self, fd: int, offset: int, at: int, size_bytes: int, *, writable: bool = False, populate: bool = False
    ) -> None:
        """Show ``size_bytes`` of a pool from ``offset`` at ``at``; read-only unless told, so a stray write faults."""
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._fixed(
            at, size_bytes, protection, mmap.MAP_SHARED | (_MAP_POPULATE if populate else 0), fd=fd, offset=offset
        )

    def back_privately(self, at: int, size_bytes: int) -> None:
        """Back a part with private memory of this process (what an engine without shared pages does)."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._fixed(at, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd=-1, offset=0)

    def advise_huge(self) -> None:
        """Ask for huge pages; a kernel that cannot give them is no error."""
        _LIBC.madvise(self.address, self.size_bytes, _MADV_HUGEPAGE)

    def buffer(self, at: int = 0, size_bytes: int | None = None) -> ctypes.Array[ctypes.c_char]:
        """The range as an object with the buffer protocol; valid until :meth:`close`."""
        length = self.size_bytes - at if size_bytes is None else size_bytes
        return (ctypes.c_char * length).from_address(self.address + at)

    def close(self) -> None:
        """Unmap everything. Reading through an old buffer afterwards is a fault, so drop the views first."""
        if self.address:
            _LIBC.munmap(self.address, self.size_bytes)
            self.address = 0
