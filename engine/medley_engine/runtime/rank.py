"""A rank process: one part of one engine instance. It waits as a standby, attaches to pages, serves, and lets go again.

Ranks of an instance compute in lock step, because every MoE layer exchanges tokens between all of them. They agree
before each step by gathering a few integers: whether anybody has work, and the number of the last wake-up each has
seen. They fall asleep together only when nobody has work and all have seen the same wake-up, so no rank ever waits in
a collective for one that sleeps.

The coordinator talks to each rank over a Unix socket. When it dies, sequences are dropped (their clients are gone
with it), pages stay attached, and the rank waits for the next coordinator.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from medley_engine.config import parse_model_config
from medley_engine.layout import Layout
from medley_engine.memory import wire
from medley_engine.memory.client import ManagerClient
from medley_engine.memory.records import parse_placement
from medley_engine.runtime.collective import Collective
from medley_engine.runtime.experts import StepCalledOffError
from medley_engine.runtime.model import MoeModel
from medley_engine.runtime.sampling import draw
from medley_engine.runtime.weights import AttachOptions, KvCache, Place, Weights, attach
from medley_engine.runtime_spec import RankSpec
from medley_engine.scheduler import Scheduler, Sequence, Slice

_LEASE_BATCH = 16
_KEEP_FREE = 48


class Mailbox:
    """Frames from the coordinator, read by a thread; ``orphaned`` turns True when it went away."""

    def __init__(self, server: socket.socket, token: str) -> None:
        self._server, self._token = server, token
        self.inbox: queue.Queue[wire.Frame] = queue.Queue()
        self._connection: socket.socket | None = None
        self._lock = threading.Lock()
        # Each is written by one thread only.
        self._exports_come = self._exports_obeyed = 0
        threading.Thread(target=self._run, name="mailbox", daemon=True).start()

    def _run(self) -> None:
        while True:
            connection, _ = self._server.accept()
            try:
                wire.accept_peer(connection, self._token)
                with self._lock:
                    self._connection = connection
                self.inbox.put({"do": "hello"})
                while True:
                    frame, _ = wire.receive_frame(connection)
                    self._exports_come += frame.get("do") == "export"
                    self.inbox.put(frame)
            except (EOFError, OSError):
                with self._lock:
                    self._connection = None
                connection.close()
                self.inbox.put({"do": "orphaned"})

    def wants_export(self) -> bool:
        """Whether a command that ends the running step has come."""
        return self._exports_come > self._exports_obeyed

    def exported(self) -> None:
        """Such a command was obeyed."""
        self._exports_obeyed += 1

    def send(self, frame: wire.Frame) -> None:
        """Send to the coordinator; lost where there is none (it will ask for the state when it comes back)."""
        with self._lock:
            if self._connection is None:
                return
            try:
                wire.send_frame(self._connection, frame)
            except OSError:
                self._connection = None


class Rank:
    """State of the process and its loop."""

    def __init__(self, spec: RankSpec, token: str) -> None:
        self.spec = spec
        run_dir = Path(spec.run_dir)
        folder = Path(spec.model)
        config = parse_model_config(json.loads((folder / "config.json").read_text()))
        self.layout = Layout(config, spec.dtype, spec.tensor_parallel, spec.page_bytes)
        self.comm = Collective(run_dir / f"{spec.instance}.store", spec.rank, spec.size, spec.tensor_parallel)
        self.manager = ManagerClient(run_dir / "hmm.sock", token, role="rank")
        self.mailbox = Mailbox(wire.listen(spec.socket_path), token)
        self.scheduler = self._new_scheduler()
        self.weights: Weights | None = None
        self.cache: KvCache | None = None
        self.model: MoeModel | None = None
        self.config_name: str | None = None
        self.capacity = 0
        self.wake_seq = 0
        self.awake = False
        self.orphaned = False
        self.draining = False
        self.steps = 0
        self.exported: dict[str, list[int]] = {}
        self._lease_news: list[int] = []
        self._release_news: list[int] = []

    def _new_scheduler(self) -> Scheduler:
        s = self.spec
        return Scheduler(
            block_tokens=s.block_tokens,
            chunk_tokens=s.chunk_tokens,
            budget_tokens=s.budget_tokens,
            max_running=s.max_running,
        )

    @property
    def leads(self) -> bool:
        """Whether this rank schedules for its tensor-parallel group."""
        return self.comm.tp_rank == 0

    # --- commands ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Obey until told to stop."""
        _exercise(self.spec)
        while True:
            while not self.awake or not self.mailbox.inbox.empty():
                frame = self.mailbox.inbox.get()
                if frame.get("do") == "stop":
                    return
                self._obey(frame)
            self._step()

    def _obey(self, frame: wire.Frame) -> None:
        commands: dict[str, Callable[[wire.Frame], None]] = {
            "hello": self._hello,
            "attach": self._attach,
            "detach": self._detach,
            "borrow": self._borrow,
            "warm": self._warm,
            "wake": self._wake,
            "add": self._add,
            "abort": self._abort,
            "export": self._export,
            "handed": self._handed,
            "gift": self._gift,
            "drain": self._drain,
            "loads": self._loads,
            "orphaned": self._orphan,
        }
        command = commands.get(str(frame.get("do")), self._unknown)
        try:
            command(frame)
        except (wire.RemoteError, ConnectionError, OSError, ValueError) as error:
            self.mailbox.send({"re": frame.get("id"), "error": f"{type(error).__name__}: {error}"})

    def _unknown(self, frame: wire.Frame) -> None:
        raise ValueError(f"no command {frame.get('do')!r}")

    def _reply(self, frame: wire.Frame, **fields: Any) -> None:
        self.mailbox.send({"re": frame.get("id"), **fields})

    def _hello(self, _frame: wire.Frame) -> None:
        self.orphaned = False
        state = "standby" if self.config_name is None else "attached"
        self.mailbox.send({"hello": state, "config": self.config_name, "pid": os.getpid(), "size": self.spec.size})

    def _attach(self, frame: wire.Frame) -> None:
        name, start = str(frame["config"]), time.perf_counter()
        if self.config_name == name:
            self._reply(frame, seconds={})
            return
        if self.config_name is not None:
            raise ValueError(f"attached to {self.config_name} already")
        reply, fds = self.manager.call_fds("attach", config=name, rank=self.spec.rank, holder=self.spec.holder)
        try:
            options = AttachOptions(
                zero_copy=self.spec.zero_copy, page_remap=self.spec.page_remap, populate=bool(frame.get("populate"))
            )
            asked = time.perf_counter()
            self.weights = attach(self.layout, _places(reply), fds[1:], options)
            mapped = time.perf_counter()
            kv_fd = (
                fds[0] if self.spec.shared_kv else self._private_kv(int(reply["blockBytes"]), int(reply["kvCapacity"]))
            )
            self.cache = KvCache(kv_fd, self.layout, self.spec.block_tokens, int(reply["blockBytes"]))
        finally:
            for fd in fds:
                os.close(fd)
        placement = parse_placement(reply["placement"])
        self.model = MoeModel(
            self.layout.config, self.weights, self.cache, placement, self.comm, invariant=self.spec.batch_invariant
        )
        self.model.experts.call_off = self.mailbox.wants_export
        self.config_name, self.capacity, self.draining = name, int(reply["kvCapacity"]), False
        # What was leased or given back before concerned blocks of the last attachment, which ended with it.
        self._lease_news, self._release_news = [], []
        self.scheduler = self._new_scheduler()
        self.scheduler.free = list(reply["blocks"])
        seconds = {"ask": asked - start, "mapKv": time.perf_counter() - mapped, **self.weights.seconds}
        self._reply(frame, seconds=seconds, privateBytes=self.weights.private_bytes)

    def _private_kv(self, block_bytes: int, capacity: int) -> int:
        """A KV pool of this process alone (an ablation); all of it is touched, as an engine of its own would."""
        fd = os.memfd_create("medley:private-kv", os.MFD_CLOEXEC)
        os.ftruncate(fd, block_bytes << 16)
        for block in range(capacity):
            os.pwrite(fd, bytes(block_bytes), block * block_bytes)
        return fd

    def _detach(self, frame: wire.Frame) -> None:
        if self.scheduler.busy:
            raise ValueError("sequences are still running")
        self.model = None
        if self.weights is not None:
            self.weights.close()
        if self.cache is not None:
            self.cache.close()
        self.weights = self.cache = None
        if self.config_name is not None:
            self.manager.call("detach", holder=self.spec.holder)
        self.config_name = None
        self.scheduler = self._new_scheduler()
        self._reply(frame)

    def _borrow(self, frame: wire.Frame) -> None:
        """Map experts that leave this rank's memory where they lie now, so that their old pages can go at once. A
        command runs between two steps, so nothing reads what is mapped anew.
        """
        if self.weights is None:
            raise ValueError("not attached")
        reply, fds = self.manager.call_fds("borrow", holder=self.spec.holder, items=frame["items"])
        try:
            places = _places(reply)
            self.weights.remap(places, fds)
        finally:
            for fd in fds:
                os.close(fd)
        self.manager.call("give_back", holder=self.spec.holder, items=[key for key, _, _, _ in places])
        self._reply(frame, items=len(places))

    def _warm(self, frame: wire.Frame) -> None:
        """One step through every layer and rank, in a block that nobody reads; numbers do not matter, so no padding."""
        assert self.model is not None
        start = time.perf_counter()
        blocks = self.scheduler.free[:1]
        if not blocks and self.leads:
            blocks, _ = self.manager.lease(self.spec.holder, 1)
            self.scheduler.free += blocks
        shared = json.loads(self.comm.from_leader(json.dumps(blocks).encode()))
        if not self.leads and shared and not set(shared) <= set(self._blocks_held()):
            self.manager.call("kv_lease", holder=self.spec.holder, exactly=shared)
        batch = [Slice("warm", 0, (0,), tuple(shared), sample=True, decoding=True)] if shared else []
        self.model.forward(batch)
        self.model.experts.tokens.zero_()
        self._reply(frame, seconds={"warm": time.perf_counter() - start})

    def _blocks_held(self) -> list[int]:
        return list(self.manager.call("kv_blocks", holder=self.spec.holder)["blocks"])

    def _wake(self, frame: wire.Frame) -> None:
        self.wake_seq = max(self.wake_seq, int(frame["seq"]))
        self.awake = self.model is not None

    def _add(self, frame: wire.Frame) -> None:
        self.scheduler.skip_prompts_once |= bool(frame.get("decode_first"))
        for raw in frame["sequences"]:
            self.scheduler.add(Sequence.parse(raw))

    def _abort(self, frame: wire.Frame) -> None:
        for sequence_id in frame["ids"]:
            self.scheduler.abort(str(sequence_id))

    def _export(self, frame: wire.Frame) -> None:
        """Stop computing for all sequences and tell where each stands; their blocks stay lent to this rank until
        ``handed``.
        """
        self.mailbox.exported()
        given = self.scheduler.export()
        self.exported.update({s.id: list(s.blocks) for s in given})
        self._reply(frame, sequences=[s.dump() for s in given])

    def _handed(self, frame: wire.Frame) -> None:
        """The blocks of these sequences belong to another rank now."""
        for sequence_id in frame["ids"]:
            self.exported.pop(str(sequence_id), None)

    def _gift(self, frame: wire.Frame) -> None:
        """Blocks that came with sequences which nobody waits for any more."""
        self.scheduler.free = sorted([*self.scheduler.free, *frame["blocks"]])

    def _drain(self, _frame: wire.Frame) -> None:
        self.draining = True
        self._return_surplus()

    def _loads(self, frame: wire.Frame) -> None:
        tokens = self.model.experts.tokens.tolist() if self.model is not None else []
        self._reply(frame, tokens=tokens)

    def _orphan(self, _frame: wire.Frame) -> None:
        """Without a coordinator nobody waits for these tokens. The manager says which blocks are still this rank's."""
        self.orphaned = True
        self.scheduler = self._new_scheduler()
        self.exported.clear()
        if self.model is not None and self.leads:
            self.scheduler.free = self._blocks_held()
        self.awake = self.model is not None

    # --- computing ---------------------------------------------------------------------------------------------

    def _step(self) -> None:
        if self.leads:
            self._lease_more()
        batch = self._agree_on_batch()
        tokens = sum(piece.count for piece in batch)
        table = self.comm.gather([self.wake_seq, int(self.scheduler.busy), tokens, int(self.orphaned)])
        if any(row[3] for row in table):
            self.wake_seq = max(row[0] for row in table)
        if not any(row[2] for row in table):
            self._maybe_sleep(table)
            return
        assert self.model is not None
        try:
            logits = self.model.forward(batch)
        except StepCalledOffError:
            # Nothing was recorded: whoever gets these sequences computes the same keys and values again.
            return
        self.steps += 1
        if not self.leads:
            return
        sampled = {}
        for row, piece in enumerate(p for p in batch if p.sample):
            sequence = next(s for s in self.scheduler.running if s.id == piece.id)
            sampled[piece.id] = draw(logits[row], sequence.params, sequence.length)
        results = self.scheduler.complete(batch, sampled)
        self._return_surplus()
        self.mailbox.send(
            {
                "out": [[s.id, s.generated[-1], reason] for s, reason in results],
                "stats": self._stats(tokens),
            }
        )

    def _maybe_sleep(self, table: list[list[int]]) -> None:
        if any(row[1] for row in table):
            # Somebody waits for KV blocks: look again soon, or as soon as a command comes.
            try:
                frame = self.mailbox.inbox.get(timeout=0.005)
            except queue.Empty:
                return
            self.mailbox.inbox.queue.appendleft(frame)
        elif len({row[0] for row in table}) == 1:
            self.awake = False

    def _agree_on_batch(self) -> list[Slice]:
        """The leader's batch, for all ranks of its tensor-parallel group; followers mirror its leases."""
        batch = self.scheduler.schedule() if self.leads else []
        if self.spec.tensor_parallel == 1:
            return batch
        message = {
            "batch": [asdict(piece) for piece in batch],
            "lease": self._lease_news,
            "release": self._release_news,
        }
        self._lease_news, self._release_news = [], []
        told = json.loads(self.comm.from_leader(json.dumps(message).encode()))
        if self.leads:
            return batch
        if told["release"]:
            self.manager.call("kv_release", holder=self.spec.holder, blocks=told["release"])
        if told["lease"]:
            self.manager.call("kv_lease", holder=self.spec.holder, exactly=told["lease"])
        return [
            Slice(p["id"], p["start"], tuple(p["tokens"]), tuple(p["blocks"]), p["sample"], p["decoding"])
            for p in told["batch"]
        ]

    def _lease_more(self) -> None:
        wanted = self.scheduler.wanted_blocks()
        if wanted:
            extra = 0 if self.draining else _LEASE_BATCH
            given, capacity = self.manager.lease(self.spec.holder, wanted + extra)
            self.capacity = self.capacity if capacity is None else capacity
            self._lease_news += given
            self.scheduler.free = sorted([*self.scheduler.free, *given])

    def _return_surplus(self) -> None:
        keep = 0 if self.draining else _KEEP_FREE
        surplus = self.scheduler.free[keep:]
        if (
            surplus
            and (self.draining or len(surplus) >= _LEASE_BATCH)
            and self.manager.release(self.spec.holder, surplus)
        ):
            self._release_news += surplus
            self.scheduler.free = self.scheduler.free[:keep]

    def _stats(self, tokens: int) -> dict[str, Any]:
        s = self.scheduler
        return {
            "running": len(s.running),
            "waiting": len(s.waiting),
            "blocks": sum(len(q.blocks) for q in s.running),
            "capacity": self.capacity,
            "tokens": tokens,
            "preemptions": s.preemptions,
        }


def _places(reply: wire.Frame) -> list[Place]:
    return [(str(key), int(pool), int(offset), int(size)) for key, pool, offset, size in reply["items"]]


def _exercise(spec: RankSpec) -> None:
    """Pay for lazy initialisation while still a standby: first products, first sort, first softmax."""
    x = torch.zeros(16, 64, dtype=torch.float32)
    torch.nn.functional.silu(x @ x.T).softmax(-1).topk(2)
    torch.argsort(torch.zeros(4, dtype=torch.int64), stable=True)
    torch.bincount(torch.zeros(4, dtype=torch.int64), minlength=4)
    draw(x[0], _greedy(), spec.rank)


def _greedy() -> Any:
    from medley_engine.scheduler import SamplingParams  # noqa: PLC0415

    return SamplingParams(max_tokens=1)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends, so that nothing outlives a supervisor."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("parent ended before this process could tie itself to it")


def serve(spec: dict[str, Any]) -> None:
    """Be the rank that ``spec`` (the fields of a :class:`RankSpec`) tells, until told to stop."""
    told = RankSpec(**spec)
    torch.set_num_threads(told.threads)
    Rank(told, os.environ["MEDLEY_ENGINE_TOKEN"]).run()
