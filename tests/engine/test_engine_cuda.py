"""The same pages on a GPU. Skipped where there is none: what they test is marked untested in the documentation."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: engine)")
pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")

from medley_engine.memory import cuda_vmm  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture
def device():
    cuda_vmm.initialise(0)
    return 0


def filled(device, value):
    """An allocation that holds one byte value all over."""
    pages = cuda_vmm.CudaPages.create(device, 1)
    view = cuda_vmm.CudaRange(device, pages.size_bytes)
    view.map(pages, 0, writable=True)
    view.tensor().fill_(value)
    torch.cuda.synchronize(device)
    view.close()
    return pages


def test_allocations_are_seen_side_by_side_in_any_order_and_at_two_addresses(device):
    pages = [filled(device, value) for value in range(3)]
    unit = pages[0].size_bytes
    views = []
    for order in ((2, 0, 1), (1, 2, 0)):
        view = cuda_vmm.CudaRange(device, 3 * unit)
        for at, number in enumerate(order):
            view.map(pages[number], at * unit)
        assert view.tensor()[::unit].tolist() == list(order)
        views.append(view)
    for view in views:
        view.close()
    for allocation in pages:
        allocation.release()


def test_a_descriptor_keeps_the_memory_of_an_allocation_that_was_released(device):
    pages = filled(device, 7)
    size, fd = pages.size_bytes, pages.export()
    pages.release()
    adopted = cuda_vmm.CudaPages.adopt(fd, device, size)
    os.close(fd)
    view = cuda_vmm.CudaRange(device, size)
    view.map(adopted, 0)
    assert view.tensor().unique().tolist() == [7]
    view.close()
    adopted.release()


def test_a_copy_and_an_upload_arrive(device):
    source, target = filled(device, 3), filled(device, 0)
    view = cuda_vmm.CudaRange(device, 2 * source.size_bytes)
    view.map(source, 0, writable=True)
    view.map(target, source.size_bytes, writable=True)
    transport = cuda_vmm.CudaTransport()
    transport.upload(memoryview(b"\x09" * 16), view.address)
    transport.copy(view.address, view.address + source.size_bytes, source.size_bytes)
    assert view.tensor(source.size_bytes, 17).tolist() == [9] * 16 + [3]
    view.close()
