"""What brings the engine back: after a start or a restart of the coordinator, and after the loss of an instance."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from medley_engine import operations as ops
from medley_engine.config import ModelConfig
from medley_engine.memory.wire import RemoteError
from medley_engine.placement import initial
from medley_engine.serving.inforce import parse_state
from medley_engine.serving.instances import Instance
from medley_engine.serving.links import RankLostError
from medley_engine.serving.scaling import Scaler
from medley_engine.serving.settings import Settings

log = logging.getLogger("medley.engine.recovery")


class Recovery:
    """Starts what must serve, takes over what an earlier coordinator left, replaces what died."""

    def __init__(self, settings: Settings, model: ModelConfig, scaler: Scaler) -> None:
        self._settings, self._model, self._scaler = settings, model, scaler
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take over what an earlier coordinator left, or start from nothing."""
        scaler = self._scaler
        state = scaler.file.load()
        await scaler.pool.end_strangers({(str(i), int(n)) for i, n in state.get("instances", ())})
        if not state:
            await self._first_start()
        else:
            await self._take_over(state)
        scaler.ready.set()
        scaler.restore_standbys()

    async def _first_start(self) -> None:
        scaler, size = self._scaler, self._settings.data_parallel
        placement = initial(len(self._model.moe_layers), self._model.experts, size * self._settings.tensor_parallel)
        config = f"g0-dp{size}"
        prepared = asyncio.create_task(scaler.pages.prepare(config, size, placement))
        instance, _ = await scaler.pool.take(size)
        await prepared
        await instance.attach(config)
        await instance.warm_up()
        scaler.in_force.adopt(config, size, placement, instance.id)
        await scaler.pages.commit(config)
        scaler.save()
        scaler.dispatcher.active = instance
        scaler.dispatcher.pump()

    async def _take_over(self, state: dict[str, Any]) -> None:
        scaler = self._scaler
        scaler.in_force, scaler.operations = parse_state(state)
        operation = next((o for o in scaler.operations.values() if not o.finished), None)
        found: dict[str, Instance] = {}
        for instance_id, size in state["instances"]:
            try:
                found[instance_id] = await scaler.pool.adopt(instance_id, size)
            except (RankLostError, RemoteError, TimeoutError, OSError) as error:
                log.warning("instance %s is lost: %s", instance_id, error)
        active = found.pop(scaler.in_force.active_id, None)
        for instance in found.values():
            if instance.state == "attached":
                await instance.detach()
            await scaler.pool.put_back(instance)
        if operation is not None:
            await self._settle(operation)
        await scaler.pages.commit(scaler.in_force.config)
        if active is None or active.config != scaler.in_force.config:
            active = await self._revive()
        scaler.in_force.active_id = active.id
        scaler.dispatcher.active = active
        scaler.save()
        scaler.dispatcher.pump()

    async def _settle(self, operation: ops.Operation) -> None:
        """End an operation that a dead coordinator left behind."""
        now = time.monotonic()
        if operation.committed:
            while operation.phase != "succeeded":
                following = ops.FORWARD[ops.FORWARD.index(operation.phase) + 1]
                operation = ops.move(operation, following, now, "finished by a new coordinator")
        else:
            if operation.config:
                await self._scaler.pages.abandon(operation.config)
            if operation.phase == "aborting":
                operation = ops.move(operation, "aborted", now)
            else:
                why = "the coordinator ended before the commit: nothing was changed"
                operation = ops.move(operation, "failed", now, why)
        self._scaler.operations[operation.id] = operation

    async def _revive(self) -> Instance:
        """An instance for the configuration in force: a standby of its size, or a new one."""
        in_force = self._scaler.in_force
        assert in_force.placement is not None
        await self._scaler.pages.prepare(in_force.config, in_force.size, in_force.placement)
        instance, _ = await self._scaler.pool.take(in_force.size)
        await instance.attach(in_force.config)
        await instance.warm_up()
        return instance

    def instance_lost(self, instance: Instance) -> None:
        """A rank died. The active instance is replaced and its requests are replayed; a standby is simply forgotten."""
        scaler = self._scaler
        if instance is not scaler.dispatcher.active:
            # It may be draining: what it still computed goes on elsewhere.
            scaler.dispatcher.replay(instance)
            if scaler.current is None and scaler.ready.is_set():
                scaler.restore_standbys()
            return
        scaler.ready.clear()
        scaler.dispatcher.active = None
        scaler.dispatcher.replay(instance)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        scaler = self._scaler
        operation = scaler.operations.get(scaler.current) if scaler.current else None
        if operation is not None and not operation.committed and scaler.task is not None:
            scaler.call_off(operation.id, "the active instance was lost")
            await asyncio.wait([scaler.task])
        while True:
            try:
                instance = await self._revive()
                break
            except (RemoteError, RankLostError, OSError, TimeoutError) as error:
                log.warning("reviving the active instance: %s; trying again", error)
                await asyncio.sleep(0.5)
        scaler.in_force.active_id = instance.id
        scaler.dispatcher.active = instance
        scaler.save()
        scaler.ready.set()
        scaler.dispatcher.pump()
        scaler.restore_standbys()
