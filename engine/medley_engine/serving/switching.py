"""From one instance to another: new requests to the new one, running sequences handed over, the old one drained."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from medley_engine.memory.wire import RemoteError
from medley_engine.serving.handover import hand_over
from medley_engine.serving.instances import Instance, InstancePool
from medley_engine.serving.links import ManagerLink, RankLostError
from medley_engine.serving.requests import Dispatcher
from medley_engine.serving.settings import Settings

log = logging.getLogger("medley.engine.switching")

_FIRST_TOKEN_S = 0.25
"""How long an operation waits at most, after a switch, for the first token of what was handed over."""


class Switch:
    """Moves what runs. It never fails: what cannot be moved finishes where it is, or is replayed."""

    def __init__(self, settings: Settings, pool: InstancePool, manager: ManagerLink, dispatcher: Dispatcher) -> None:
        self._settings, self._pool, self._manager, self._dispatcher = settings, pool, manager, dispatcher

    async def move(
        self, old: Instance | None, instance: Instance, on_first_token: Callable[[float], None]
    ) -> dict[str, Any]:
        """Give new requests to an instance and hand over what runs on the old one. The first step has no prompt in
        it, so that running streams pause as shortly as may be; prompts that come meanwhile are in the second.

        Returns:
            What was moved, to be told to people.
        """
        first = asyncio.Event()
        details: dict[str, Any] = {}

        def tell(now: float) -> None:
            first.set()
            on_first_token(now)

        self._dispatcher.awaited[instance.id] = tell
        with self._dispatcher.held_back():
            self._dispatcher.active = instance
            if old is not None and old.state == "attached":
                try:
                    details["handover"] = await hand_over(
                        old, instance, self._dispatcher, self._manager, self._settings
                    )
                except (RemoteError, RankLostError, OSError) as error:
                    # What was not moved finishes on the old instance, or is replayed at the drain timeout.
                    log.warning("handing over: %s", error)
        if details.get("handover", {}).get("moved"):
            # What else is to be done takes processors from the first step.
            try:
                await asyncio.wait_for(first.wait(), _FIRST_TOKEN_S)
            except TimeoutError:
                details["first_token_awaited_s"] = _FIRST_TOKEN_S
        return details

    async def drain(self, old: Instance) -> None:
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

    async def let_go(self, old: Instance) -> None:
        """Have an instance let go of its pages and keep it as a standby; one that does not is ended."""
        try:
            await old.detach()
        except (RemoteError, RankLostError, TimeoutError) as error:
            log.warning("old instance did not let go (%s): it is ended", error)
            await self._pool.stop(old)
            return
        await self._pool.put_back(old)
