"""Pages of GPUs and ranges of device addresses, by the driver's virtual memory management. What differs from memfds:

- one physical allocation (a *handle*) per item, since the driver maps whole handles, not offsets into a pool; sizes are
  multiples of the granularity (2 MiB), so experts are padded to it;
- a mapped address cannot be mapped over: it is unmapped first, so nothing may read there meanwhile. Ranks do it between
  steps;
- handles travel as POSIX file descriptors over the same Unix sockets, and a descriptor keeps its memory alive like a
  memfd does, so the supervisor can keep them for a manager that died.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from medley_engine.memory.cuda_driver import CudaError, call, driver, use


def _properties(device: int) -> Any:
    cuda = driver()
    properties = cuda.CUmemAllocationProp()
    properties.type = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = device
    properties.requestedHandleTypes = cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    return properties


def granularity_bytes(device: int) -> int:
    """Size that every allocation and mapping on a device must be a multiple of."""
    use(device)
    flag = driver().CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
    return int(call("cuMemGetAllocationGranularity", _properties(device), flag))


def padded(size_bytes: int, device: int) -> int:
    """A size rounded up to what can be allocated and mapped."""
    unit = granularity_bytes(device)
    return -(-max(size_bytes, 1) // unit) * unit


def _descriptor_kind() -> Any:
    return driver().CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


@dataclass
class CudaPages:
    """One physical allocation; it has no address until it is mapped."""

    handle: Any
    size_bytes: int

    @classmethod
    def create(cls, device: int, size_bytes: int) -> CudaPages:
        """Allocate memory of a device, rounded up to its granularity.

        Raises:
            CudaOutOfMemoryError: the device is full.
        """
        size = padded(size_bytes, device)
        return cls(call("cuMemCreate", size, _properties(device), 0), size)

    @classmethod
    def adopt(cls, fd: int, size_bytes: int) -> CudaPages:
        """Take over an allocation of this size from another process's descriptor, which the caller still owns."""
        return cls(call("cuMemImportFromShareableHandle", fd, _descriptor_kind()), size_bytes)

    def export(self) -> int:
        """A descriptor to send to another process; the caller closes it."""
        return int(call("cuMemExportToShareableHandle", self.handle, _descriptor_kind(), 0))

    def release(self) -> None:
        """Drop this process's handle; memory is freed with the last handle, mapping and descriptor."""
        if self.handle is not None:
            call("cuMemRelease", self.handle)
            self.handle = None


@dataclass
class CudaRange:
    """A contiguous run of addresses, reserved first and backed allocation by allocation. ``readers``: the GPUs that
    use it; the first one's context is used.
    """

    readers: Sequence[int]
    size_bytes: int
    address: int = field(init=False)
    _mapped: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unit = granularity_bytes(self.readers[0])
        self.size_bytes = padded(self.size_bytes, self.readers[0])
        self.address = int(call("cuMemAddressReserve", self.size_bytes, unit, 0, 0))

    def map(
        self, fd: int, offset: int, at: int, size_bytes: int, *, writable: bool = False, populate: bool = False
    ) -> None:
        """Show an allocation, given by its descriptor, at ``at``. Experts side by side are one tensor with a stride.

        Raises:
            ValueError: it does not fit, or is no whole allocation.
        """
        del populate  # The driver fills page tables as it maps.
        if offset:
            raise ValueError(f"an allocation is mapped whole, not from offset {offset}")
        use(self.readers[0])
        pages = CudaPages.adopt(fd, size_bytes)
        try:
            self.map_pages(pages, at, writable=writable)
        finally:
            pages.release()

    def map_pages(self, pages: CudaPages, at: int, *, writable: bool) -> None:
        """As :meth:`map`, for an allocation at hand."""
        if at < 0 or at + pages.size_bytes > self.size_bytes:
            raise ValueError(f"[{at}, {at + pages.size_bytes}) lies outside a range of {self.size_bytes} bytes")
        if at in self._mapped:
            call("cuMemUnmap", self.address + at, self._mapped.pop(at))
        call("cuMemMap", self.address + at, pages.size_bytes, 0, pages.handle, 0)
        self._mapped[at] = pages.size_bytes
        flags = driver().CUmemAccess_flags
        if not writable:
            try:
                self._allow(at, pages.size_bytes, flags.CU_MEM_ACCESS_FLAGS_PROT_READ)
            except CudaError:
                # Not every driver can protect a device's memory from the device itself.
                writable = True
        if writable:
            self._allow(at, pages.size_bytes, flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE)

    def _allow(self, at: int, size_bytes: int, flags: Any) -> None:
        cuda, allowed = driver(), []
        for reader in self.readers:
            access = cuda.CUmemAccessDesc()
            access.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
            access.location.id = reader
            access.flags = flags
            allowed.append(access)
        call("cuMemSetAccess", self.address + at, size_bytes, allowed, len(allowed))

    def close(self) -> None:
        """Unmap everything and give the addresses back. Kernels that read here must have ended."""
        if not self.address:
            return
        use(self.readers[0])
        for at, size in self._mapped.items():
            call("cuMemUnmap", self.address + at, size)
        self._mapped.clear()
        call("cuMemAddressFree", self.address, self.size_bytes)
        self.address = 0
