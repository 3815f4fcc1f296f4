"""Carries out scaling operations: prepares pages, readies a standby, switches, moves running sequences, frees what is
left.

The commit point is one atomic write of the state file. A coordinator that starts reads it: before the commit it
undoes what an operation had begun, after it, it finishes it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from medley_engine import operations as ops
from medley_engine.config import ModelConfig, Topology
from medley_engine.memory.store import parse_placement
from medley_engine.memory.wire import RemoteError
from medley_engine.placement import Placement, initial, rebalance
from medley_engine.serving.handover import hand_over
from medley_engine.serving.instances import Instance, InstancePool
from medley_engine.serving.links import ManagerLink, RankLostError
from medley_engine.serving.metrics import Metrics
from medley_engine.serving.requests import Dispatcher
from medley_engine.serving.settings import Settings

log = logging.getLogger("medley.engine.scaling")


class StateFile:
    """What a new coordinator must know, replaced atomically.

    It must survive the coordinator, not the machine: whatever ends the supervisor ends the engines too, and the next
    supervisor starts from nothing. So it is renamed into place but not flushed to the disk, which would cost an
    operation more than its pages do.
    """

    def __init__(self, settings: Settings) -> None:
        self._path = settings.run_path / "state.json"

    def load(self) -> dict[str, Any]:
        """The last state, or an empty one."""
        return json.loads(self._path.read_text()) if self._path.exists() else {}

    def store(self, state: dict[str, Any]) -> None:
        """Write beside and rename: a reader sees the old state or the new one."""
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps(state))
        beside.replace(self._path)


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
        self._pool, self._manager, self._dispatcher, self._metrics = pool, manager, dispatcher, metrics
        self._file = StateFile(settings)
        self.operations: dict[str, ops.Operation] = {}
        self.current: str | None = None
        self.generation = 0
        self.config = ""
        self.placement: Placement | None = None
        self._active_id = ""
        self.size = settings.data_parallel
        self._task: asyncio.Task[None] | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self.ready = asyncio.Event()
        self._prepared_percent = 0.0
        self.on_changed: Callable[[], None] | None = None
        pool.on_changed = lambda: self._save(self.current)

    # --- starting ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take over what an earlier coordinator left, or start from nothing."""
        state = self._file.load()
        await self._pool.end_strangers({(str(i), int(n)) for i, n in state.get("instances", ())})
        if not state:
            await self._first_start()
        else:
            await self._take_over(state)
        self.ready.set()
        self._prepare_neighbours()

    async def _first_start(self) -> None:
        size = self._settings.data_parallel
        placement = initial(len(self._model.moe_layers), self._model.experts, size * self._settings.tensor_parallel)
        config = f"g0-dp{size}"
        prepared = asyncio.create_task(self._prepare(config, size, placement))
        instance, _ = await self._pool.take(size)
        await prepared
        await self._activate(instance, config)
        self._adopt_config(config, size, placement, instance)
        await self._manager.ask("commit", config=config)
        self._save(None)
        self._dispatcher.active = instance
        self._dispatcher.pump()

    async def _take_over(self, state: dict[str, Any]) -> None:
        self.generation, self.config, self.size = state["generation"], state["config"], state["size"]
        self.placement = parse_placement(state["placement"])
        self.operations = {raw["id"]: ops.parse(raw) for raw in state["operations"]}
        operation = next((o for o in self.operations.values() if not o.finished), None)
        found: dict[str, Instance] = {}
        for instance_id, size in state["instances"]:
            try:
                found[instance_id] = await self._pool.adopt(instance_id, size)
            except (RankLostError, RemoteError, TimeoutError, OSError) as error:
                log.warning("instance %s is lost: %s", instance_id, error)
        active = found.pop(state["active"], None)
        for instance in found.values():
            if instance.state == "attached":
                await instance.detach()
            await self._pool.put_back(instance)
        if operation is not None:
            await self._settle(operation)
        await self._manager.ask("commit", config=self.config)
        if active is None or active.config != self.config:
            active = await self._revive()
        self._active_id = active.id
        self._dispatcher.active = active
        self._save(None)
        self._dispatcher.pump()

    async def _settle(self, operation: ops.Operation) -> None:
        """End an operation that a dead coordinator left behind."""
        now = time.monotonic()
        if operation.committed:
            while operation.phase != "succeeded":
                following = ops.FORWARD[ops.FORWARD.index(operation.phase) + 1]
                operation = ops.move(operation, following, now, "finished by a new coordinator")
        else:
            if operation.config:
                await self._abandon(operation.config)
            if operation.phase == "aborting":
                operation = ops.move(operation, "aborted", now)
            else:
                operation = ops.move(
                    operation, "failed", now, "the coordinator ended before the commit: nothing was changed"
                )
        self.operations[operation.id] = operation

    async def _abandon(self, config: str) -> None:
        try:
            await self._manager.ask("abandon", config=config)
        except RemoteError as error:
            if error.kind != "not_found":
                raise

    async def _revive(self) -> Instance:
        """An instance for the configuration in force: a standby of its size, or a new one."""
        assert self.placement is not None
        await self._prepare(self.config, self.size, self.placement)
        instance, _ = await self._pool.take(self.size)
        await self._activate(instance, self.config)
        return instance

    async def _activate(self, instance: Instance, config: str) -> None:
        await instance.attach(config)
        await instance.warm_up()

    def _prepare_neighbours(self) -> None:
        """Standbys for the sizes that the next operation is most likely to ask for, and for this one should it
        crash.
        """
        possible = range(
            1, min(self._settings.max_data_parallel, self._model.experts // self._settings.tensor_parallel) + 1
        )
        self._pool.prepare_standbys([size for size in (self.size + 1, self.size - 1) if size in possible])

    # --- operations --------------------------------------------------------------------------------------------

    def request(self, target: int, operation_id: str | None, *, spread: bool) -> ops.Operation:
        """Ask for a size (and, with ``spread``, for a placement by measured load). Repeating a request is harmless.

        Raises:
            ValueError: a size that cannot be.
            ops.OperationConflictError: the id is known with another wish, or another operation runs.
        """
        if not 1 <= target <= self._settings.max_data_parallel:
            raise ValueError(f"dataParallel must be 1 to {self._settings.max_data_parallel}")
        if target * self._settings.tensor_parallel > self._model.experts:
            raise ValueError(f"{target} groups would leave a rank without experts")
        chosen = operation_id or ops.default_id(target, spread, self.generation)
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
        for old in list(self.operations)[:-50]:
            del self.operations[old]
        if target == self.size and not spread:
            done = ops.with_details(operation, unchanged=True)
            for phase in ops.FORWARD[1:]:
                done = ops.move(done, phase, time.monotonic())
            self.operations[chosen] = done
            return done
        self.current = chosen
        self._task = asyncio.create_task(self._run(chosen))
        return operation

    def abort(self, operation_id: str) -> ops.Operation:
        """Call an operation off.

        Raises:
            KeyError: unknown.
            ops.TooLateError: past its commit point.
        """
        operation = self.operations[operation_id]
        if ops.check_abort(operation) and operation.phase != "aborting":
            self._move(operation_id, "aborting", "abort was asked for")
            if self._task is not None:
                self._task.cancel()
        return self.operations[operation_id]

    async def wait(self, operation_id: str) -> None:
        """Wait for an operation's end."""
        if operation_id == self.current and self._task is not None:
            await asyncio.wait([self._task])

    def report(self, operation_id: str) -> dict[str, Any]:
        """An operation as the API shows it.

        Raises:
            KeyError: unknown.
        """
        return self.operations[operation_id].report(self._prepared_percent)

    def _move(self, operation_id: str, phase: ops.Phase, message: str = "", **changes: Any) -> ops.Operation:
        operation = ops.move(self.operations[operation_id], phase, time.monotonic(), message, **changes)
        self.operations[operation_id] = operation
        self._save(operation_id)
        return operation

    def _detail(self, operation_id: str, **details: Any) -> None:
        if operation_id not in self.operations:
            return
        self.operations[operation_id] = ops.with_details(self.operations[operation_id], **details)

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
            self._save(None)
            self._metrics.operation(operation.phase, operation.seconds())
            self._prepare_neighbours()

    async def _hold(self) -> None:
        """Stretch a phase, for tests that want to break something inside it."""
        if self._settings.phase_delay_s:
            await asyncio.sleep(self._settings.phase_delay_s)

    async def _before_commit(self, operation_id: str) -> Instance:
        operation = self.operations[operation_id]
        size = operation.target
        self._move(operation_id, "planning")
        placement = await self._place(size, spread=operation.rebalance)
        config = f"g{self.generation + 1}-dp{size}-{operation_id}"
        await self._hold()
        self._move(operation_id, "preparing", config=config)
        started = time.monotonic()
        standby = asyncio.create_task(self._standby(operation_id, size))
        try:
            progress = await self._prepare(config, size, placement)
            self._detail(
                operation_id, prepare=progress["seconds"], plan=progress["plan"], pages_s=time.monotonic() - started
            )
            await self._hold()
            instance = await standby
        except BaseException:
            await self._return_standby(standby)
            raise
        self._move(operation_id, "attaching", instance=instance.id)
        self._detail(operation_id, attach=await instance.attach(config))
        await self._hold()
        self._move(operation_id, "warming")
        self._detail(operation_id, warm=await instance.warm_up())
        await self._hold()
        if instance.state != "attached":
            raise RankLostError("the new instance lost a rank")
        old = self._dispatcher.active
        self._adopt_config(config, size, placement, instance)
        self._move(operation_id, "switching", old_instance=old.id if old else "")
        return instance

    async def _standby(self, operation_id: str, size: int) -> Instance:
        started = time.monotonic()
        instance, waited = await self._pool.take(size)
        self._detail(operation_id, standby_s=time.monotonic() - started, standby=waited)
        return instance

    async def _return_standby(self, standby: asyncio.Task[Instance]) -> None:
        """An operation that ends early gives back the instance that it took, or stops taking one."""
        standby.cancel()
        await asyncio.wait([standby])
        if not standby.cancelled() and standby.exception() is None:
            await self._pool.put_back(standby.result())

    async def _after_commit(self, operation_id: str, instance: Instance) -> None:
        old = self._dispatcher.active
        accepted = self.operations[operation_id].since["accepted"]
        self._dispatcher.awaited[instance.id] = lambda now: self._detail(operation_id, first_token_s=now - accepted)
        self._dispatcher.active = instance
        self._detail(operation_id, intake_switched=time.monotonic())
        self._dispatcher.pump()
        if instance.state == "lost":
            self.instance_lost(instance)
        await self._forward(lambda: self._manager.ask("commit", config=self.config))
        await self._hold()
        if old is not None and old.state == "attached":
            try:
                moved = await hand_over(old, instance, self._dispatcher, self._manager, self._settings)
                self._detail(operation_id, handover=moved)
            except (RemoteError, RankLostError, OSError, TimeoutError) as error:
                # What was not moved finishes on the old instance, or is replayed at the drain timeout.
                log.warning("handing over: %s", error)
        self._move(operation_id, "draining")
        await self._hold()
        if old is not None:
            await self._drain(old)
        self._move(operation_id, "releasing")
        await self._hold()
        if old is not None and old.state == "attached":
            await self._let_go(old)
        self._move(operation_id, "succeeded")
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

    async def _drain(self, old: Instance) -> None:
        """Wait for what still runs on the old instance; past the deadline it is replayed on the new one."""
        for link in old.links:
            if old.state == "attached":
                link.tell("drain")
        end = time.monotonic() + self._settings.drain_timeout_s
        while old.state == "attached" and (left := self._dispatcher.on_instance(old)):
            if time.monotonic() > end:
                log.warning("%d requests outlasted the drain timeout and are replayed", len(left))
                for request in left:
                    old.links[request.rank].tell("abort", ids=[request.id])
                self._dispatcher.requeue(left)
                return
            await asyncio.sleep(0.02)

    async def _let_go(self, old: Instance) -> None:
        try:
            await old.detach()
        except (RemoteError, RankLostError, TimeoutError) as error:
            log.warning("old instance did not let go (%s): it is ended", error)
            await self._pool.stop(old)
            return
        await self._pool.put_back(old)

    async def _undo(self, operation_id: str, end: ops.Phase, message: str = "") -> None:
        """Back to the old configuration, which was never left."""
        operation = self.operations[operation_id]
        instance = self._pool.instances.get(operation.instance)
        if instance is not None and instance is not self._dispatcher.active:
            if instance.state == "attached":
                await self._let_go(instance)
            else:
                await self._pool.stop(instance)
        if operation.config:
            try:
                await self._abandon(operation.config)
            except (ConnectionError, RemoteError) as error:
                log.warning("abandoning %s: %s", operation.config, error)
        self._move(operation_id, end, message)

    # --- pieces ------------------------------------------------------------------------------------------------

    async def _prepare(self, config: str, size: int, placement: Placement) -> dict[str, Any]:
        """Have the manager fill a configuration's pages; a manager that was replaced meanwhile is asked again."""
        topology = Topology(size, self._settings.tensor_parallel, self._settings.shared_domain)
        ask = {
            "config": config, "topology": asdict(topology), "placement": placement.layers,
            "peer": self._settings.peer_copy, "shared": self._settings.shared_pages,
        }  # fmt: skip
        report = await self._manager.ask("prepare", **ask)
        for attempt in range(5):
            while report["state"] in ("planning", "copying"):
                self._prepared_percent = report["percent"]
                await asyncio.sleep(0.002)
                try:
                    report = await self._manager.ask("progress", config=config)
                except RemoteError as error:
                    if error.kind != "not_found":
                        raise
                    report = {"state": "unknown"}
            if report["state"] == "prepared":
                return dict(report)
            if report["state"] == "failed":
                raise RemoteError("prepare_failed", str(report["failure"]))
            log.warning("the manager lost configuration %s (attempt %d): asking again", config, attempt + 1)
            report = await self._manager.ask("prepare", **ask)
        raise RemoteError("prepare_failed", f"the manager lost configuration {config} five times")

    async def _place(self, size: int, *, spread: bool) -> Placement:
        ranks = size * self._settings.tensor_parallel
        layers = len(self._model.moe_layers)
        loads = [[1.0] * self._model.experts for _ in range(layers)]
        if spread and self._dispatcher.active is not None:
            replies = await self._dispatcher.active.ask_all("loads")
            for reply in replies:
                for layer, counts in enumerate(reply["tokens"]):
                    for expert, count in enumerate(counts):
                        loads[layer][expert] += count
        spare = self._settings.spare_experts if spread else 0
        return rebalance(self.placement, loads, ranks, spare)

    def _adopt_config(self, config: str, size: int, placement: Placement, instance: Instance) -> None:
        self.config, self.size, self.placement = config, size, placement
        self.generation += 1
        self._active_id = instance.id

    def _save(self, operation_id: str | None) -> None:
        """The state file. The move to ``switching`` with the new configuration's fields is the commit."""
        if self.placement is None:
            return
        running = [ops.dump(o) for o in self.operations.values()]
        self._file.store(
            {
                "generation": self.generation,
                "config": self.config,
                "size": self.size,
                "placement": self.placement.layers,
                "active": self._active_id,
                "instances": [
                    [i.id, i.size] for i in self._pool.instances.values() if i.state in ("standby", "attached")
                ],
                "operations": [{**raw, "since": dict(raw["since"]), "details": {}} for raw in running],
                "running": operation_id,
            }
        )

    # --- failures ----------------------------------------------------------------------------------------------

    def instance_lost(self, instance: Instance) -> None:
        """A rank died. The active instance is replaced and its requests are replayed; a standby is simply forgotten."""
        if instance is not self._dispatcher.active:
            # It may be draining: what it still computed goes on elsewhere.
            self._dispatcher.replay(instance)
            if self.current is None and self.ready.is_set():
                self._prepare_neighbours()
            return
        self.ready.clear()
        self._dispatcher.active = None
        self._dispatcher.replay(instance)
        if self._recovery is None or self._recovery.done():
            self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        operation = self.operations.get(self.current) if self.current else None
        if operation is not None and not operation.committed and self._task is not None:
            if operation.phase != "aborting":
                self._move(operation.id, "aborting", "the active instance was lost")
                self._task.cancel()
            await asyncio.wait([self._task])
        while True:
            try:
                instance = await self._revive()
                break
            except (RemoteError, RankLostError, OSError, TimeoutError) as error:
                log.warning("reviving the active instance: %s; trying again", error)
                await asyncio.sleep(0.5)
        self._active_id = instance.id
        self._dispatcher.active = instance
        self._save(self.current)
        self.ready.set()
        self._dispatcher.pump()
        self._prepare_neighbours()
