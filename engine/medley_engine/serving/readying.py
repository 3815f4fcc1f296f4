"""Before the switch, where nothing is armed: pages and a standby at the same time, then attaching and warming up."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol

from medley_engine import operations as ops
from medley_engine.placement import Placement
from medley_engine.serving.inforce import InForce
from medley_engine.serving.instances import Instance, InstancePool
from medley_engine.serving.pages import Pages
from medley_engine.serving.requests import Dispatcher


class Steering(Protocol):
    """Who carries the operation out, and keeps its record."""

    def move(
        self, operation_id: str, phase: ops.Phase, message: str = "", *, save: bool = True, **changes: Any
    ) -> ops.Operation:
        """Bring the operation into a phase."""

    def detail(self, operation_id: str, **details: Any) -> None:
        """Tell people something about it."""

    async def hold(self) -> None:
        """Stretch the phase, for tests."""


class Readying:
    """Makes an instance of the size that an operation asks for."""

    def __init__(self, pool: InstancePool, pages: Pages, dispatcher: Dispatcher, steering: Steering) -> None:
        self._pool, self._pages, self._dispatcher, self._steering = pool, pages, dispatcher, steering

    async def run(self, operation: ops.Operation, in_force: InForce) -> tuple[str, Placement, Instance]:
        """Bring an operation from planning to the end of warming.

        Returns:
            The configuration's name, its placement, and the instance, attached and warmed up.

        Raises:
            RemoteError, RankLostError, OSError, TimeoutError: it cannot be had; what was taken was given back.
        """
        identifier, size, told = operation.id, operation.target, self._steering
        measured = self._dispatcher.active if operation.rebalance else None
        placement = await self._pages.place(in_force.placement, size, measured_on=measured)
        config = in_force.next_config(size, identifier)
        await told.hold()
        told.move(identifier, "preparing", config=config)
        started = time.monotonic()
        standby = asyncio.create_task(self._standby(identifier, size))
        try:
            progress = await self._pages.prepare(config, size, placement, old=self._dispatcher.active)
            took = time.monotonic() - started
            told.detail(identifier, prepare=progress["seconds"], plan=progress["plan"], pages_s=took)
            await told.hold()
            instance = await standby
        except BaseException:
            await self._return_standby(standby)
            raise
        told.move(identifier, "attaching", instance=instance.id)
        told.detail(identifier, attach=await instance.attach(config))
        await told.hold()
        told.move(identifier, "warming")
        told.detail(identifier, warm=await instance.warm_up())
        return config, placement, instance

    async def _standby(self, operation_id: str, size: int) -> Instance:
        started = time.monotonic()
        instance, waited = await self._pool.take(size)
        self._steering.detail(operation_id, standby_s=time.monotonic() - started, standby=waited)
        return instance

    async def _return_standby(self, standby: asyncio.Task[Instance]) -> None:
        """An operation that ends early gives back the instance that it took, or stops taking one."""
        standby.cancel()
        await asyncio.wait([standby])
        if not standby.cancelled() and standby.exception() is None:
            await self._pool.put_back(standby.result())
