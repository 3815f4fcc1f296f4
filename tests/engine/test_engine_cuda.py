"""Pages of GPUs: the same tests over a real driver (skipped where there is no GPU) and over a fake one, which shows
that calls and their order are right and nothing else.
"""

from __future__ import annotations

import os
import re

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: engine)")
bindings = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed (extra: engine)")

import fake_cuda_driver  # noqa: E402
from engine_manager import forget_driver  # noqa: E402

from medley_engine.memory import cuda, cuda_driver, cuda_vmm, pools  # noqa: E402
from medley_engine.runtime.devices import CudaDevice, HostDevice  # noqa: E402

MIB = 1024 * 1024


@pytest.fixture(
    params=[
        pytest.param("fake driver", id="fake driver"),
        pytest.param(
            "GPU", id="GPU", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
        ),
    ]
)
def device(request):
    if request.param == "GPU":
        forget_driver()
        yield CudaDevice(0)
        return
    outstanding = request.getfixturevalue("fake_cuda")
    yield CudaDevice(0)
    assert not any(outstanding().values()), outstanding()


def filled(device, value, size_bytes=1):
    """A descriptor and size of an allocation that holds one byte value all over."""
    pages = cuda_vmm.CudaPages.create(0, size_bytes)
    view = device.reserve(pages.size_bytes)
    view.map_pages(pages, 0, writable=True)
    device.tensor(view, 0, pages.size_bytes).fill_(value)
    device.synchronise()
    view.close()
    fd = pages.export()
    pages.release()
    return fd, pages.size_bytes


def test_a_descriptor_keeps_memory_that_nobody_has_mapped_any_more(device):
    fd, size = filled(device, 7)
    view = device.reserve(size)
    view.map(fd, 0, 0, size)
    os.close(fd)
    assert device.tensor(view, 0, size).unique().tolist() == [7]
    view.close()


def test_allocations_are_seen_side_by_side_in_any_order_and_at_two_addresses(device):
    made = [filled(device, value) for value in range(3)]
    unit = made[0][1]
    views = []
    for order in ((2, 0, 1), (1, 2, 0)):
        view = device.reserve(3 * unit)
        for at, number in enumerate(order):
            view.map(made[number][0], 0, at * unit, unit)
        assert device.tensor(view, 0, 3 * unit)[::unit].tolist() == list(order)
        views.append(view)
    for view in views:
        view.close()
    for fd, _ in made:
        os.close(fd)


def test_a_tensor_stays_valid_when_other_pages_are_put_under_it(device):
    (old, size), (new, _) = filled(device, 1), filled(device, 2)
    view = device.reserve(size)
    view.map(old, 0, 0, size)
    tensor = device.tensor(view, 0, size)
    assert int(tensor[5]) == 1
    device.synchronise()
    view.map(new, 0, 0, size)
    assert int(tensor[5]) == 2
    with pytest.raises(ValueError, match="outside"):
        view.map(new, 0, size, size)
    with pytest.raises(ValueError, match="whole"):
        view.map(new, 4096, 0, size)
    del tensor
    view.close()
    os.close(old)
    os.close(new)


def test_pools_are_filled_read_and_copied_and_their_descriptors_kept_and_dropped(device):
    del device

    class Keeper:
        def __init__(self):
            self.kept = {}

        def put(self, name, fd):
            self.kept[name] = os.dup(fd)

        def drop(self, names):
            for name in names:
                os.close(self.kept.pop(name))

    keeper = Keeper()
    memory = cuda.CudaMemory(keeper, {})
    here, there = memory.pool("weights/device0"), memory.pool("weights/device1")
    for pool in (here, there):
        pool.back(4 * MIB, 3 * MIB)
    data = os.urandom(3 * MIB)
    with here.filling(4 * MIB, 3 * MIB) as view:
        view[:] = data
    there.copy_from(4 * MIB, pools.Run(here, 4 * MIB, 3 * MIB))
    assert bytes(there.reading(4 * MIB, 3 * MIB)) == data
    assert bytes(there.reading(5 * MIB, MIB)) == data[MIB : 2 * MIB]
    assert here.resident_bytes == 4 * MIB, "rounded up to what the device allocates"
    with pytest.raises(ValueError, match="nothing is allocated"):
        here.reading(0, MIB)

    again = cuda.CudaMemory(keeper, {name: os.dup(fd) for name, fd in keeper.kept.items()})
    assert bytes(again.pool("weights/device1").reading(4 * MIB, 3 * MIB)) == data
    again.pool("weights/device1").punch(0, 8 * MIB)
    assert [name.partition("@")[0] for name in keeper.kept] == ["weights/device0"]
    for pool in (here, there, *again.pools.values()):
        pool.close()
    for fd in keeper.kept.values():
        os.close(fd)


def test_a_private_copy_is_another_memory(device):
    fd, size = filled(device, 5)
    view, shown = device.reserve(size), device.reserve(size)
    device.copy_in(view, fd, 0, 0, size)
    shown.map(fd, 0, 0, size, writable=True)
    device.tensor(shown, 0, size).fill_(6)
    device.synchronise()
    assert device.tensor(view, 0, size).unique().tolist() == [5]
    for mapped in (view, shown):
        mapped.close()
    os.close(fd)


def test_errors_name_the_call_and_what_the_driver_said(device):
    del device
    with pytest.raises(cuda_driver.CudaError, match=r"cuMemMap: CUDA_ERROR_\w+"):
        cuda_driver.call("cuMemMap", 0, 2 * MIB, 0, 0, 0)


def test_the_fake_takes_what_the_published_functions_take():
    """Names and parameters are those of ``cuda-bindings``."""
    faked = [name for name in vars(fake_cuda_driver) if re.fullmatch(r"cu[A-Z]\w+", name)]
    assert len(faked) > 20
    for name in faked:
        signature = getattr(bindings, name).__doc__.splitlines()[0]
        parameters = signature.partition("(")[2].rpartition(")")[0]
        # "unsigned long long flags", "prop: Optional[…]": the name is the last word before the annotation.
        told = [part.partition(":")[0].split()[-1] for part in re.split(r",\s*(?![^\[]*\])", parameters) if part]
        assert list(getattr(fake_cuda_driver, name).parameters) == told, signature


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda cu, _: cu.cuMemAddressReserve(MIB, 2 * MIB, 0, 0), "CUDA_ERROR_INVALID_VALUE"),
        (lambda cu, at: cu.cuMemMap(at, 2 * MIB, 0, 99, 0), "CUDA_ERROR_INVALID_VALUE"),
        (lambda cu, at: cu.cuMemAddressFree(at, 2 * MIB), "CUDA_ERROR_INVALID_VALUE"),
        (lambda cu, at: cu.cuMemcpyHtoD(at, b"x" * 8, 8), "CUDA_ERROR_INVALID_VALUE"),
        (lambda cu, _: cu.cuMemRelease(12345), "CUDA_ERROR_INVALID_HANDLE"),
    ],
    ids=["no whole page", "no such handle", "still mapped", "no access was set", "released twice"],
)
def test_the_fake_refuses_what_the_driver_refuses(fake_cuda, call, error):
    device = CudaDevice(0)
    driver = cuda_driver.driver()
    view, pages = device.reserve(2 * MIB), cuda_vmm.CudaPages.create(0, 1)
    assert int(driver.cuMemMap(view.address, 2 * MIB, 0, pages.handle, 0)[0]) == 0
    assert driver.cuMemMap(view.address, 2 * MIB, 0, pages.handle, 0)[0].name == "CUDA_ERROR_ALREADY_MAPPED"
    assert call(driver, view.address)[0].name == error
    assert int(driver.cuMemUnmap(view.address, 2 * MIB)[0]) == 0
    view.close()
    pages.release()
    assert not any(fake_cuda().values())


def test_a_tensor_made_from_an_address_is_gone_before_its_range():
    device = HostDevice()
    view = device.reserve(3 * 4096)
    device.copy_in(view, device.private(4096, 4096), 0, 4096, 4096)
    tensor = device.tensor(view, 4096, 4096)
    assert tensor.dtype == torch.uint8
    assert tensor.data_ptr() == view.address + 4096
    tensor[3] = 9
    assert bytes(view.buffer(4096, 5)) == b"\0\0\0\x09\0"
    del tensor
    view.close()
