"""Standbys that are attached and warmed up before anybody asks for them.

Where ranks can map the memory that items lie in, attaching copies nothing, so the standbys of the neighbouring sizes
can be made ready for the switch as soon as a configuration is in force. An operation that finds its size armed begins
at its commit; any other takes the longer way. What is armed belongs to one generation: after a commit it lets go, and
the neighbours of the new configuration are armed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from medley_engine.memory.wire import RemoteError
from medley_engine.placement import Placement
from medley_engine.serving.inforce import InForce
from medley_engine.serving.instances import Instance, InstancePool
from medley_engine.serving.links import RankLostError
from medley_engine.serving.pages import Pages
from medley_engine.serving.settings import Settings

log = logging.getLogger("medley.engine.arming")

_PURPOSE = "armed"


@dataclass(frozen=True)
class Armed:
    """An instance that waits at a configuration, warmed up."""

    config: str
    placement: Placement
    instance: Instance


class Armoury:
    """Keeps the standbys of some sizes armed, in the background."""

    def __init__(self, settings: Settings, pool: InstancePool, pages: Pages) -> None:
        self._pool, self._pages = pool, pages
        self._enabled = settings.arms
        self._armed: dict[int, Armed] = {}
        self._task: asyncio.Task[None] | None = None
        self._wish: tuple[InForce, Sequence[int]] | None = None
        self._wanted = self._at_pages = False

    @property
    def sizes(self) -> list[int]:
        """Sizes that are armed."""
        return sorted(size for size, armed in self._armed.items() if armed.instance.state == "armed")

    def begin(self, in_force: InForce, sizes: Sequence[int]) -> None:
        """Arm these sizes, one after the other; anew where that is under way, since one may have died meanwhile."""
        self._wish = (in_force, sizes)
        self._wanted = True
        if self._enabled and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run())

    async def settle(self) -> None:
        """Stop arming: at once while a standby is waited for, else when the one at its pages is ready."""
        self._wanted = False
        if self._task is not None:
            if not self._at_pages:
                self._task.cancel()
            await asyncio.wait([self._task])

    def claim(self, in_force: InForce, size: int) -> Armed | None:
        """Take what is armed for a size, if it fits the configuration in force; the caller owns it from now on."""
        armed = self._armed.get(size)
        if armed is None or armed.instance.state != "armed" or armed.config != in_force.next_config(size, _PURPOSE):
            return None
        del self._armed[size]
        self._pool.claim(armed.instance)
        armed.instance.state = "attached"
        return armed

    async def disarm(self) -> None:
        """Have every armed instance let go of its pages; they stay as standbys."""
        for size, armed in sorted(self._armed.items()):
            del self._armed[size]
            try:
                if armed.instance.state == "armed":
                    await armed.instance.detach()
                await self._pages.abandon(armed.config)
            except (RankLostError, RemoteError, ConnectionError, TimeoutError) as error:
                log.warning("disarming %s: %s", armed.config, error)
                await self._pool.stop(armed.instance)

    async def _run(self) -> None:
        while self._wanted and self._wish is not None:
            wish, self._wish = self._wish, None
            await self._arm_all(*wish)

    async def _arm_all(self, in_force: InForce, sizes: Sequence[int]) -> None:
        if set(self.sizes) != set(sizes) or any(not self._fits(in_force, size) for size in sizes):
            await self.disarm()
        for size in sizes:
            if size not in self._armed and self._wanted:
                try:
                    await self._arm(in_force, size)
                except (RankLostError, RemoteError, ConnectionError, TimeoutError) as error:
                    log.warning("arming %d groups: %s", size, error)

    def _fits(self, in_force: InForce, size: int) -> bool:
        armed = self._armed.get(size)
        return armed is not None and armed.config == in_force.next_config(size, _PURPOSE)

    async def _arm(self, in_force: InForce, size: int) -> None:
        config = in_force.next_config(size, _PURPOSE)
        placement = await self._pages.place(in_force.placement, size)
        instance, _ = await self._pool.take(size)
        self._at_pages = True
        try:
            await self._pages.prepare(config, size, placement, armed=True)
            await instance.attach(config, populate=True)
            await instance.warm_up()
        except BaseException:
            await self._pool.stop(instance)
            raise
        finally:
            self._at_pages = False
        if instance.state == "attached":
            instance.state = "armed"
            self._armed[size] = Armed(config, placement, instance)
        await self._pool.put_back(instance)
