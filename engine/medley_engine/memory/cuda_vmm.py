"""The same pages on NVIDIA GPUs: CUDA's virtual memory management through ``cuda-bindings``.

UNTESTED: written against the published driver API (CUDA 12 and 13); no GPU was at hand. What differs from memfds:

- one physical allocation (a *handle*) per item, since CUDA maps whole handles, not offsets into a pool; sizes are
multiples of the
  granularity (2 MiB), so experts are padded to it;
- there is no MAP_FIXED: a mapped address cannot be mapped over. A new view is a new address range with the same
handles mapped a second
  time, which is what the engine does anyway; CUDA graphs captured on the old addresses must be captured again;
- handles travel as POSIX file descriptors over the same Unix socket, and a descriptor keeps its memory alive like a
memfd does, so
  the supervisor can keep them for a manager that died.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any


class CudaError(RuntimeError):
    """A driver call failed; the message names the call and CUDA's error."""


def _driver() -> Any:
    import importlib  # noqa: PLC0415

    driver: Any = importlib.import_module("cuda.bindings.driver")  # only where there is a GPU

    return driver


def _check(call: str, result: tuple[Any, ...]) -> Any:
    """Unpack ``(error, value…)``.

    Raises:
        CudaError: the error is not success.
    """
    error, *values = result
    if int(error) != 0:
        _, name = _driver().cuGetErrorName(error)
        raise CudaError(f"{call}: {name.decode() if isinstance(name, bytes) else name}")
    return values[0] if len(values) == 1 else tuple(values)


def initialise(device: int) -> None:
    """Make the device's primary context current in this thread; torch uses the same one."""
    cuda = _driver()
    _check("cuInit", cuda.cuInit(0))
    ordinal = _check("cuDeviceGet", cuda.cuDeviceGet(device))
    context = _check("cuDevicePrimaryCtxRetain", cuda.cuDevicePrimaryCtxRetain(ordinal))
    _check("cuCtxSetCurrent", cuda.cuCtxSetCurrent(context))


def _properties(device: int) -> Any:
    cuda = _driver()
    properties = cuda.CUmemAllocationProp()
    properties.type = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = device
    properties.requestedHandleTypes = cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    return properties


def granularity_bytes(device: int) -> int:
    """Size that every allocation and mapping must be a multiple of."""
    cuda = _driver()
    flag = cuda.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
    size = _check("cuMemGetAllocationGranularity", cuda.cuMemGetAllocationGranularity(_properties(device), flag))
    return int(size)


@dataclass
class CudaPages:
    """One physical allocation on one device. The manager creates or adopts it, engines adopt it."""

    handle: Any
    device: int
    size_bytes: int

    @classmethod
    def create(cls, device: int, size_bytes: int) -> CudaPages:
        """Allocate physical memory; it has no address until it is mapped."""
        unit = granularity_bytes(device)
        padded = -(-size_bytes // unit) * unit
        handle = _check("cuMemCreate", _driver().cuMemCreate(padded, _properties(device), 0))
        return cls(handle, device, padded)

    @classmethod
    def adopt(cls, fd: int, device: int, size_bytes: int) -> CudaPages:
        """Take over an allocation from another process's descriptor, which the caller still owns."""
        cuda = _driver()
        kind = cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        handle = _check("cuMemImportFromShareableHandle", cuda.cuMemImportFromShareableHandle(fd, kind))
        return cls(handle, device, size_bytes)

    def export(self) -> int:
        """A descriptor to send to another process; the caller closes it."""
        cuda = _driver()
        kind = cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        return int(_check("cuMemExportToShareableHandle", cuda.cuMemExportToShareableHandle(self.handle, kind, 0)))

    def release(self) -> None:
        """Drop this process's reference; memory is freed with the last reference, mapping and descriptor."""
        if self.handle is not None:
            _check("cuMemRelease", _driver().cuMemRelease(self.handle))
            self.handle = None


class _ArrayInterface:
    """What torch needs to make a tensor over an address (``__cuda_array_interface__``, version 3)."""

    def __init__(self, address: int, size_bytes: int, *, read_only: bool) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (address, read_only),
            "version": 3,
            "strides": None,
        }


@dataclass
class CudaRange:
    """A contiguous run of device addresses, reserved first and backed handle by handle."""

    device: int
    size_bytes: int
    address: int = field(init=False)
    _mapped: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        unit = granularity_bytes(self.device)
        self.size_bytes = -(-max(self.size_bytes, 1) // unit) * unit
        reserved = _check("cuMemAddressReserve", _driver().cuMemAddressReserve(self.size_bytes, unit, 0, 0))
        self.address = int(reserved)

    def map(self, pages: CudaPages, at: int, *, writable: bool = False) -> None:
        """Show an allocation at ``at``. Experts mapped side by side are one tensor with a stride."""
        if at < 0 or at + pages.size_bytes > self.size_bytes:
            raise ValueError(f"[{at}, {at + pages.size_bytes}) lies outside a range of {self.size_bytes} bytes")
        cuda = _driver()
        _check("cuMemMap", cuda.cuMemMap(self.address + at, pages.size_bytes, 0, pages.handle, 0))
        self._mapped.append((at, pages.size_bytes))
        access = cuda.CUmemAccessDesc()
        access.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        access.location.id = self.device
        flags = cuda.CUmemAccess_flags
        # Devices know no read-only mapping of device memory before CUDA 12.x on all architectures; ask, fall back.
        access.flags = flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE if writable else flags.CU_MEM_ACCESS_FLAGS_PROT_READ
        result = cuda.cuMemSetAccess(self.address + at, pages.size_bytes, [access], 1)
        if int(result[0]) != 0 and not writable:
            access.flags = flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
            result = cuda.cuMemSetAccess(self.address + at, pages.size_bytes, [access], 1)
        _check("cuMemSetAccess", result)

    def tensor(self, at: int = 0, size_bytes: int | None = None) -> Any:
        """Bytes of the range as a torch tensor of uint8; ``view(dtype)`` makes it what it is."""
        import torch  # noqa: PLC0415 - the manager does without

        length = self.size_bytes - at if size_bytes is None else size_bytes
        interface = _ArrayInterface(self.address + at, length, read_only=False)
        return torch.as_tensor(interface, device=f"cuda:{self.device}")

    def close(self) -> None:
        """Unmap everything and give the addresses back. Kernels that read here must have ended."""
        if not self.address:
            return
        cuda = _driver()
        for at, size in self._mapped:
            _check("cuMemUnmap", cuda.cuMemUnmap(self.address + at, size))
        self._mapped.clear()
        _check("cuMemAddressFree", cuda.cuMemAddressFree(self.address, self.size_bytes))
        self.address = 0


class CudaTransport:
    """Copies between devices of one node: peer-to-peer over NVLink or PCIe where the devices allow it, else staged by
    the driver. There is no copying between GPUs of different nodes.
    """

    def __init__(self) -> None:
        cuda = _driver()
        self._stream = _check("cuStreamCreate", cuda.cuStreamCreate(1))

    def copy(self, source: int, target: int, size_bytes: int) -> None:
        """Copy between two device addresses and wait. Unified addressing tells the driver which devices they are on."""
        cuda = _driver()
        _check("cuMemcpyAsync", cuda.cuMemcpyAsync(target, source, size_bytes, self._stream))
        _check("cuStreamSynchronize", cuda.cuStreamSynchronize(self._stream))

    def upload(self, source: memoryview, target: int) -> None:
        """Copy from host memory (a disk-copy's last step)."""
        cuda = _driver()
        data = bytes(source)
        _check("cuMemcpyHtoD", cuda.cuMemcpyHtoD(target, data, len(data)))


def close_fds(fds: list[int]) -> None:
    """Close descriptors after they were sent or adopted."""
    for fd in fds:
        os.close(fd)
