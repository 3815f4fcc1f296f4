"""What a rank has while it is attached to a configuration: weights, cache, model, sequences and lent blocks.

It is made at attaching and dropped as a whole at letting go, so that nothing of one configuration reaches into the
next.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from medley_engine.layout import Layout
from medley_engine.memory import wire
from medley_engine.memory.client import ManagerClient
from medley_engine.memory.records import parse_placement
from medley_engine.runtime.collective import Collective
from medley_engine.runtime.devices import Device
from medley_engine.runtime.experts import StepCalledOffError
from medley_engine.runtime.model import MoeModel
from medley_engine.runtime.sampling import draw
from medley_engine.runtime.weights import AttachOptions, KvCache, Place, attach
from medley_engine.runtime_spec import RankSpec
from medley_engine.scheduler import Scheduler, Slice

_LEASE_BATCH = 16
_KEEP_FREE = 48
_MIRROR_S = 10.0
"""How long a follower waits for blocks that its leader got."""


class Attachment:
    """One rank at the pages of one configuration. ``seconds`` says what attaching cost."""

    def __init__(
        self,
        config: str,
        *,
        spec: RankSpec,
        layout: Layout,
        comm: Collective,
        manager: ManagerClient,
        remapper: ManagerClient,
        device: Device,
        call_off: Callable[[], bool],
        populate: bool = False,
    ) -> None:
        self.config, self.draining = config, False
        self._spec, self._comm, self._manager = spec, comm, manager
        self._remapper, self._mapping, self._closed = remapper, threading.Lock(), False
        self._device = device
        start = time.perf_counter()
        reply, fds = manager.call_fds("attach", config=config, rank=spec.rank, holder=spec.holder)
        asked = time.perf_counter()
        self._capacity, block_bytes = int(reply["kvCapacity"]), int(reply["blockBytes"])
        try:
            options = AttachOptions(zero_copy=spec.zero_copy, page_remap=spec.page_remap, populate=populate)
            self._weights = attach(layout, _places(reply), fds[1:], options, device)
            mapped = time.perf_counter()
            kv_bytes = int(reply["kvBytes"])
            if not spec.shared_kv:
                # A KV pool of this process alone, as an engine of its own would have (an ablation).
                fds.append(device.private(kv_bytes, block_bytes * self._capacity))
            self._cache = KvCache(
                fds[0] if spec.shared_kv else fds[-1], kv_bytes, layout,
                block_tokens=spec.block_tokens, block_bytes=block_bytes, device=device,
            )  # fmt: skip
        finally:
            for fd in fds:
                os.close(fd)
        placement = parse_placement(reply["placement"])
        self.model = MoeModel(
            layout.config, self._weights, self._cache, placement, comm,
            invariant=spec.batch_invariant, device=device.torch,
        )  # fmt: skip
        self.model.experts.call_off = call_off
        self.scheduler = self._new_scheduler()
        self.scheduler.free = list(reply["blocks"])
        self._lease_news: list[int] = []
        self._release_news: list[int] = []
        self._release_told: list[int] = []
        self.seconds = {"ask": asked - start, "mapKv": time.perf_counter() - mapped, **self._weights.seconds}
        self.private_bytes = self._weights.private_bytes

    def _new_scheduler(self) -> Scheduler:
        s = self._spec
        return Scheduler(
            block_tokens=s.block_tokens,
            chunk_tokens=s.chunk_tokens,
            budget_tokens=s.budget_tokens,
            max_running=s.max_running,
        )

    @property
    def _leads(self) -> bool:
        return self._comm.tp_rank == 0

    def close(self) -> None:
        """Let go of every page, and tell the manager."""
        with self._mapping:
            self._closed = True
            self._device.synchronise()
            del self.model
            self._device.let_go(self._unmap)
            self._manager.call("detach", holder=self._spec.holder)

    def _unmap(self) -> None:
        self._weights.close()
        self._cache.close()

    def remap(self, items: Sequence[str], *, home: bool) -> int:
        """Map items anew, so that the pages that they lay in can go: those that leave this rank's memory where they
        are now, or (``home``) borrowed ones where they arrived in it. Returns how many.

        Where the device ``remaps_live``, a step may run meanwhile, in another thread: what it reads has the same bytes
        before and after, and the kernel puts one mapping in another's place whole. Elsewhere it is called between
        steps.
        """
        ask, done = ("home", "settled") if home else ("borrow", "give_back")
        with self._mapping:
            if self._closed:
                return 0
            reply, fds = self._remapper.call_fds(ask, holder=self._spec.holder, items=list(items))
            self._device.synchronise()
            try:
                places = _places(reply)
                self._weights.remap(places, fds)
            finally:
                for fd in fds:
                    os.close(fd)
            self._remapper.call(done, holder=self._spec.holder, items=[key for key, _, _, _ in places])
        return len(places)

    def warm_up(self) -> None:
        """One step of one token through every layer and rank, in a block that nobody reads."""
        blocks = self.scheduler.free[:1]
        if not blocks and self._leads:
            blocks, _ = self._manager.lease(self._spec.holder, 1)
            self.scheduler.free += blocks
        shared = json.loads(self._comm.from_leader(json.dumps(blocks).encode()))
        if not self._leads and shared and not set(shared) <= set(self.blocks_held()):
            self._mirror(shared)
        batch = [Slice("warm", 0, (0,), tuple(shared), sample=True, decoding=True)] if shared else []
        self.model.forward(batch)
        self.model.experts.tokens.zero_()

    def blocks_held(self) -> list[int]:
        """Blocks that are lent to this rank, by the manager's book."""
        return list(self._manager.call("kv_blocks", holder=self._spec.holder)["blocks"])

    def drain(self) -> None:
        """Keep no free block from now on."""
        self.draining = True
        self._return_surplus()

    def forget(self) -> None:
        """Drop all sequences; the manager says which blocks are still this rank's."""
        self.scheduler = self._new_scheduler()
        if self._leads:
            if self._release_told:
                self._manager.call("kv_release", holder=self._spec.holder, blocks=self._release_told)
            self._release_news, self._release_told = [], []
            self.scheduler.free = self.blocks_held()

    # --- a step ------------------------------------------------------------------------------------------------

    def choose(self) -> list[Slice]:
        """The next step of this rank's tensor-parallel group: its leader chooses, followers mirror its leases."""
        if self._leads:
            # All ranks have agreed on a step since followers were told, so these have given the blocks back.
            if self._release_told and self._manager.release(self._spec.holder, self._release_told):
                self._release_told = []
            self._lease_more()
        batch = self.scheduler.schedule() if self._leads else []
        if self._spec.tensor_parallel == 1:
            return batch
        message = {
            "batch": [asdict(piece) for piece in batch],
            "lease": self._lease_news,
            "release": self._release_news,
        }
        self._release_told += self._release_news
        self._lease_news, self._release_news = [], []
        told = json.loads(self._comm.from_leader(json.dumps(message).encode()))
        if self._leads:
            return batch
        if told["release"]:
            self._manager.call("kv_release", holder=self._spec.holder, blocks=told["release"])
        if told["lease"]:
            self._mirror(told["lease"])
        return [
            Slice(p["id"], p["start"], tuple(p["tokens"]), tuple(p["blocks"]), p["sample"], p["decoding"])
            for p in told["batch"]
        ]

    def compute(self, batch: Sequence[Slice]) -> dict[str, Any] | None:
        """Compute a step; what its tokens are, for a leader. None where there is nothing to tell: a follower, or a
        step that was called off, of which nothing is recorded, so that whoever gets its sequences computes the same
        keys and values again.
        """
        try:
            logits = self.model.forward(batch)
        except StepCalledOffError:
            return None
        if not self._leads:
            return None
        running = {s.id: s for s in self.scheduler.running}
        sampled = {}
        for row, piece in enumerate(p for p in batch if p.sample):
            sequence = running[piece.id]
            sampled[piece.id] = draw(logits[row], sequence.params, sequence.length)
        results = self.scheduler.complete(batch, sampled)
        self._return_surplus()
        return {
            "out": [[s.id, s.generated[-1], reason] for s, reason in results],
            "stats": self._stats(sum(piece.count for piece in batch)),
        }

    def _lease_more(self) -> None:
        wanted = self.scheduler.wanted_blocks()
        if wanted:
            extra = 0 if self.draining else _LEASE_BATCH
            given, capacity = self._manager.lease(self._spec.holder, wanted + extra)
            self._capacity = self._capacity if capacity is None else capacity
            self._lease_news += given
            self.scheduler.free = sorted([*self.scheduler.free, *given])

    def _return_surplus(self) -> None:
        keep = 0 if self.draining else _KEEP_FREE
        surplus = self.scheduler.free[keep:]
        if not surplus or not (self.draining or len(surplus) >= _LEASE_BATCH):
            return
        if self._spec.tensor_parallel > 1:
            # Followers first: what a leader has free, followers of other groups must be able to lease.
            self._release_news += surplus
        elif not self._manager.release(self._spec.holder, surplus):
            return
        self.scheduler.free = self.scheduler.free[:keep]

    def _mirror(self, blocks: Sequence[int]) -> None:
        """Lease what the leader has leased. A rank that lets go of them may be a moment behind its own leader."""
        end = time.monotonic() + _MIRROR_S
        while True:
            try:
                self._manager.call("kv_lease", holder=self._spec.holder, exactly=list(blocks))
            except wire.RemoteError as error:
                if error.kind != "conflict" or time.monotonic() > end:
                    raise
                time.sleep(0.002)
            else:
                return

    def _stats(self, tokens: int) -> dict[str, Any]:
        s = self.scheduler
        return {
            "running": len(s.running),
            "waiting": len(s.waiting),
            "blocks": sum(len(q.blocks) for q in s.running),
            "capacity": self._capacity,
            "tokens": tokens,
            "preemptions": s.preemptions,
        }


def choose_nothing(comm: Collective) -> list[Slice]:
    """The choice of a rank that is attached to nothing, whose tensor-parallel group still agrees on each step."""
    comm.from_leader(json.dumps({"batch": [], "lease": [], "release": []}).encode())
    return []


def _places(reply: wire.Frame) -> list[Place]:
    return [(str(key), int(pool), int(offset), int(size)) for key, pool, offset, size in reply["items"]]
