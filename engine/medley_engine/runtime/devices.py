"""Where a rank computes: the processor over mapped pages, or one GPU over mapped allocations.

Tensors over mapped memory are made from addresses. For a GPU that is done by DLPack, which takes the device as told: an
address alone would be taken for the device where its memory lies, and a rank may map memory of another GPU.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Protocol

import torch

from medley_engine.memory import cuda_driver
from medley_engine.memory.mapping import VirtualRange, copy_memory
from medley_engine.memory.pace import at_leisure
from medley_engine.memory.pools import Range


class Device(Protocol):
    """What a rank asks of its device. ``remaps_live``: a range can be given other pages with the same bytes while a
    step reads it.
    """

    remaps_live: bool
    torch: torch.device

    def reserve(self, size_bytes: int) -> Range:
        """A range of addresses, at least this long."""

    def tensor(self, mapped: Range, at: int, size_bytes: int) -> torch.Tensor:
        """A part of a range as bytes (uint8). It must be gone before the range is closed."""

    def copy_in(self, mapped: Range, fd: int, offset: int, at: int, size_bytes: int) -> None:
        """Fill a part of a range with a private copy of what was located as (``fd``, ``offset``)."""

    def private(self, size_bytes: int, taken_bytes: int) -> int:
        """A descriptor of memory of this process alone, this much of it taken at once; the caller closes it."""

    def synchronise(self) -> None:
        """Wait for everything that was asked of the device."""

    def let_go(self, unmap: Callable[[], None]) -> None:
        """Drop an instance's mappings, while another serves."""


class HostDevice:
    """The processor."""

    remaps_live = True

    def __init__(self) -> None:
        self.torch = torch.device("cpu")

    def reserve(self, size_bytes: int) -> VirtualRange:
        """See :class:`Device`."""
        return VirtualRange(size_bytes)

    def tensor(self, mapped: Range, at: int, size_bytes: int) -> torch.Tensor:
        """See :class:`Device`."""
        return _tensor_at(mapped.address + at, size_bytes, self.torch)

    def copy_in(self, mapped: Range, fd: int, offset: int, at: int, size_bytes: int) -> None:
        """See :class:`Device`."""
        assert isinstance(mapped, VirtualRange)
        window = VirtualRange(size_bytes)
        window.map(fd, offset, 0, size_bytes)
        mapped.back_privately(at, size_bytes)
        copy_memory(mapped.address + at, window.address, size_bytes)
        window.close()

    def private(self, size_bytes: int, taken_bytes: int) -> int:
        """See :class:`Device`."""
        fd = os.memfd_create("medley:private", os.MFD_CLOEXEC)
        os.ftruncate(fd, size_bytes)
        step = 1 << 20
        for start in range(0, taken_bytes, step):
            os.pwrite(fd, bytes(min(step, taken_bytes - start)), start)
        return fd

    def synchronise(self) -> None:
        """Nothing: what the processor was asked for is done."""

    def let_go(self, unmap: Callable[[], None]) -> None:
        """See :class:`Device`. Clearing page tables takes the processors that the other instance computes on."""
        at_leisure(unmap)


class CudaDevice:
    """The GPU of a rank."""

    remaps_live = False

    def __init__(self, rank: int) -> None:
        self._ordinal = cuda_driver.ordinal_of(rank)
        cuda_driver.use(self._ordinal)
        if cuda_driver.is_fake():
            self.torch = torch.device("cpu")
        else:
            self.torch = torch.device("cuda", self._ordinal)
            torch.cuda.set_device(self.torch)

    def reserve(self, size_bytes: int) -> Range:
        """See :class:`Device`."""
        from medley_engine.memory.cuda_vmm import CudaRange  # noqa: PLC0415 - only where there are GPUs

        return CudaRange((self._ordinal,), size_bytes)

    def tensor(self, mapped: Range, at: int, size_bytes: int) -> torch.Tensor:
        """See :class:`Device`."""
        return _tensor_at(mapped.address + at, size_bytes, self.torch)

    def copy_in(self, mapped: Range, fd: int, offset: int, at: int, size_bytes: int) -> None:
        """See :class:`Device`."""
        from medley_engine.memory.cuda import copy_between  # noqa: PLC0415
        from medley_engine.memory.cuda_vmm import CudaPages, CudaRange  # noqa: PLC0415

        assert isinstance(mapped, CudaRange)
        window = CudaRange((self._ordinal,), size_bytes)
        window.map(fd, offset, 0, size_bytes)
        pages = CudaPages.create(self._ordinal, size_bytes)
        mapped.map_pages(pages, at, writable=True)
        pages.release()
        copy_between(mapped.address + at, self._ordinal, window.address, self._ordinal, size_bytes)
        window.close()

    def private(self, size_bytes: int, taken_bytes: int) -> int:
        """See :class:`Device`. An allocation is taken whole."""
        del taken_bytes
        from medley_engine.memory.cuda_vmm import CudaPages  # noqa: PLC0415

        pages = CudaPages.create(self._ordinal, size_bytes)
        fd = pages.export()
        pages.release()
        return fd

    def synchronise(self) -> None:
        """See :class:`Device`."""
        if self.torch.type == "cuda":
            torch.cuda.synchronize(self.torch)

    def let_go(self, unmap: Callable[[], None]) -> None:
        """See :class:`Device`. In this thread, which has the device's context."""
        unmap()


def device_of(kind: str, rank: int) -> Device:
    """The device of a rank: ``cpu`` or ``cuda``."""
    return CudaDevice(rank) if kind == "cuda" else HostDevice()


# --- DLPack's structures, version 0, as every torch reads them ---------------------------------------------------


class _DlDevice(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DlType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DlTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DlDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DlType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _DlManaged(ctypes.Structure):
    _fields_ = (("dl_tensor", _DlTensor), ("manager_ctx", ctypes.c_void_p), ("deleter", _DELETER))


_DL_CPU, _DL_CUDA, _DL_UINT = 1, 2, 1
_NAME = b"dltensor"
_alive: dict[int, tuple[_DlManaged, ctypes.Array[ctypes.c_int64]]] = {}
"""What torch was given, by address, until the tensor's storage is gone."""


@_DELETER
def _forget(address: int) -> None:
    _alive.pop(address, None)


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def _tensor_at(address: int, size_bytes: int, device: torch.device) -> torch.Tensor:
    """A tensor of uint8 over memory that somebody else owns."""
    shape = (ctypes.c_int64 * 1)(size_bytes)
    managed = _DlManaged(
        _DlTensor(
            data=address,
            device=_DlDevice(_DL_CUDA if device.type == "cuda" else _DL_CPU, device.index or 0),
            ndim=1,
            dtype=_DlType(_DL_UINT, 8, 1),
            shape=shape,
            strides=None,
            byte_offset=0,
        ),
        None,
        _forget,
    )
    at = ctypes.addressof(managed)
    _alive[at] = (managed, shape)
    return torch.utils.dlpack.from_dlpack(_new_capsule(at, _NAME, None))
