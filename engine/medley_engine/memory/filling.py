"""Fills the pages of a configuration, in a thread of its own: from the disk, from peers, and no faster than the pages
which that makes superfluous are given back.

An expert that moves between memories lies in both until the rank that read it maps the new copy. So copying waits
while more than a few such experts are in both (:class:`Window`): whoever scales has the old ranks map them one by one
(``borrow`` and ``give_back`` of the store), between two of their steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from medley_engine.memory.checkpoint import Checkpoint
from medley_engine.memory.peer import PeerTransport
from medley_engine.memory.records import UnknownNameError
from medley_engine.memory.store import Store
from medley_engine.transition import DiskCopy, PeerCopy, Transition

_WINDOW_SHARE = 1 / 50
"""Of all pages, how much may lie in two memories at once while experts move."""
_PATIENCE_S = 5.0
"""How long copying waits for the next page to be given back before it goes on regardless."""


class Abandoned(Exception):  # noqa: N818 - a signal between threads, not an error
    """The preparation was called off."""


@dataclass
class Window:
    """Experts that were copied and still lie in the memory they leave: item → (domain it leaves, bytes)."""

    limit_bytes: int = 0
    leaving: dict[str, tuple[str, int]] = field(default_factory=dict)

    def full(self) -> bool:
        """Whether copying has to wait. One expert at least may be on its way."""
        waiting = [size for _, size in self.leaving.values()]
        return len(waiting) > 1 and sum(waiting) > self.limit_bytes


@dataclass
class Progress:
    """State of one preparation, for whoever asks."""

    state: str = "planning"
    total_bytes: int = 0
    copied_bytes: int = 0
    given_back_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    stop: bool = False
    window: Window = field(default_factory=Window)

    def report(self) -> dict[str, Any]:
        """As a reply. ``leaving`` lists, by domain, items that a rank of that domain may borrow elsewhere now."""
        share = self.copied_bytes / self.total_bytes if self.total_bytes else float(self.state == "prepared")
        leaving: dict[str, list[str]] = {}
        for item, (domain, _) in self.window.leaving.items():
            leaving.setdefault(domain, []).append(item)
        return {
            "state": self.state,
            "percent": round(100 * share, 1),
            "copiedBytes": self.copied_bytes,
            "totalBytes": self.total_bytes,
            "givenBackBytes": self.given_back_bytes,
            "seconds": self.seconds,
            "plan": self.summary,
            "failure": self.error,
            "leaving": leaving,
        }


@dataclass(frozen=True)
class Options:
    """How to fill; all but the first three exist to measure what a mechanism is worth."""

    peer: bool = True
    shared: bool = True
    early_release: bool = True
    pause_s: float = 0.0


class Filler:
    """Fills pages of one store. ``view`` gives the bytes of a pool, ``save`` writes the store's journal."""

    def __init__(
        self,
        store: Store,
        checkpoint: Checkpoint,
        transport: PeerTransport,
        view: Callable[[str], Any],
        save: Callable[[], None],
    ) -> None:
        self._store, self._checkpoint, self._transport = store, checkpoint, transport
        self._view, self._save = view, save
        self._moved = threading.Condition(store.lock)

    def run(self, name: str, options: Options, progress: Progress) -> None:
        """Fill what a configuration lacks; ends in state prepared, abandoned or failed."""
        try:
            with self._store.lock:
                transition = self._plan(name, options, progress)
            progress.state = "copying"
            self._timed("disk", progress, lambda: self._run_disk(transition, progress, options))
            self._timed("peer", progress, lambda: self._run_peer(transition, progress, options))
            self._finish(name, progress)
        except (Abandoned, UnknownNameError):
            with self._store.lock:
                progress.state = "abandoned"
                self._drop_half(name)
        except Exception as error:  # noqa: BLE001 - reported to whoever asked; the thread has no caller
            with self._store.lock:
                progress.state, progress.error = "failed", f"{type(error).__name__}: {error}"
                self._drop_half(name)

    def _finish(self, name: str, progress: Progress) -> None:
        with self._store.lock:
            if progress.stop:
                raise Abandoned
            self._store.config(name).prepared = True
            self._save()
        progress.state = "prepared"

    def given_back(self, progress: Progress, items: list[str], size_bytes: int) -> None:
        """Ranks map these items elsewhere now; called with the store's lock held."""
        for item in items:
            progress.window.leaving.pop(item, None)
        progress.given_back_bytes += size_bytes
        self._moved.notify_all()

    def _plan(self, name: str, options: Options, progress: Progress) -> Transition:
        store = self._store
        transition = store.plan_for(name, peer_allowed=options.peer)
        progress.summary = summarise(transition)
        progress.total_bytes = transition.copied_bytes
        progress.window.limit_bytes = int(max(transition.before_bytes, transition.after_bytes) * _WINDOW_SHARE)
        steps: list[DiskCopy | PeerCopy] = [*transition.disk, *transition.peer]
        for domain, item in sorted({(step.domain, step.item) for step in steps}):
            store.reserve(domain, item)
        self._save()
        return transition

    def _drop_half(self, name: str) -> None:
        """After a broken attempt: the configuration goes, and with it every page that only it wanted."""
        if name in self._store.configs and name != self._store.active:
            self._store.configs[name].pinned = False
        self._store.collect()
        self._save()

    def _timed(self, name: str, progress: Progress, work: Callable[[], None]) -> None:
        start = time.perf_counter()
        work()
        progress.seconds[name] = time.perf_counter() - start

    def _run_disk(self, transition: Transition, progress: Progress, options: Options) -> None:
        # In the order of the file, so that the disk reads forwards.
        order = {key: position for position, key in enumerate(self._store.layout.items)}
        for step in sorted(transition.disk, key=lambda s: (order[s.item], s.domain)):
            self._fill_one(step, progress, partial(self._read, step), options)

    def _read(self, step: DiskCopy, target: memoryview) -> None:
        self._checkpoint.read_item(self._store.layout.items[step.item], self._store.layout.dtype, target)

    def _run_peer(self, transition: Transition, progress: Progress, options: Options) -> None:
        goes = {
            item: domain for domain, item in transition.free_after if self._store.layout.items[item].expert is not None
        }
        for step in transition.peer:
            leaves = goes.get(step.item) if options.early_release else None
            if leaves is not None:
                self._wait_for_room(progress)
            self._fill_one(step, progress, partial(self._copy, step, options.shared), options)
            if leaves is not None:
                with self._store.lock:
                    progress.window.leaving[step.item] = (leaves, step.size_bytes)

    def _wait_for_room(self, progress: Progress) -> None:
        """Wait until old ranks have let go of enough; where none does (it died, or nobody asks it to), go on."""
        with self._moved:
            if not self._moved.wait_for(lambda: not progress.window.full() or progress.stop, _PATIENCE_S):
                progress.window.limit_bytes = progress.total_bytes

    def _copy(self, step: PeerCopy, shared: bool, target: memoryview) -> None:
        with self._store.lock:
            sources = [step.source, *sorted(d for d, item in self._store.copies if item == step.item)]
            copies = [(d, self._store.copies.get((d, step.item))) for d in sources if d != step.domain]
            domain, extent = next((d, copy.extent) for d, copy in copies if copy is not None and copy.valid)
        source = memoryview(self._view(f"weights/{domain}"))[extent.offset : extent.end]
        if not shared:
            # Without memory that both ends can name, bytes are staged through a buffer of the sender (an ablation).
            source = memoryview(bytes(source))
        self._transport.copy(source, target)

    def _fill_one(
        self, step: DiskCopy | PeerCopy, progress: Progress, fill: Callable[[memoryview], None], options: Options
    ) -> None:
        with self._store.lock:
            if progress.stop:
                raise Abandoned
            copy = self._store.copies.get((step.domain, step.item))
            if copy is None:
                raise Abandoned
            extent = copy.extent
        fill(memoryview(self._view(f"weights/{step.domain}"))[extent.offset : extent.offset + extent.size])
        with self._store.lock:
            copy.valid = True
        progress.copied_bytes += step.size_bytes
        if options.pause_s:
            time.sleep(options.pause_s)


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
