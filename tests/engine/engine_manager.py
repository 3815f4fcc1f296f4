"""Managers in the test's own process, on every kind of memory, and what one asks of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from medley_engine.memory import cuda_driver, wire
from medley_engine.memory.cuda import CudaMemory
from medley_engine.memory.host import HostMemory
from medley_engine.memory.server import build_manager
from medley_engine.placement import initial
from medley_engine.topology import Topology

ME = wire.Peer(os.getpid(), os.getuid())
FAKE_CUDA_DRIVER = Path(__file__).with_name("fake_cuda_driver.py")
KINDS = {"host": (HostMemory, 4096), "cuda over a fake driver": (CudaMemory, 2 * 1024 * 1024)}
"""What makes the memory, and the size of its pages."""


def forget_driver():
    """Have the next call look for the driver anew."""
    for known in ("driver", "device_count", "_context", "readers_of"):
        getattr(cuda_driver, known).cache_clear()


class Keeper:
    """Keeps descriptors as the supervisor does; a manager's threads may give it some while a test takes them."""

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}
        self._one_at_a_time = threading.RLock()

    def put(self, name, fd):
        with self._one_at_a_time:
            self.drop([name])
            self.fds[name] = os.dup(fd)

    def drop(self, names: Sequence[str]):
        with self._one_at_a_time:
            for name in names:
                if name in self.fds:
                    os.close(self.fds.pop(name))

    def take(self):
        with self._one_at_a_time:
            return {name: os.dup(fd) for name, fd in self.fds.items()}


class Managers:
    """Makes managers of one checkpoint and kind of memory."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.memory, self.page_bytes = KINDS[kind]
        self._made = []

    def __call__(self, keeper=None, kept=None, *, tensor_parallel=1, **options):
        made = build_manager(
            self.folder, "float32", tensor_parallel, self.page_bytes,
            block_tokens=8, blocks_per_rank=16, keeper=keeper, kept=kept, memory=self.memory, **options,
        )  # fmt: skip
        self._made.append(made)
        return made

    def close(self):
        """End what still runs in the background; every allocation goes with its manager."""
        for made in self._made:
            made.close()
            for pool in made.store.pools.values():
                pool.close()


def ask(manager, do, peer=ME, **fields):
    """One request: the reply and its descriptors."""
    return manager.handle({"do": do, **fields}, peer)


def two_groups(name="two"):
    """A configuration of two ranks with a memory each, as a request names it."""
    return {"config": name, "topology": asdict(Topology(2, 1, False)), "placement": initial(2, 8, 2).layers}


def settle(manager, name, reply):
    """Wait until a preparation has ended."""
    end = time.monotonic() + 20
    while reply["state"] in ("planning", "copying"):
        assert time.monotonic() < end, reply
        reply, _ = ask(manager, "progress", config=name)
    return reply


def prepare(manager, name, size, *, shared=False, placement=None):
    """Prepare a configuration and wait for it."""
    placement = placement or initial(2, 8, size)
    topology = asdict(Topology(size, 1, shared))
    reply, _ = ask(manager, "prepare", config=name, topology=topology, placement=placement.layers)
    return settle(manager, name, reply)


def in_force(manager, name, size, **options):
    """Prepare a configuration and put it in force."""
    report = prepare(manager, name, size, **options)
    assert report["state"] == "prepared", report
    ask(manager, "commit", config=name)
    return report


def item_bytes(manager, domain, key):
    """An item's bytes in a domain."""
    extent = manager.store.copies[domain, key].extent
    return bytes(manager.store.pools[f"weights/{domain}"].reading(extent.offset, extent.size))


def weight_bytes(manager):
    """Memory that weights take."""
    with manager.store.lock:
        return sum(pool.resident_bytes for name, pool in manager.store.pools.items() if name.startswith("weights/"))


def bring_home(manager, holder, wish, *, until_copied=None):
    """Do what a coordinator and a rank do after a switch; returns the most memory that weights took meanwhile."""
    report, _ = ask(manager, "prepare", homewards=True, **wish)
    peak, end = 0, time.monotonic() + 20
    while report["state"] in ("planning", "copying") or report["arrived"]:
        assert time.monotonic() < end, report
        peak = max(peak, weight_bytes(manager))
        for items in report["arrived"].values():
            if until_copied is not None and len(items) >= until_copied:
                return peak
            if until_copied is None:
                places, _ = ask(manager, "home", holder=holder, items=items)
                assert [place[0] for place in places["items"]] == items
                ask(manager, "settled", holder=holder, items=items)
        report, _ = ask(manager, "progress", config=wish["config"])
    assert report["state"] == "prepared", report
    return peak
