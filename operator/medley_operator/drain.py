"""Watching draining pods until they have no request in flight.

A pod counts as idle after the endpoints had time to forget it and two readings in a row were zero. Metrics that
cannot be read say nothing, least of all zero: the pod is watched on, until its drain timeout (which `transition`
judges) ends it. An engine that answers but has no such metrics (a custom one) is given a fixed time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from medley_operator.engines import Endpoint, EngineError, requests_in_flight
from medley_operator.log import logger

LOG = logger("drain")

SETTLE_S = 2.0
"""Time for the closed gate to reach everything that sends requests: kubelet, EndpointSlices, proxies, routers."""

READ_EVERY_S = 0.5
QUIET_READINGS = 2
WITHOUT_METRICS_S = 30.0
"""How long an engine without metrics is left to finish its requests, where the drain timeout is not shorter."""

CONCURRENT_READS = 32


@dataclass
class _Drain:
    task: asyncio.Task[None]
    idle: bool = False
    in_flight: int | None = None


class Drains:
    """Which draining pods are idle, and the readings that are under way."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._slots = asyncio.Semaphore(CONCURRENT_READS)
        self._drains: dict[str, _Drain] = {}

    @property
    def idle(self) -> frozenset[str]:
        """Uids of pods without requests in flight."""
        return frozenset(uid for uid, drain in self._drains.items() if drain.idle)

    def in_flight(self, uid: str) -> int | None:
        """The last reading of a pod; None where there is none."""
        drain = self._drains.get(uid)
        return drain.in_flight if drain else None

    def watch(self, uid: str, endpoint: Endpoint, since_s: float, *, on_idle: Callable[[], None]) -> None:
        """Watch this pod, whose gate was closed at `since_s`, unless it is watched already."""
        if uid not in self._drains:
            self._drains[uid] = _Drain(asyncio.create_task(self._until_idle(uid, endpoint, since_s, on_idle)))

    def forget(self, uid: str) -> None:
        """Stop watching a pod that is no more, or drains no more."""
        if uid in self._drains:
            self._drains.pop(uid).task.cancel()

    async def close(self) -> None:
        """Stop watching."""
        tasks = [drain.task for drain in self._drains.values()]
        for uid in list(self._drains):
            self.forget(uid)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_idle(self, uid: str, endpoint: Endpoint, since_s: float, on_idle: Callable[[], None]) -> None:
        drain = self._drains[uid]
        # The timestamp has whole seconds only, so it may be up to one too early.
        await asyncio.sleep(max(0.0, since_s + 1.0 + SETTLE_S - time.time()))
        quiet = 0
        while quiet < QUIET_READINGS:
            try:
                async with self._slots:
                    drain.in_flight = await requests_in_flight(self._session, endpoint)
            except EngineError as error:
                drain.in_flight, quiet = None, 0
                LOG.info("metrics of a draining pod cannot be read", address=endpoint.address, error=str(error))
            else:
                if drain.in_flight is None:
                    await asyncio.sleep(max(0.0, since_s + WITHOUT_METRICS_S - time.time()))
                    break
                quiet = quiet + 1 if drain.in_flight == 0 else 0
            if quiet < QUIET_READINGS:
                await asyncio.sleep(READ_EVERY_S)
        drain.idle = True
        on_idle()
