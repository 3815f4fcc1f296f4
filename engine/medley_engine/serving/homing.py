"""After a switch: what the new ranks map in other memories is copied to their own.

With a memory per rank, an instance serves first and gets its pages after (``--copy-after-switch``). Until then it reads
some of them where they were, which is slower where memories are far apart, and loses nothing whatever dies: the next
instance, manager or coordinator goes on from where the pages are.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from medley_engine.memory.wire import RemoteError
from medley_engine.serving.inforce import InForce
from medley_engine.serving.instances import Instance
from medley_engine.serving.pages import Pages
from medley_engine.serving.settings import Settings

log = logging.getLogger("medley.engine.homing")


class Homing:
    """One copying at a time, which is never broken off: only ended by the loss of the instance."""

    def __init__(self, settings: Settings, pages: Pages) -> None:
        self._enabled, self._pages = settings.copies_later, pages
        self._task: asyncio.Task[dict[str, Any]] | None = None

    async def run(self, in_force: InForce, instance: Instance | None) -> dict[str, Any]:
        """Wait until the instance that serves maps all in its own memories; what that took, to be told to people."""
        if not self._enabled or instance is None:
            return {}
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._bring(in_force, instance))
        return {"home": await asyncio.shield(self._task)}

    async def settle(self) -> None:
        """Wait for the copying that is under way."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _bring(self, in_force: InForce, instance: Instance) -> dict[str, Any]:
        assert in_force.placement is not None
        try:
            return await self._pages.bring_home(in_force.config, in_force.size, in_force.placement, instance)
        except (RemoteError, ConnectionError, TimeoutError) as error:
            # It serves from where its pages are; whoever restores standbys next tries again.
            log.warning("bringing pages home: %s", error)
            return {"failure": str(error)}
