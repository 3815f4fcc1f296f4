# ruff: noqa: N802 - the names are the driver's
"""A FAKE of the CUDA driver: the functions of ``cuda.bindings.driver`` that the engine calls, over memfds of this node.

It is no GPU and says nothing about one's speed or its driver's moods. It proves that the engine calls the driver in an
order and with values that the published rules allow, since it is at least as strict as they are:

- sizes, addresses and alignments must be multiples of 2 MiB; an allocation is mapped whole;
- a mapped address is not mapped over; memory cannot be touched before ``cuMemSetAccess`` (its pages are protected, so
  a stray read is a fault), nor by a device that is no peer;
- an address range is freed whole, and only when nothing is mapped in it; handles and mappings are counted, and memory
  is freed with the last of them (and of the descriptors);
- nothing works before ``cuInit``, copies need a context in their thread, and a forked child has to begin anew;
- copies on a stream are not done before somebody waits for them.

Structures and enumerations are those of ``cuda-bindings``. Settings come from the environment:
``FAKE_CUDA_DEVICES`` (4), ``FAKE_CUDA_DEVICE_BYTES`` (2^40), ``FAKE_CUDA_PEERS`` (1).
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cuda.bindings.driver import (
    CUcontext,
    CUdevice,
    CUdeviceptr,
    CUmemAccess_flags,
    CUmemAccessDesc,
    CUmemAllocationGranularity_flags,
    CUmemAllocationHandleType,
    CUmemAllocationProp,
    CUmemAllocationType,
    CUmemGenericAllocationHandle,
    CUmemLocationType,
    CUresult,
    CUstream,
)

__all__ = [
    "CUmemAccessDesc",
    "CUmemAccess_flags",
    "CUmemAllocationGranularity_flags",
    "CUmemAllocationHandleType",
    "CUmemAllocationProp",
    "CUmemAllocationType",
    "CUmemLocationType",
    "CUresult",
]

UNIT = 2 * 1024 * 1024
NAME = "FAKE-cuda-memory"
_PROT_NONE, _MAP_FIXED, _MAP_NORESERVE = 0, 0x10, 0x4000
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_LIBC.memmove.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

_OK = CUresult.CUDA_SUCCESS
_BAD = CUresult.CUDA_ERROR_INVALID_VALUE


@dataclass
class _Allocation:
    """Physical memory of a device, and how many handles and mappings this process has of it."""

    fd: int
    device: int
    size: int
    handles: int = 0
    mappings: int = 0


@dataclass
class _Mapping:
    allocation: _Allocation
    size: int
    protection: int = _PROT_NONE


@dataclass
class _State:
    pid: int
    numbers: Any = field(default_factory=lambda: itertools.count(1))
    handles: dict[int, _Allocation] = field(default_factory=dict)
    reserved: dict[int, int] = field(default_factory=dict)
    mapped: dict[int, _Mapping] = field(default_factory=dict)
    streams: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    contexts: dict[int, int] = field(default_factory=dict)


_lock = threading.RLock()
_state: _State | None = None
_thread = threading.local()


def _devices() -> int:
    return int(os.environ.get("FAKE_CUDA_DEVICES", "4"))


def _now() -> _State | None:
    """The driver's state, unless it was initialised in the parent of a fork."""
    return _state if _state is not None and _state.pid == os.getpid() else None


def _driver(function):
    """Serialise a call, and refuse it before ``cuInit``."""

    def called(*arguments):
        with _lock:
            state = _now()
            if state is None:
                return (CUresult.CUDA_ERROR_NOT_INITIALIZED, *[None] * int(function.__annotations__.get("return", 0)))
            return function(state, *arguments)

    called.__name__ = function.__name__
    called.parameters = function.__code__.co_varnames[1 : function.__code__.co_argcount]
    return called


def outstanding() -> dict[str, int]:
    """What this process has not given back."""
    with _lock:
        state = _now() or _State(0)
        return {"handles": len(state.handles), "mappings": len(state.mapped), "ranges": len(state.reserved)}


# --- devices and contexts ------------------------------------------------------------------------------------------


def cuInit(Flags):  # noqa: N803
    global _state  # noqa: PLW0603 - there is one driver in a process
    with _lock:
        if Flags:
            return (_BAD,)
        if _now() is None:
            _state = _State(os.getpid())
        return (_OK,)


cuInit.parameters = ("Flags",)


def cuGetErrorName(error):
    return _OK, CUresult(error).name.encode()


cuGetErrorName.parameters = ("error",)


@_driver
def cuDeviceGetCount(state) -> 1:
    del state
    return _OK, _devices()


@_driver
def cuDeviceGet(state, ordinal) -> 1:
    del state
    return (_OK, CUdevice(ordinal)) if 0 <= ordinal < _devices() else (CUresult.CUDA_ERROR_INVALID_DEVICE, None)


@_driver
def cuDeviceCanAccessPeer(state, dev, peerDev) -> 1:  # noqa: N803
    del state
    if int(dev) == int(peerDev):
        return _BAD, None
    return _OK, int(os.environ.get("FAKE_CUDA_PEERS", "1"))


@_driver
def cuDevicePrimaryCtxRetain(state, dev) -> 1:
    context = 1000 + int(dev)
    state.contexts[context] = int(dev)
    return _OK, CUcontext(context)


@_driver
def cuCtxSetCurrent(state, ctx) -> 0:
    if int(ctx) not in state.contexts:
        return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
    _thread.context = int(ctx)
    return (_OK,)


def _has_context() -> bool:
    return getattr(_thread, "context", None) is not None


# --- allocations ---------------------------------------------------------------------------------------------------


def _whole(size: int) -> bool:
    return size > 0 and size % UNIT == 0


def _fits(prop: CUmemAllocationProp) -> bool:
    return (
        prop.type == CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        and prop.location.type == CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        and 0 <= prop.location.id < _devices()
        and prop.requestedHandleTypes == CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    )


@_driver
def cuMemGetAllocationGranularity(state, prop, option) -> 1:
    del state
    known = isinstance(option, CUmemAllocationGranularity_flags)
    return (_OK, UNIT) if known and _fits(prop) else (_BAD, None)


def _new_handle(state: _State, allocation: _Allocation) -> CUmemGenericAllocationHandle:
    number = next(state.numbers)
    allocation.handles += 1
    state.handles[number] = allocation
    return CUmemGenericAllocationHandle(number)


@_driver
def cuMemCreate(state, size, prop, flags) -> 1:
    if not _whole(size) or not _fits(prop) or flags:
        return _BAD, None
    device = prop.location.id
    held = {id(a): a for a in [*state.handles.values(), *(m.allocation for m in state.mapped.values())]}
    taken = sum(a.size for a in held.values() if a.device == device)
    if taken + size > int(os.environ.get("FAKE_CUDA_DEVICE_BYTES", str(1 << 40))):
        return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
    fd = os.memfd_create(f"{NAME}-{device}", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return _OK, _new_handle(state, _Allocation(fd, device, size))


@_driver
def cuMemExportToShareableHandle(state, handle, handleType, flags) -> 1:  # noqa: N803
    allocation = state.handles.get(int(handle))
    posix = CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    if allocation is None or handleType != posix or flags:
        return _BAD, None
    return _OK, os.dup(allocation.fd)


@_driver
def cuMemImportFromShareableHandle(state, osHandle, shHandleType) -> 1:  # noqa: N803
    if shHandleType != CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR:
        return _BAD, None
    try:
        path = str(Path(f"/proc/self/fd/{osHandle}").readlink())
    except OSError:
        return CUresult.CUDA_ERROR_INVALID_HANDLE, None
    _, _, device = path.removesuffix(" (deleted)").rpartition(f"{NAME}-")
    if not device.isdigit():
        return CUresult.CUDA_ERROR_INVALID_HANDLE, None
    fd = os.dup(osHandle)
    return _OK, _new_handle(state, _Allocation(fd, int(device), os.fstat(fd).st_size))


def _maybe_free(allocation: _Allocation) -> None:
    if not allocation.handles and not allocation.mappings:
        os.close(allocation.fd)


@_driver
def cuMemRelease(state, handle) -> 0:
    allocation = state.handles.pop(int(handle), None)
    if allocation is None:
        return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
    allocation.handles -= 1
    _maybe_free(allocation)
    return (_OK,)


# --- addresses -----------------------------------------------------------------------------------------------------


@_driver
def cuMemAddressReserve(state, size, alignment, addr, flags) -> 1:
    if not _whole(size) or alignment % UNIT or int(addr) or flags:
        return _BAD, None
    nothing = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    base = _LIBC.mmap(None, size + UNIT, _PROT_NONE, nothing, -1, 0)
    start = -(-base // UNIT) * UNIT
    if start > base:
        _LIBC.munmap(base, start - base)
    rest = base + UNIT - start
    if rest:
        _LIBC.munmap(start + size, rest)
    state.reserved[start] = size
    return _OK, CUdeviceptr(start)


def _inside(state: _State, at: int, size: int) -> bool:
    return any(start <= at and at + size <= start + length for start, length in state.reserved.items())


@_driver
def cuMemAddressFree(state, ptr, size) -> 0:
    at = int(ptr)
    if state.reserved.get(at) != size or any(at <= where < at + size for where in state.mapped):
        return (_BAD,)
    del state.reserved[at]
    _LIBC.munmap(at, size)
    return (_OK,)


@_driver
def cuMemMap(state, ptr, size, offset, handle, flags) -> 0:
    at, allocation = int(ptr), state.handles.get(int(handle))
    if allocation is None or size != allocation.size or offset or flags or at % UNIT or not _inside(state, at, size):
        return (_BAD,)
    if any(where < at + size and at < where + other.size for where, other in state.mapped.items()):
        return (CUresult.CUDA_ERROR_ALREADY_MAPPED,)
    _LIBC.mmap(at, size, _PROT_NONE, mmap.MAP_SHARED | _MAP_FIXED, allocation.fd, 0)
    allocation.mappings += 1
    state.mapped[at] = _Mapping(allocation, size)
    return (_OK,)


def _mappings_of(state: _State, at: int, size: int) -> list[int] | None:
    """Mappings that make up exactly this run; none where some are cut or missing."""
    found, end = [], at
    while end < at + size and end in state.mapped:
        found.append(end)
        end += state.mapped[end].size
    return found if end == at + size else None


@_driver
def cuMemSetAccess(state, ptr, size, desc, count) -> 0:
    at = int(ptr)
    found = _mappings_of(state, at, size)
    if found is None or count != len(desc) or not count:
        return (_BAD,)
    protection = _PROT_NONE
    for access in desc:
        device = access.location.id
        if access.location.type != CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE or not 0 <= device < _devices():
            return (CUresult.CUDA_ERROR_INVALID_DEVICE,)
        foreign = any(state.mapped[where].allocation.device != device for where in found)
        if foreign and os.environ.get("FAKE_CUDA_PEERS", "1") == "0":
            return (CUresult.CUDA_ERROR_INVALID_DEVICE,)
        writable = access.flags == CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    _LIBC.mprotect(at, size, protection)
    for where in found:
        state.mapped[where].protection = protection
    return (_OK,)


@_driver
def cuMemUnmap(state, ptr, size) -> 0:
    at = int(ptr)
    found = _mappings_of(state, at, size)
    if found is None:
        return (_BAD,)
    nothing = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
    _LIBC.mmap(at, size, _PROT_NONE, nothing, -1, 0)
    for where in found:
        allocation = state.mapped.pop(where).allocation
        allocation.mappings -= 1
        _maybe_free(allocation)
    return (_OK,)


# --- copies --------------------------------------------------------------------------------------------------------


def _usable(state: _State, at: int, size: int, protection: int) -> bool:
    while size > 0:
        where = max((start for start in state.mapped if start <= at), default=None)
        if where is None or at >= where + state.mapped[where].size or not state.mapped[where].protection & protection:
            return False
        step = where + state.mapped[where].size - at
        at, size = at + step, size - step
    return True


def _host(data: Any, size: int) -> tuple[Any, int] | None:
    """Something to keep alive, and the address of a buffer, or None where it is too small."""
    if isinstance(data, int):
        return None, data
    view = memoryview(data).cast("B")
    if len(view) < size:
        return None
    if view.readonly:
        kept = ctypes.create_string_buffer(bytes(view), size)
        return kept, ctypes.addressof(kept)
    whole = (ctypes.c_char * len(view)).from_buffer(view)
    return whole, ctypes.addressof(whole)


@_driver
def cuMemcpyHtoD(state, dstDevice, srcHost, ByteCount) -> 0:  # noqa: N803
    host, at = _host(srcHost, ByteCount), int(dstDevice)
    if not _has_context():
        return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
    if host is None or not _usable(state, at, ByteCount, mmap.PROT_WRITE):
        return (_BAD,)
    _LIBC.memmove(at, host[1], ByteCount)
    return (_OK,)


@_driver
def cuMemcpyDtoH(state, dstHost, srcDevice, ByteCount) -> 0:  # noqa: N803
    host, at = _host(dstHost, ByteCount), int(srcDevice)
    if not _has_context():
        return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
    if host is None or not _usable(state, at, ByteCount, mmap.PROT_READ):
        return (_BAD,)
    _LIBC.memmove(host[1], at, ByteCount)
    return (_OK,)


@_driver
def cuStreamCreate(state, Flags) -> 1:  # noqa: N803
    if not _has_context() or Flags not in (0, 1):
        return CUresult.CUDA_ERROR_INVALID_CONTEXT, None
    number = next(state.numbers)
    state.streams[number] = []
    return _OK, CUstream(number)


@_driver
def cuMemcpyPeerAsync(state, dstDevice, dstContext, srcDevice, srcContext, ByteCount, hStream) -> 0:  # noqa: N803
    if int(hStream) not in state.streams or {int(dstContext), int(srcContext)} - set(state.contexts):
        return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
    target, source = int(dstDevice), int(srcDevice)
    if not _usable(state, target, ByteCount, mmap.PROT_WRITE) or not _usable(state, source, ByteCount, mmap.PROT_READ):
        return (_BAD,)
    state.streams[int(hStream)].append((target, source, ByteCount))
    return (_OK,)


@_driver
def cuStreamSynchronize(state, hStream) -> 0:  # noqa: N803
    queue = state.streams.get(int(hStream))
    if queue is None:
        return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
    for target, source, size in queue:
        _LIBC.memmove(target, source, size)
    queue.clear()
    return (_OK,)


@_driver
def cuStreamDestroy(state, hStream) -> 0:  # noqa: N803
    return (_OK if state.streams.pop(int(hStream), None) is not None else CUresult.CUDA_ERROR_INVALID_HANDLE,)
