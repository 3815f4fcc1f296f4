"""Fills the pages of a configuration, in a thread of its own: from the disk, from peers, and no faster than the pages
which that makes superfluous are given back.

An expert that moves between memories lies in both until the rank that read it maps the new copy. So copying waits
while more than a few such experts are in both (:class:`medley_engine.memory.progress.Window`). Before a switch,
whoever scales has the old ranks map them where they go (``borrow`` and ``give_back``,
:mod:`medley_engine.memory.lending`); after one, the new ranks have mapped them where they were, and are told to map
them at home (``home`` and ``settled``). Nobody waits for that, so it takes a share of one processor only.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from medley_engine.extents import Extent
from medley_engine.memory.checkpoint import Checkpoint
from medley_engine.memory.pace import Pace
from medley_engine.memory.peer import PeerTransport
from medley_engine.memory.pools import Run
from medley_engine.memory.progress import Progress, summarise
from medley_engine.memory.records import UnknownNameError
from medley_engine.memory.store import Store
from medley_engine.transition import DiskCopy, PeerCopy, Transition

_WINDOW_SHARE = 1 / 50
"""Of all pages, how much may lie in two memories at once while experts move."""
_BACKGROUND_NICENESS = 10
_PIECE_BYTES = 2 * 1024 * 1024
"""What is copied homewards at once, about a millisecond, before whoever serves has its turn."""
_PATIENCE_S = 5.0
"""How long copying waits for the next page to be given back before it goes on regardless."""


class Abandoned(Exception):  # noqa: N818 - a signal between threads, not an error
    """The preparation was called off."""


@dataclass(frozen=True)
class Options:
    """How to fill. ``peer_later`` leaves what another memory holds where it is, for ranks to map it there;
    ``homewards`` copies that afterwards, once the configuration serves. ``peer`` and ``shared`` exist to measure what
    a mechanism is worth, ``pause_s`` to test. ``home_share`` of a processor is what copying homewards may take.
    """

    peer: bool = True
    shared: bool = True
    early_release: bool = True
    peer_later: bool = False
    homewards: bool = False
    pause_s: float = 0.0
    home_share: float = 1.0


class Filler:
    """Fills pages of one store. ``save`` writes the store's journal."""

    def __init__(
        self, store: Store, checkpoint: Checkpoint, transport: PeerTransport, save: Callable[[], None]
    ) -> None:
        self._store, self._checkpoint, self._transport = store, checkpoint, transport
        self._save = save
        self._moved = threading.Condition(store.lock)

    def run(self, name: str, options: Options, progress: Progress) -> None:
        """Fill what a configuration lacks; ends in state prepared, abandoned or failed."""
        try:
            if options.homewards:
                # Nobody waits for it, and whoever serves needs the processors. On Linux this is a thread's own.
                thread = threading.get_native_id()
                niceness = max(_BACKGROUND_NICENESS, os.getpriority(os.PRIO_PROCESS, thread))
                os.setpriority(os.PRIO_PROCESS, thread, niceness)
            with self._store.lock:
                transition = self._plan(name, options, progress)
            progress.state = "copying"
            self._timed("disk", progress, lambda: self._run_disk(transition, progress, options))
            if not options.peer_later:
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

    def stop(self, progress: Progress) -> None:
        """Have a preparation end at its next item; called with the store's lock held."""
        progress.stop = True
        self._moved.notify_all()

    def given_back(self, progress: Progress, domain: str, items: list[str], size_bytes: int) -> None:
        """A rank of this domain maps these items anew; called with the store's lock held."""
        for item in items:
            progress.window.moving.pop((domain, item), None)
        progress.given_back_bytes += size_bytes
        self._moved.notify_all()

    def reader_gone(self, progress: Progress, domain: str) -> None:
        """The rank that was to map things anew has let go or died; called with the store's lock held."""
        self.given_back(progress, domain, [item for where, item in list(progress.window.moving) if where == domain], 0)

    def _plan(self, name: str, options: Options, progress: Progress) -> Transition:
        store = self._store
        transition = store.plan_for(name, peer_allowed=options.peer)
        progress.summary = summarise(transition)
        steps: list[DiskCopy | PeerCopy] = [*transition.disk, *(() if options.peer_later else transition.peer)]
        progress.total_bytes = sum(step.size_bytes for step in steps)
        progress.window.limit_bytes = int(max(transition.before_bytes, transition.after_bytes) * _WINDOW_SHARE)
        if options.homewards:
            progress.window.homewards = True
            # What a predecessor copied and did not live to see mapped.
            progress.window.moving.update(dict.fromkeys(store.arrived(name), 0))
        for domain, item in sorted({(step.domain, step.item) for step in steps}):
            store.copies.reserve(domain, item)
        self._save()
        return transition

    def _drop_half(self, name: str) -> None:
        """After a broken attempt: the configuration goes, and with it every page that only it wanted."""
        if name in self._store.configs and name != self._store.active:
            self._store.configs[name].pinned = False
        self._store.copies.drop_half_filled()
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

    def _read(self, step: DiskCopy, target: Run) -> None:
        with target.pool.filling(target.offset, target.size_bytes) as view:
            self._checkpoint.read_item(self._store.layout.items[step.item], self._store.layout.dtype, view)

    def _run_peer(self, transition: Transition, progress: Progress, options: Options) -> None:
        goes = {
            item: domain for domain, item in transition.free_after if self._store.layout.items[item].expert is not None
        }
        pace = Pace(options.home_share) if options.homewards else None
        for step in transition.peer:
            leaves = goes.get(step.item) if options.early_release or options.homewards else None
            if leaves is not None:
                self._wait_for_room(progress)
            self._fill_one(step, progress, partial(self._copy, step, options, pace), options)
            with self._store.lock:
                self._copied(step, leaves, options, progress)

    def _copied(self, step: PeerCopy, leaves: str | None, options: Options, progress: Progress) -> None:
        """A copy is whole: note which rank may map it now."""
        freed_bytes = step.size_bytes if leaves is not None else 0
        if not options.homewards:
            if leaves is not None:
                progress.window.moving[leaves, step.item] = freed_bytes
        elif self._store.is_borrowed(step.domain, step.item):
            progress.window.moving[step.domain, step.item] = freed_bytes
        else:
            # Its rank is gone: nobody maps the other copy any more.
            self._store.collect()
            self._save()

    def _wait_for_room(self, progress: Progress) -> None:
        """Wait until old ranks have let go of enough; where none does (it died, or nobody asks it to), go on."""
        with self._moved:
            if not self._moved.wait_for(lambda: not progress.window.full() or progress.stop, _PATIENCE_S):
                progress.window.limit_bytes = progress.total_bytes

    def _copy(self, step: PeerCopy, options: Options, pace: Pace | None, target: Run) -> None:
        with self._store.lock:
            sources = [step.source, *sorted(d for d, item in self._store.copies if item == step.item)]
            copies = [(d, self._store.copies.get((d, step.item))) for d in sources if d != step.domain]
            source = next(self._run(d, copy.extent) for d, copy in copies if copy is not None and copy.valid)
        if pace is not None:
            for at in range(0, target.size_bytes, _PIECE_BYTES):
                self._transport.copy(source.part(at, _PIECE_BYTES), target.part(at, _PIECE_BYTES))
                pace.rest()
            return
        if options.shared:
            self._transport.copy(source, target)
            return
        # Without memory that both ends can name, bytes are staged through a buffer of the sender (an ablation).
        staged = bytes(source.pool.reading(source.offset, source.size_bytes))
        with target.pool.filling(target.offset, target.size_bytes) as view:
            view[:] = staged

    def _run(self, domain: str, extent: Extent) -> Run:
        return Run(self._store.pool(f"weights/{domain}"), extent.offset, extent.size)

    def _fill_one(
        self, step: DiskCopy | PeerCopy, progress: Progress, fill: Callable[[Run], None], options: Options
    ) -> None:
        with self._store.lock:
            if progress.stop:
                raise Abandoned
            copy = self._store.copies.get((step.domain, step.item))
            if copy is None:
                raise Abandoned
            target = self._run(step.domain, copy.extent)
            # Not before: what waits for its turn takes no memory.
            target.pool.back(target.offset, target.size_bytes)
        fill(target)
        with self._store.lock:
            copy.valid = True
        progress.copied_bytes += step.size_bytes
        if options.pause_s:
            time.sleep(options.pause_s)
