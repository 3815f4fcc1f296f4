"""The weight and KV manager (HMM): a process of its own that outlives engines and is itself replaceable.

It imports no torch, so it starts in a fraction of a second. One thread serves each connection, one thread fills
pages, one watches attached processes. Its pools and journals are handed to the supervisor as descriptors when they
are made; a new manager gets them back and goes on without reading the disk again.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from medley_engine.config import Topology, parse_model_config
from medley_engine.layout import Layout
from medley_engine.memory import wire
from medley_engine.memory.checkpoint import Checkpoint
from medley_engine.memory.mapping import Pool
from medley_engine.memory.peer import MemoryTransport, PeerTransport
from medley_engine.memory.store import (
    ConflictError,
    Store,
    UnknownNameError,
    open_journals,
    parse_placement,
    start_ticks,
)
from medley_engine.transition import DiskCopy, PeerCopy, Transition


class FdKeeper(Protocol):
    """Keeps descriptors while the manager is dead."""

    def put(self, name: str, fd: int) -> None:
        """Keep a duplicate under this name."""


@dataclass
class Progress:
    """State of one preparation, for whoever asks."""

    state: str = "planning"
    total_bytes: int = 0
    copied_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    stop: bool = False

    def report(self) -> dict[str, Any]:
        """As a reply."""
        share = self.copied_bytes / self.total_bytes if self.total_bytes else float(self.state == "prepared")
        return {
            "state": self.state,
            "percent": round(100 * share, 1),
            "copiedBytes": self.copied_bytes,
            "totalBytes": self.total_bytes,
            "seconds": self.seconds,
            "plan": self.summary,
            "failure": self.error,
        }


class Abandoned(Exception):  # noqa: N818 - a signal between threads, not an error
    """The preparation was called off."""


class Manager:
    """Answers requests. Transport-free, so that tests can call :meth:`handle`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        layout: Layout,
        *,
        block_tokens: int,
        blocks_per_rank: int,
        kept: dict[str, int] | None = None,
        keeper: FdKeeper | None = None,
        transport: PeerTransport | None = None,
        copy_chunk_pause_s: float = 0.0,
    ) -> None:
        kept = kept or {}
        pools = {name: Pool.adopt(name, fd) for name, fd in kept.items() if not name.startswith("journal/")}
        self.checkpoint = checkpoint
        self.store = Store(layout, block_tokens, blocks_per_rank, pools)
        self._keeper = keeper
        self._kept = set(kept)
        self._transport = transport or MemoryTransport()
        self._pages, self._holders, fresh = open_journals(kept)
        self._progress: dict[str, Progress] = {}
        self._views: dict[str, mmap.mmap] = {}
        self._pause_s = copy_chunk_pause_s
        self.restored = False
        self._watch = select.epoll()
        self._watched: dict[int, str] = {}
        if fresh:
            self._keep("journal/pages", self._pages.fd)
            self._keep("journal/holders", self._holders.fd)
            self._save()
        else:
            state, holders = self._pages.load(), self._holders.load()
            if state is not None:
                self.store.restore(state, holders or {})
                self.restored = True
            for name in self.store.holders:
                self._watch_holder(name)
            self._save()

    # --- requests ----------------------------------------------------------------------------------------------

    def handle(self, request: wire.Frame, peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        """One request, one reply with descriptors. Refusals are replies with ``error``."""
        handlers: dict[str, Callable[[wire.Frame, wire.Peer], tuple[wire.Frame, list[int]]]] = {
            "describe": self._describe,
            "prepare": self._prepare,
            "progress": self._progress_of,
            "commit": self._commit,
            "abandon": self._abandon,
            "attach": self._attach,
            "detach": self._detach,
            "kv_lease": self._kv_lease,
            "kv_release": self._kv_release,
            "kv_transfer": self._kv_transfer,
            "kv_blocks": self._kv_blocks,
        }
        handler = handlers.get(str(request.get("do")))
        if handler is None:
            return {"error": "unknown_request", "message": f"no request {request.get('do')!r}"}, []
        try:
            with self.store.lock:
                return handler(request, peer)
        except UnknownNameError as error:
            return {"error": "not_found", "message": str(error)}, []
        except ConflictError as error:
            return {"error": "conflict", "message": str(error)}, []
        except (ValueError, MemoryError) as error:
            return {"error": "invalid", "message": str(error)}, []

    def _describe(self, _request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        store = self.store
        return {
            "pid": os.getpid(),
            "restored": self.restored,
            "active": store.active,
            "configs": {
                name: {
                    "topology": {
                        "dataParallel": c.topology.data_parallel,
                        "tensorParallel": c.topology.tensor_parallel,
                    },
                    "pinned": c.pinned,
                    "prepared": c.prepared,
                    "placement": c.placement.layers,
                }
                for name, c in store.configs.items()
            },
            "holders": {
                name: {"pid": h.pid, "config": h.config, "blocks": len(h.blocks)} for name, h in store.holders.items()
            },
            "pools": {name: pool.resident_bytes for name, pool in store.pools.items()},
            "weightBytes": sum(copy.extent.size for copy in store.copies.values()),
            "diskBytesRead": self.checkpoint.bytes_read,
            "blockBytes": store.block_bytes,
            "kvCapacity": {name: store.kv_capacity(name) for name in store.pools if name.startswith("kv/")},
        }, []

    def _prepare(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        name = str(request["config"])
        busy = [other for other, p in self._progress.items() if other != name and p.state in ("planning", "copying")]
        if busy:
            raise ConflictError(f"configuration {busy[0]} is being prepared")
        topology = Topology(**request["topology"])
        fresh = self.store.add_config(
            name, topology, parse_placement(request["placement"]), armed=bool(request.get("armed", False))
        )
        running = self._progress.get(name)
        if fresh or running is None or running.state in ("failed", "abandoned"):
            progress = self._progress[name] = Progress()
            options = (name, bool(request.get("peer", True)), bool(request.get("shared", True)), progress)
            threading.Thread(target=self._fill, args=options, name=f"fill-{name}", daemon=True).start()
        return self._progress[name].report(), []

    def _progress_of(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        name = str(request["config"])
        if name in self._progress:
            return self._progress[name].report(), []
        return Progress(state="prepared" if self.store.config(name).prepared else "unknown").report(), []

    def _commit(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        self.store.commit(str(request["config"]))
        self._save()
        return {"active": self.store.active}, []

    def _abandon(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        name = str(request["config"])
        progress = self._progress.get(name)
        if progress is not None and progress.state in ("planning", "copying"):
            # The filling thread still writes to these pages: it lets go of them itself, at the next item.
            progress.stop = True
        else:
            self.store.abandon(name)
            self._save()
        return {}, []

    def _attach(self, request: wire.Frame, peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        name, rank, holder = str(request["config"]), int(request["rank"]), str(request["holder"])
        items = self.store.attach(name, rank, holder, peer.pid)
        self._watch_holder(holder)
        config = self.store.config(name)
        weights = f"weights/{config.topology.domain(rank)}"
        kv = self.store.kv_pool_name(holder)
        fds = [self._pool(weights).fd, self._pool(kv).fd]
        self._save_holders()
        return {
            "items": items,
            "placement": config.placement.layers,
            "kvPool": kv,
            "blockBytes": self.store.block_bytes,
            "kvCapacity": self.store.kv_capacity(kv),
            "blocks": sorted(self.store.holders[holder].blocks),
        }, fds

    def _detach(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        self.store.detach(str(request["holder"]))
        self._save()
        return {}, []

    def _kv_lease(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        holder = str(request["holder"])
        blocks = self.store.kv_lease(holder, int(request.get("count", 0)), request.get("exactly"))
        self._save_holders()
        return {"blocks": blocks, "capacity": self.store.kv_capacity(self.store.kv_pool_name(holder))}, []

    def _kv_blocks(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        held = self.store.holders.get(str(request["holder"]))
        return {"blocks": sorted(held.blocks) if held else []}, []

    def _kv_release(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        self.store.kv_release(str(request["holder"]), request["blocks"])
        self._save_holders()
        return {}, []

    def _kv_transfer(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        blocks = self.store.kv_transfer(str(request["source"]), str(request["target"]), request["blocks"])
        self._save_holders()
        return {"blocks": blocks}, []

    # --- filling pages -----------------------------------------------------------------------------------------

    def _fill(self, name: str, peer_allowed: bool, shared: bool, progress: Progress) -> None:
        try:
            with self.store.lock:
                transition = self.store.plan_for(name, peer_allowed=peer_allowed)
                progress.summary = summarise(transition)
                progress.total_bytes = transition.copied_bytes
                steps: list[DiskCopy | PeerCopy] = [*transition.disk, *transition.peer]
                for domain, item in sorted({(step.domain, step.item) for step in steps}):
                    self.store.reserve(domain, item)
                self._save()
            progress.state = "copying"
            self._timed("disk", progress, lambda: self._run_disk(transition, progress))
            self._timed("peer", progress, lambda: self._run_peer(transition, progress, shared))
            self._finish_fill(name, progress)
        except (Abandoned, UnknownNameError):
            with self.store.lock:
                progress.state = "abandoned"
                self._drop_half(name)
        except Exception as error:  # noqa: BLE001 - reported to whoever asked; the thread has no caller
            with self.store.lock:
                progress.state, progress.error = "failed", f"{type(error).__name__}: {error}"
                self._drop_half(name)

    def _finish_fill(self, name: str, progress: Progress) -> None:
        with self.store.lock:
            if progress.stop:
                raise Abandoned
            self.store.config(name).prepared = True
            self._save()
        progress.state = "prepared"

    def _drop_half(self, name: str) -> None:
        """After a broken attempt: the configuration goes, and with it every page that only it wanted."""
        if name in self.store.configs and name != self.store.active:
            self.store.configs[name].pinned = False
        self.store.collect()
        self._save()

    def _timed(self, name: str, progress: Progress, work: Callable[[], None]) -> None:
        start = time.perf_counter()
        work()
        progress.seconds[name] = time.perf_counter() - start

    def _run_disk(self, transition: Transition, progress: Progress) -> None:
        # In the order of the file, so that the disk reads forwards.
        order = {key: position for position, key in enumerate(self.store.layout.items)}
        for step in sorted(transition.disk, key=lambda s: (order[s.item], s.domain)):
            self._fill_one(step, progress, partial(self._read, step))

    def _read(self, step: DiskCopy, target: memoryview) -> None:
        self.checkpoint.read_item(self.store.layout.items[step.item], self.store.layout.dtype, target)

    def _run_peer(self, transition: Transition, progress: Progress, shared: bool) -> None:
        for step in transition.peer:
            self._fill_one(step, progress, partial(self._copy, step, shared))

    def _copy(self, step: PeerCopy, shared: bool, target: memoryview) -> None:
        with self.store.lock:
            extent = self.store.copies[step.source, step.item].extent
        source = memoryview(self._view(f"weights/{step.source}"))[extent.offset : extent.end]
        if not shared:
            # Without memory that both ends can name, bytes are staged through a buffer of the sender (an ablation).
            source = memoryview(bytes(source))
        self._transport.copy(source, target)

    def _fill_one(self, step: DiskCopy | PeerCopy, progress: Progress, fill: Callable[[memoryview], None]) -> None:
        with self.store.lock:
            if progress.stop:
                raise Abandoned
            copy = self.store.copies.get((step.domain, step.item))
            if copy is None:
                raise Abandoned
            extent = copy.extent
        fill(memoryview(self._view(f"weights/{step.domain}"))[extent.offset : extent.offset + extent.size])
        with self.store.lock:
            copy.valid = True
        progress.copied_bytes += step.size_bytes
        if self._pause_s:
            time.sleep(self._pause_s)

    # --- descriptors, journals, watching ------------------------------------------------------------------------

    def _pool(self, name: str) -> Pool:
        pool = self.store.pool(name)
        self._keep(name, pool.fd)
        return pool

    def _view(self, name: str) -> mmap.mmap:
        with self.store.lock:
            if name not in self._views:
                pool = self._pool(name)
                self._views[name] = mmap.mmap(pool.fd, pool.capacity_bytes)
            return self._views[name]

    def _keep(self, name: str, fd: int) -> None:
        if name not in self._kept:
            self._kept.add(name)
            if self._keeper is not None:
                self._keeper.put(name, fd)

    def _save(self) -> None:
        self._pages.store(self.store.dump())
        self._save_holders()

    def _save_holders(self) -> None:
        self._holders.store(self.store.dump_holders())

    def _watch_holder(self, name: str) -> None:
        pidfd = os.pidfd_open(self.store.holders[name].pid)
        self._watched[pidfd] = name
        self._watch.register(pidfd, select.EPOLLIN)

    def reap(self, timeout_s: float) -> list[str]:
        """Wait for attached processes to end and drop what they held; returns the names dropped."""
        dropped = []
        for pidfd, _ in self._watch.poll(timeout_s):
            with self.store.lock:
                name = self._watched.pop(pidfd)
                self._watch.unregister(pidfd)
                os.close(pidfd)
                held = self.store.holders.get(name)
                from_now = held is not None and start_ticks(held.pid) != held.start_ticks
                if from_now:
                    self.store.detach(name)
                    self._save()
                    dropped.append(name)
        return dropped


def summarise(transition: Transition) -> dict[str, Any]:
    """A transition in numbers."""
    return {
        "diskBytes": sum(s.size_bytes for s in transition.disk),
        "diskItems": len(transition.disk),
        "peerBytes": sum(s.size_bytes for s in transition.peer),
        "peerItems": len(transition.peer),
        "zeroCopyItems": len(transition.zero_copy),
        "freeAfterItems": len(transition.free_after),
        "remapped": {str(rank): count for rank, count in transition.remapped.items()},
        "beforeBytes": transition.before_bytes,
        "peakBytes": transition.peak_bytes,
        "afterBytes": transition.after_bytes,
        "estimatedSeconds": round(transition.estimated_s, 6),
    }


def serve(manager: Manager, path: Path, token: str) -> None:
    """Serve until the process is told to end."""
    server = wire.listen(path)
    threading.Thread(target=_reap_forever, args=(manager,), name="reaper", daemon=True).start()
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_converse, args=(manager, connection, token), daemon=True).start()


def _reap_forever(manager: Manager) -> None:
    while True:
        manager.reap(1.0)


def _converse(manager: Manager, connection: socket.socket, token: str) -> None:
    with connection:
        try:
            peer, _ = wire.accept_peer(connection, token)
            while True:
                request, fds = wire.receive_frame(connection)
                for fd in fds:
                    os.close(fd)
                reply, give = manager.handle(request, peer)
                wire.send_frame(connection, reply, give)
        except (EOFError, ConnectionError):
            return


def build_manager(model: Path, dtype: str, tensor_parallel: int, page_bytes: int, **options: Any) -> Manager:
    """A manager for a checkpoint folder."""
    checkpoint = Checkpoint(model)
    layout = Layout(parse_model_config(checkpoint.raw_config), dtype, tensor_parallel, page_bytes)
    return Manager(checkpoint, layout, **options)
