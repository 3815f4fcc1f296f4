"""The weight and KV manager (HMM): a process of its own that outlives engines and is itself replaceable.

It imports no torch, so it starts in a fraction of a second. One thread serves each connection, one thread fills
pages, one watches attached processes. Its pools and journals are handed to the supervisor as descriptors when they
are made; a new manager gets them back and goes on without reading the disk again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping

from medley_engine.layout import Layout
from medley_engine.memory import wire
from medley_engine.memory.checkpoint import Checkpoint
from medley_engine.memory.filling import Filler, Options
from medley_engine.memory.host import HostMemory
from medley_engine.memory.journal import open_journals
from medley_engine.memory.lending import Lending
from medley_engine.memory.peer import DirectTransport, PeerTransport
from medley_engine.memory.pools import FdKeeper, Memory, NoKeeper
from medley_engine.memory.progress import Progress
from medley_engine.memory.records import ConflictError, UnknownNameError, parse_placement, start_ticks
from medley_engine.memory.store import Store
from medley_engine.memory.watching import HolderWatch
from medley_engine.topology import Topology


class Manager:
    """Answers requests. Transport-free, so that tests can call :meth:`handle`. ``kept`` is what a predecessor left with
    the keeper, ``memory`` makes what items live in.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        layout: Layout,
        *,
        block_tokens: int,
        blocks_per_rank: int,
        kept: Mapping[str, int] | None = None,
        keeper: FdKeeper | None = None,
        memory: Callable[[FdKeeper, Mapping[str, int]], Memory] = HostMemory,
        transport: PeerTransport | None = None,
        copy_chunk_pause_s: float = 0.0,
    ) -> None:
        kept, keeper = kept or {}, keeper or NoKeeper()
        pages = {name: fd for name, fd in kept.items() if not name.startswith("journal/")}
        self.checkpoint = checkpoint
        self.store = Store(layout, block_tokens, blocks_per_rank, memory(keeper, pages))
        self._pages, self._holders, fresh = open_journals(kept)
        self._progress: dict[str, Progress] = {}
        self._filling: list[threading.Thread] = []
        self._pause_s = copy_chunk_pause_s
        self._filler = Filler(self.store, checkpoint, transport or DirectTransport(), self._save)
        self._lending = Lending(self.store)
        self.restored = False
        self._watch = HolderWatch()
        if fresh:
            keeper.put("journal/pages", self._pages.fd)
            keeper.put("journal/holders", self._holders.fd)
            self._save()
        else:
            state, holders = self._pages.load(), self._holders.load()
            if state is not None:
                self.store.restore(state, holders or {})
                self.restored = True
            for name in self.store.holders:
                self._watch.add(name, self.store.holders[name].pid)
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
            "borrow": self._borrow,
            "give_back": self._give_back,
            "home": self._borrow,
            "settled": self._give_back,
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
                name: {"pid": h.pid, "config": h.config, "blocks": len(h.blocks), "borrowed": len(h.borrowed)}
                for name, h in store.holders.items()
            },
            "pools": {name: pool.resident_bytes for name, pool in store.pools.items()},
            "weightBytes": sum(copy.extent.size for copy in store.copies.values()),
            "diskBytesRead": self.checkpoint.bytes_read,
            "blockBytes": store.block_bytes,
            "kvCapacity": {name: store.kv.capacity(name) for name in store.pools if name.startswith("kv/")},
        }, []

    def _prepare(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        name = str(request["config"])
        busy = [other for other, p in self._progress.items() if other != name and not p.ended]
        if busy:
            raise ConflictError(f"configuration {busy[0]} is being prepared")
        topology = Topology(**request["topology"])
        fresh = self.store.add_config(
            name, topology, parse_placement(request["placement"]), armed=bool(request.get("armed", False))
        )
        running = self._progress.get(name)
        homewards = bool(request.get("homewards", False))
        ended = running is None or running.state in ("failed", "abandoned") or (homewards and running.ended)
        if fresh or ended:
            progress = self._progress[name] = Progress()
            options = Options(
                peer=bool(request.get("peer", True)),
                shared=bool(request.get("shared", True)),
                early_release=bool(request.get("early_release", False)),
                peer_later=bool(request.get("peer_later", False)),
                homewards=homewards,
                home_share=float(request.get("home_share", 1.0)),
                pause_s=self._pause_s,
            )
            work = (name, options, progress)
            thread = threading.Thread(target=self._filler.run, args=work, name=f"fill-{name}", daemon=True)
            self._filling = [*(other for other in self._filling if other.is_alive()), thread]
            thread.start()
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
        if progress is not None and not progress.ended:
            # The filling thread still writes to these pages: it lets go of them itself, at the next item.
            self._filler.stop(progress)
        else:
            self.store.abandon(name)
            self._save()
        return {}, []

    def _attach(self, request: wire.Frame, peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        name, rank, holder = str(request["config"]), int(request["rank"]), str(request["holder"])
        found = self.store.attach(name, rank, holder, peer.pid)
        self._watch.add(holder, peer.pid)
        config = self.store.config(name)
        try:
            pool, kv_bytes = self.store.kv.backed(holder)
        except MemoryError:
            self._forget(holder)
            raise
        kv, _ = pool.located(0, kv_bytes)
        items, weights = self._located(found)
        self._save_holders()
        return {
            "items": items,
            "placement": config.placement.layers,
            "kvBytes": kv_bytes,
            "blockBytes": self.store.block_bytes,
            "kvCapacity": self.store.kv.capacity(pool.name),
            "blocks": sorted(self.store.holders[holder].blocks),
        }, [kv, *weights]

    def _detach(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        self._forget(str(request["holder"]))
        return {}, []

    def _forget(self, holder: str) -> None:
        if holder in self.store.holders:
            for progress in self._progress.values():
                self._filler.reader_gone(progress, self.store.domain_of(holder))
        self.store.detach(holder)
        self._save()

    def _located(self, found: list[tuple[str, str, int, int]]) -> tuple[list[tuple[str, int, int, int]], list[int]]:
        """Items as a rank gets them, (key, number of a descriptor, offset in it, size), and the descriptors."""
        numbers: dict[int, int] = {}
        items = []
        for key, domain, offset, size in found:
            fd, at = self.store.pool(f"weights/{domain}").located(offset, size)
            items.append((key, numbers.setdefault(fd, len(numbers)), at, size))
        return items, list(numbers)

    def _borrow(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        find = self._lending.home if request["do"] == "home" else self._lending.borrow
        items, fds = self._located(find(str(request["holder"]), request["items"]))
        self._save_holders()
        return {"items": items}, fds

    def _give_back(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        holder = str(request["holder"])
        free = self._lending.settled if request["do"] == "settled" else self._lending.give_back
        freed = free(holder, request["items"])
        self._save()
        for progress in self._progress.values():
            bytes_now = 0 if progress.ended else freed
            self._filler.given_back(progress, self.store.domain_of(holder), request["items"], bytes_now)
        return {"bytes": freed}, []

    def _kv_lease(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        holder = str(request["holder"])
        blocks = self.store.kv.lease(holder, int(request.get("count", 0)), request.get("exactly"))
        self._save_holders()
        return {"blocks": blocks, "capacity": self.store.kv.capacity(self.store.kv.pool_name(holder))}, []

    def _kv_blocks(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        held = self.store.holders.get(str(request["holder"]))
        return {"blocks": sorted(held.blocks) if held else []}, []

    def _kv_release(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        self.store.kv.release(str(request["holder"]), request["blocks"])
        self._save_holders()
        return {}, []

    def _kv_transfer(self, request: wire.Frame, _peer: wire.Peer) -> tuple[wire.Frame, list[int]]:
        blocks = self.store.kv.transfer(str(request["source"]), str(request["target"]), request["blocks"])
        self._save_holders()
        return {"blocks": blocks}, []

    # --- journals, watching -------------------------------------------------------------------------------------

    def _save(self) -> None:
        self._pages.store(self.store.dump())
        self._save_holders()
        self.store.copies.punch_freed()

    def _save_holders(self) -> None:
        self._holders.store(self.store.dump_holders())

    def close(self) -> None:
        """Stop filling, and wait until nothing is touched any more."""
        with self.store.lock:
            for progress in self._progress.values():
                self._filler.stop(progress)
        for thread in self._filling:
            thread.join()

    def reap(self, timeout_s: float) -> list[str]:
        """Wait for attached processes to end and drop what they held; returns the names dropped."""
        dropped = []
        for name in self._watch.ended(timeout_s):
            with self.store.lock:
                held = self.store.holders.get(name)
                if held is not None and start_ticks(held.pid) != held.start_ticks:
                    self._forget(name)
                    dropped.append(name)
        return dropped
