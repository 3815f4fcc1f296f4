"""Carries out scaling operations: prepares pages, readies a standby, switches, moves running sequences, frees what is
left.

The commit point is one atomic write of the state file. A coordinator that starts reads it: before the commit it
undoes what an operation had begun, after it, it finishes it (:mod:`medley_engine.serving.recovery`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from medley_engine import operations as ops
from medley_engine.config import ModelConfig
from medley_engine.memory.wire import RemoteError
from medley_engine.serving.arming import Armoury
from medley_engine.serving.homing import Homing
from medley_engine.serving.inforce import InForce, StateFile
from medley_engine.serving.instances import Instance, InstancePool
from medley_engine.serving.links import ManagerLink, RankLostError
from medley_engine.serving.metrics import Metrics
from medley_engine.serving.pages import Pages
from medley_engine.serving.readying import Readying
from medley_engine.serving.requests import Dispatcher
from medley_engine.serving.settings import Settings
from medley_engine.serving.switching import Switch

log = logging.getLogger("medley.engine.scaling")

_REMEMBERED = 50


class Scaler:
    """The configuration in force, and the one operation that may be changing it."""

    def __init__(
        self,
        *,
        settings: Settings,
        model: ModelConfig,
        pool: InstancePool,
        manager: ManagerLink,
        dispatcher: Dispatcher,
        metrics: Metrics,
    ) -> None:
        self._settings, self._model = settings, model
        self._metrics = metrics
        self.pool, self.dispatcher = pool, dispatcher
        self.file = StateFile(settings.run_path)
        self.pages = Pages(settings, model, manager)
        self.armoury = Armoury(settings, pool, self.pages)
        self._homing = Homing(settings, self.pages)
        self._switch = Switch(settings, pool, manager, dispatcher)
        self._readying = Readying(pool, self.pages, dispatcher, self)
        self.in_force = InForce(settings.data_parallel)
        self.operations: dict[str, ops.Operation] = {}
        self.current: str | None = None
        self.task: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()
        self.on_changed: Callable[[], None] | None = None
        self._lock = asyncio.Lock()
        self._restoring: asyncio.Task[None] | None = None
        pool.on_changed = self.save

    # --- asking ------------------------------------------------------------------------------------------------

    def request(self, target: int, operation_id: str | None, *, spread: bool) -> ops.Operation:
        """Ask for a size (and, with ``spread``, for a placement by measured load). Repeating a request is harmless.

        Raises:
            ValueError: a size that cannot be.
            ops.OperationConflictError: the id is known with another wish, or another operation runs.
        """
        if target not in self._possible_sizes():
            raise ValueError(f"dataParallel must be 1 to {self._possible_sizes()[-1]}")
        chosen = operation_id or ops.default_id(target, spread, self.in_force.generation)
        known = self.operations.get(chosen)
        if known is not None:
            if not ops.same_wish(known, target, spread):
                raise ops.OperationConflictError(f"operation {chosen} asked for {known.target} groups")
            if operation_id is not None or not known.finished or known.phase == "succeeded":
                return known
            chosen = f"{chosen}-{len(self.operations)}"
        if self.current is not None:
            raise ops.OperationConflictError(f"operation {self.current} is running")
        operation = ops.begin(chosen, target, spread, time.monotonic())
        self.operations[chosen] = operation
        for old in list(self.operations)[:-_REMEMBERED]:
            del self.operations[old]
        if target == self.in_force.size and not spread:
            done = ops.with_details(operation, unchanged=True)
            for phase in ops.FORWARD[1:]:
                done = ops.move(done, phase, time.monotonic())
            self.operations[chosen] = done
            return done
        self.current = chosen
        self.task = asyncio.create_task(self._run(chosen))
        return operation

    def _possible_sizes(self) -> range:
        most = min(self._settings.max_data_parallel, self._model.experts // self._settings.tensor_parallel)
        return range(1, most + 1)

    def abort(self, operation_id: str) -> ops.Operation:
        """Call an operation off.

        Raises:
            KeyError: unknown.
            ops.TooLateError: past its commit point.
        """
        if ops.check_abort(self.operations[operation_id]):
            self.call_off(operation_id, "abort was asked for")
        return self.operations[operation_id]

    def call_off(self, operation_id: str, why: str) -> None:
        """Have an operation that is not committed undo what it did."""
        if self.operations[operation_id].phase != "aborting":
            self.move(operation_id, "aborting", why)
            if self.task is not None:
                self.task.cancel()

    async def wait(self, operation_id: str) -> None:
        """Wait for an operation's end."""
        if operation_id == self.current and self.task is not None:
            await asyncio.wait([self.task])

    def report(self, operation_id: str) -> dict[str, Any]:
        """An operation as the API shows it.

        Raises:
            KeyError: unknown.
        """
        return self.operations[operation_id].report(self.pages.percent)

    # --- bookkeeping -------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the state file."""
        kept = [(i.id, i.size) for i in self.pool.instances.values() if i.state in ("standby", "armed", "attached")]
        self.file.store(self.in_force, kept, self.operations)

    def move(
        self, operation_id: str, phase: ops.Phase, message: str = "", *, save: bool = True, **changes: Any
    ) -> ops.Operation:
        """Bring an operation into a phase, and write that down (unless ``save`` is False: where a new coordinator
        would do the same in the phase before).
        """
        operation = ops.move(self.operations[operation_id], phase, time.monotonic(), message, **changes)
        self.operations[operation_id] = operation
        if save:
            self.save()
        return operation

    def detail(self, operation_id: str, **details: Any) -> None:
        """Tell people something about an operation."""
        if operation_id in self.operations:
            self.operations[operation_id] = ops.with_details(self.operations[operation_id], **details)

    def restore_standbys(self, delay_s: float = 0.0) -> None:
        """Have standbys for the sizes that the next operation is most likely to ask for, armed where that is free."""
        if self._restoring is not None:
            self._restoring.cancel()
        self._restoring = asyncio.create_task(self._restore_standbys(delay_s))

    async def _restore_standbys(self, delay_s: float) -> None:
        # What runs now is worth more than what may be asked for next.
        await asyncio.sleep(delay_s)
        await self._homing.run(self.in_force, self.dispatcher.active)
        size = self.in_force.size
        sizes = [s for s in (size + 1, size - 1) if s in self._possible_sizes()]
        self.pool.prepare_standbys(sizes)
        self.armoury.begin(self.in_force, sizes[: self._settings.standbys])

    # --- running -----------------------------------------------------------------------------------------------

    async def _run(self, operation_id: str) -> None:
        instance: Instance | None = None
        try:
            async with self._lock:
                instance = await self._before_commit(operation_id)
                await self._after_commit(operation_id, instance)
        except asyncio.CancelledError:
            await self._undo(operation_id, "aborted")
        except (RemoteError, RankLostError, OSError, TimeoutError, ValueError) as error:
            if self.operations[operation_id].committed:
                log.exception("operation %s failed after its commit", operation_id)
                raise
            await self._undo(operation_id, "failed", f"{type(error).__name__}: {error}")
        finally:
            operation = self.operations[operation_id]
            self.current = None
            self.save()
            self._metrics.operation(operation.phase, operation.seconds())
            self.restore_standbys(self._settings.standby_delay_s)

    async def hold(self) -> None:
        """Stretch a phase, for tests that want to break something inside it."""
        if self._settings.phase_delay_s:
            await asyncio.sleep(self._settings.phase_delay_s)

    async def _before_commit(self, operation_id: str) -> Instance:
        operation = self.operations[operation_id]
        if self._restoring is not None:
            self._restoring.cancel()
        await self._homing.settle()
        await self.armoury.settle()
        armed = None if operation.rebalance else self.armoury.claim(self.in_force, operation.target)
        # With all that undoing it takes, since an armed standby is passed through the next phases unwritten.
        known: dict[str, Any] = {"instance": armed.instance.id, "config": armed.config} if armed else {}
        self.move(operation_id, "planning", **known)
        if armed is None:
            await self.armoury.disarm()
            config, placement, instance = await self._readying.run(operation, self.in_force)
        else:
            config, placement, instance = armed.config, armed.placement, armed.instance
            self.detail(operation_id, armed=True, standby=True)
            for phase in ("preparing", "attaching", "warming"):
                await self.hold()
                self.move(operation_id, phase, save=False, config=config)
        await self.hold()
        if instance.state != "attached":
            raise RankLostError("the new instance lost a rank")
        old = self.dispatcher.active
        self.in_force.adopt(config, operation.target, placement, instance.id)
        self.move(operation_id, "switching", old_instance=old.id if old else "")
        return instance

    async def _after_commit(self, operation_id: str, instance: Instance) -> None:
        old = self.dispatcher.active
        if instance.state == "lost":
            self.dispatcher.active = instance
            self.pool.on_lost(instance)
        else:
            accepted = self.operations[operation_id].since["accepted"]
            moved = await self._switch.move(
                old, instance, lambda now: self.detail(operation_id, first_token_s=now - accepted)
            )
            self.detail(operation_id, **moved)
        await self._forward(lambda: self.pages.commit(self.in_force.config))
        await self.hold()
        self.move(operation_id, "draining")
        await self.hold()
        if old is not None:
            await self._switch.drain(old)
        self.move(operation_id, "releasing")
        await self.hold()
        if old is not None and old.state == "attached":
            await self._switch.let_go(old)
        if self._settings.copies_later:
            # What is armed still maps pages that are about to go.
            await self.armoury.disarm()
            self.detail(operation_id, **await self._homing.run(self.in_force, self.dispatcher.active))
        self.move(operation_id, "succeeded")
        if self.on_changed is not None:
            self.on_changed()

    async def _forward(self, step: Callable[[], Awaitable[Any]]) -> None:
        """Repeat what must happen once the new configuration is in force."""
        while True:
            try:
                await step()
            except (ConnectionError, TimeoutError) as error:
                log.warning("after the commit: %s; trying again", error)
                await asyncio.sleep(0.2)
            else:
                return

    async def _undo(self, operation_id: str, end: ops.Phase, message: str = "") -> None:
        """Back to the old configuration, which was never left."""
        operation = self.operations[operation_id]
        instance = self.pool.instances.get(operation.instance)
        if instance is not None and instance is not self.dispatcher.active:
            if instance.state == "attached":
                await self._switch.let_go(instance)
            else:
                await self.pool.stop(instance)
        if operation.config:
            try:
                await self.pages.abandon(operation.config)
            except (ConnectionError, RemoteError) as error:
                log.warning("abandoning %s: %s", operation.config, error)
        self.move(operation_id, end, message)
