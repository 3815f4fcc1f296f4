"""The CUDA driver API as ``cuda-bindings`` publishes it, found in one place, with its errors turned into exceptions.

Tests put a stand-in in its place by naming a Python file in :data:`FAKE_VARIABLE`. Only they do: what such a file
calls device memory is memory of this node, and tensors over it are computed on by the processor.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

FAKE_VARIABLE = "MEDLEY_TEST_FAKE_CUDA_DRIVER"
"""Path of a file with the functions of ``cuda.bindings.driver`` over this node's memory. For tests."""


class CudaError(RuntimeError):
    """A driver call failed; the message names the call and CUDA's error."""


class CudaOutOfMemoryError(CudaError, MemoryError):
    """A device has no memory left for an allocation."""


def is_fake() -> bool:
    """Whether a test has put something else in the driver's place."""
    return bool(os.environ.get(FAKE_VARIABLE))


@cache
def driver() -> Any:
    """The module whose functions are the driver's.

    Raises:
        ModuleNotFoundError: ``cuda-bindings`` is not installed.
    """
    if not is_fake():
        return importlib.import_module("cuda.bindings.driver")
    path = Path(os.environ[FAKE_VARIABLE])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(name: str, *arguments: Any) -> Any:
    """Call a driver function by name; returns its value, or a tuple where it has several.

    Raises:
        CudaOutOfMemoryError: the device is full.
        CudaError: the driver refused, or there is none.
    """
    cuda = driver()
    try:
        error, *values = getattr(cuda, name)(*arguments)
    except RuntimeError as missing:
        # The bindings look for the driver's library at their first call.
        raise CudaError(f"{name}: {missing}") from missing
    if int(error) != 0:
        _, text = cuda.cuGetErrorName(error)
        message = f"{name}: {text.decode() if isinstance(text, bytes) else text}"
        raise (CudaOutOfMemoryError if error == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY else CudaError)(message)
    return values[0] if len(values) == 1 else tuple(values)


@cache
def device_count() -> int:
    """GPUs that this process sees (``CUDA_VISIBLE_DEVICES`` counts)."""
    call("cuInit", 0)
    return int(call("cuDeviceGetCount"))


def ordinal_of(rank: int) -> int:
    """The GPU of a rank. Where there are fewer GPUs than ranks, ranks share them by turns, which is for tests."""
    return rank % device_count()


@cache
def _context(ordinal: int) -> Any:
    call("cuInit", 0)
    return call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", ordinal))


def use(ordinal: int) -> Any:
    """Make a device's primary context, which torch uses too, current in this thread; returns it."""
    context = _context(ordinal)
    call("cuCtxSetCurrent", context)
    return context


@cache
def readers_of(ordinal: int) -> tuple[int, ...]:
    """GPUs that can map this one's memory: itself, and its peers over NVLink or PCIe."""
    own = call("cuDeviceGet", ordinal)
    others = (other for other in range(device_count()) if other != ordinal)
    peers = (o for o in others if int(call("cuDeviceCanAccessPeer", call("cuDeviceGet", o), own)))
    return (ordinal, *peers)


def all_are_peers() -> bool:
    """Whether every GPU can map every other one's memory."""
    return all(len(readers_of(ordinal)) == device_count() for ordinal in range(device_count()))
