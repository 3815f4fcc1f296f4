"""KV blocks of a tensor-parallel group: the same numbers in every shard's pool, whoever asks at whatever moment."""

from __future__ import annotations

import threading
from dataclasses import asdict

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: engine)")

from engine_manager import ask, settle  # noqa: E402

from medley_engine.memory.client import ManagerClient  # noqa: E402
from medley_engine.memory.server import build_manager, serve  # noqa: E402
from medley_engine.placement import initial  # noqa: E402
from medley_engine.runtime.attachment import Attachment  # noqa: E402
from medley_engine.runtime.collective import Collective  # noqa: E402
from medley_engine.runtime.devices import HostDevice  # noqa: E402
from medley_engine.runtime_spec import RankSpec  # noqa: E402
from medley_engine.scheduler import SamplingParams, Sequence  # noqa: E402
from medley_engine.topology import Topology  # noqa: E402


class WatchedManager:
    """A manager, and what other groups could lease after each of its answers from the pool of one shard alone."""

    def __init__(self, manager):
        self._manager, self.only_in_one = manager, []

    def handle(self, request, peer):
        with self._manager.store.lock:
            reply = self._manager.handle(request, peer)
            lent = [set(), set()]
            for held in self._manager.store.holders.values():
                lent[held.rank % 2] |= held.blocks
            leader, follower = lent
            if not follower <= leader:
                self.only_in_one.append((request["do"], request.get("holder"), sorted(follower - leader)))
        return reply

    def reap(self, timeout_s):
        return self._manager.reap(timeout_s)


def test_what_a_leader_has_given_back_its_followers_have_given_back_before(folder, tmp_path):
    """Else the leader of another group leases a block that its own follower cannot have yet."""
    torch.set_num_threads(1)
    manager = build_manager(folder, "float32", 2, 4096, block_tokens=4, blocks_per_rank=64)
    watched = WatchedManager(manager)
    wish = {"topology": asdict(Topology(1, 2)), "placement": initial(2, 8, 2).layers}
    settle(manager, "a", ask(manager, "prepare", config="a", **wish)[0])
    ask(manager, "commit", config="a")
    threading.Thread(target=serve, args=(watched, tmp_path / "hmm.sock", "token"), daemon=True).start()
    failures, held = [], {}

    def rank(number):
        spec = RankSpec(
            instance="i", rank=number, size=2, tensor_parallel=2, model=str(folder), dtype="float32",
            page_bytes=4096, block_tokens=4, run_dir=str(tmp_path), chunk_tokens=16,
        )  # fmt: skip
        comm = Collective(tmp_path / "i", number, 2, token="token", tensor_parallel=2)
        clients = [ManagerClient(tmp_path / "hmm.sock", "token", role="rank") for _ in range(2)]
        attached = Attachment(
            "a", spec=spec, layout=manager.store.layout, comm=comm, manager=clients[0], remapper=clients[1],
            device=HostDevice(), call_off=lambda: False,
        )  # fmt: skip
        if number == 0:
            for name in ("short", "long"):
                length = 6 if name == "short" else 40
                attached.scheduler.add(Sequence(name, tuple(range(1, length)), SamplingParams(length)))
        steps = 0
        while any(row[0] for row in comm.gather([int(attached.scheduler.busy)])):
            batch = attached.choose()
            comm.gather([len(batch)])
            attached.compute(batch)
            steps += 1
            if steps == 8 and number == 0:
                # From now on what a sequence leaves is given back at once.
                attached.drain()
        attached.choose()
        comm.gather([0])
        attached.choose()
        held[number] = attached.blocks_held()
        comm.gather([0])
        attached.close()
        comm.close()
        for client in clients:
            client.close()

    def work(number):
        try:
            rank(number)
        except Exception as error:  # noqa: BLE001 - told to the test's thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures, failures
    assert held == {0: [], 1: []}, "all was given back, by the leader too"
    assert not watched.only_in_one
