"""A rank process: one part of one engine instance. It waits as a standby, attaches to pages, serves, and lets go again.

Ranks of an instance compute in lock step, because every MoE layer exchanges tokens between all of them. They agree
before each step by gathering a few integers: whether anybody has work, the number of the last wake-up each has seen,
and whether it knows that the coordinator is gone. They fall asleep together only when nobody has work and all have
seen the same, so no rank ever waits in a collective for one that sleeps.

A second thread maps pages anew where items move between memories (``remap``): the bytes are the same, so the step
that runs needs not end first. A GPU's addresses cannot be mapped over, so there it is done between steps.

The coordinator talks to each rank over a Unix socket. When it dies, sequences are dropped (their clients are gone
with it), pages stay attached, and the rank waits for the next coordinator.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medley_engine.config import parse_model_config
from medley_engine.layout import Layout
from medley_engine.memory import wire
from medley_engine.memory.client import ManagerClient
from medley_engine.runtime.attachment import Attachment, choose_nothing
from medley_engine.runtime.collective import Collective
from medley_engine.runtime.devices import device_of
from medley_engine.runtime.mailbox import Mailbox
from medley_engine.runtime.sampling import draw
from medley_engine.runtime_spec import RankSpec
from medley_engine.scheduler import SamplingParams, Sequence


class Rank:
    """The process's loop: commands between steps, and sleep that all ranks of the instance agree on."""

    def __init__(self, spec: RankSpec, token: str) -> None:
        self.spec = spec
        run_dir = Path(spec.run_dir)
        config = parse_model_config(json.loads((Path(spec.model) / "config.json").read_text()))
        self.layout = Layout(config, spec.dtype, spec.tensor_parallel, spec.page_bytes)
        self.device = device_of(spec.device, spec.rank)
        self.comm = Collective(
            run_dir / spec.instance, spec.rank, spec.size, token=token, tensor_parallel=spec.tensor_parallel
        )
        self.manager = ManagerClient(run_dir / "hmm.sock", token, role="rank")
        self.remapper = ManagerClient(run_dir / "hmm.sock", token, role="rank")
        aside = frozenset({"remap"} if self.device.remaps_live else ())
        self.mailbox = Mailbox(wire.listen(spec.socket_path), token, apart=aside)
        self.attached: Attachment | None = None
        self.wake_seq = 0
        self.awake = False
        self.orphaned = False

    # --- commands ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Obey until told to stop."""
        _exercise(self.spec, self.device.torch)
        threading.Thread(target=self._remap_forever, name="remap", daemon=True).start()
        while True:
            while not self.awake or not self.mailbox.inbox.empty():
                frame = self.mailbox.inbox.get()
                if frame.get("do") == "stop":
                    return
                self._obey(frame)
            self._step()

    def _remap_forever(self) -> None:
        while True:
            self._obey(self.mailbox.aside.get())

    def _obey(self, frame: wire.Frame) -> None:
        commands: dict[str, Callable[[wire.Frame], None]] = {
            "hello": self._hello,
            "attach": self._attach,
            "detach": self._detach,
            "remap": self._remap,
            "warm": self._warm,
            "wake": self._wake,
            "add": self._add,
            "abort": self._abort,
            "export": self._export,
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

    def _attachment(self) -> Attachment:
        if self.attached is None:
            raise ValueError("not attached")
        return self.attached

    def _hello(self, _frame: wire.Frame) -> None:
        self.orphaned = False
        state, config = ("standby", None) if self.attached is None else ("attached", self.attached.config)
        self.mailbox.send({"hello": state, "config": config, "pid": os.getpid(), "size": self.spec.size})

    def _attach(self, frame: wire.Frame) -> None:
        name = str(frame["config"])
        if self.attached is not None and self.attached.config == name:
            self._reply(frame, seconds={})
            return
        if self.attached is not None:
            raise ValueError(f"attached to {self.attached.config} already")
        self.attached = Attachment(
            name, spec=self.spec, layout=self.layout, comm=self.comm, manager=self.manager,
            remapper=self.remapper, device=self.device, call_off=self.mailbox.wants_export,
            populate=bool(frame.get("populate")),
        )  # fmt: skip
        self._reply(frame, seconds=self.attached.seconds, privateBytes=self.attached.private_bytes)

    def _detach(self, frame: wire.Frame) -> None:
        if self.attached is not None:
            if self.attached.scheduler.busy:
                raise ValueError("sequences are still running")
            attached, self.attached = self.attached, None
            attached.close()
        self._reply(frame)

    def _remap(self, frame: wire.Frame) -> None:
        self._reply(frame, items=self._attachment().remap(frame["items"], home=bool(frame["home"])))

    def _warm(self, frame: wire.Frame) -> None:
        start = time.perf_counter()
        self._attachment().warm_up()
        self._reply(frame, seconds={"warm": time.perf_counter() - start})

    def _wake(self, frame: wire.Frame) -> None:
        self.wake_seq = max(self.wake_seq, int(frame["seq"]))
        self.awake = self.awake or self.attached is not None

    def _add(self, frame: wire.Frame) -> None:
        scheduler = self._attachment().scheduler
        scheduler.skip_prompts_once |= bool(frame.get("decode_first"))
        for raw in frame["sequences"]:
            scheduler.add(Sequence.parse(raw))

    def _abort(self, frame: wire.Frame) -> None:
        for sequence_id in frame["ids"] if self.attached is not None else ():
            self._attachment().scheduler.abort(str(sequence_id))

    def _export(self, frame: wire.Frame) -> None:
        """Stop computing for all sequences and tell where each stands. Their blocks stay lent to this rank until the
        manager passes them on, or the rank lets go.
        """
        self.mailbox.exported()
        # A step that was called off may still write keys and values.
        self.device.synchronise()
        given = self.attached.scheduler.export() if self.attached is not None else []
        self._reply(frame, sequences=[s.dump() for s in given])

    def _gift(self, frame: wire.Frame) -> None:
        """Blocks that came with sequences which nobody waits for any more."""
        scheduler = self._attachment().scheduler
        scheduler.free = sorted([*scheduler.free, *frame["blocks"]])

    def _drain(self, _frame: wire.Frame) -> None:
        self._attachment().drain()

    def _loads(self, frame: wire.Frame) -> None:
        tokens = self.attached.model.experts.tokens.tolist() if self.attached is not None else []
        self._reply(frame, tokens=tokens)

    def _orphan(self, _frame: wire.Frame) -> None:
        """Without a coordinator nobody waits for these tokens."""
        self.orphaned = True
        if self.attached is not None:
            self.attached.forget()
        self.awake = self.attached is not None

    # --- computing ---------------------------------------------------------------------------------------------

    def _step(self) -> None:
        # A rank that has let go goes on agreeing with those that have not, until all fall asleep together.
        batch = choose_nothing(self.comm) if self.attached is None else self.attached.choose()
        busy = self.attached is not None and self.attached.scheduler.busy
        tokens = sum(piece.count for piece in batch)
        table = self.comm.gather([self.wake_seq, int(busy), tokens, int(self.orphaned)])
        if any(row[3] for row in table):
            self.wake_seq = max(row[0] for row in table)
        if not any(row[2] for row in table):
            self._maybe_sleep(table)
            return
        told = self._attachment().compute(batch)
        if told is not None:
            self.mailbox.send(told)

    def _maybe_sleep(self, table: list[list[int]]) -> None:
        if any(row[1] for row in table):
            # Somebody waits for KV blocks: look again soon, or as soon as a command comes.
            try:
                frame = self.mailbox.inbox.get(timeout=0.005)
            except queue.Empty:
                return
            self.mailbox.inbox.queue.appendleft(frame)
        elif len({(row[0], row[3]) for row in table}) == 1:
            # Not before all know of the same coordinator's end: it wakes each rank once, and must find none asleep.
            self.awake = False


def _exercise(spec: RankSpec, device: torch.device) -> None:
    """Pay for lazy initialisation while still a standby: first products, first sort, first softmax."""
    x = torch.zeros(16, 64, dtype=torch.float32, device=device)
    torch.nn.functional.silu(x @ x.T).softmax(-1).topk(2)
    numbers = torch.zeros(4, dtype=torch.int64, device=device)
    torch.argsort(numbers, stable=True)
    torch.bincount(numbers, minlength=4)
    draw(x[0], SamplingParams(max_tokens=1), spec.rank)


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
