"""Probes of pods that have loaded: one real request each, before their gate opens.

Run beside the loop, a bounded number at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from medley_operator.engines import Endpoint, EngineError, probe
from medley_operator.log import logger

LOG = logger("probe")

CONCURRENT_PROBES = 32
FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 15.0

Failed = Callable[[str], None]
"""Is told why a probe failed."""


@dataclass
class _Probe:
    task: asyncio.Task[None]
    answered: bool = False


class Probes:
    """Which pods have answered a real request, and the requests that are under way."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._slots = asyncio.Semaphore(CONCURRENT_PROBES)
        self._probes: dict[str, _Probe] = {}

    @property
    def answered(self) -> frozenset[str]:
        """Uids of pods that answered."""
        return frozenset(uid for uid, probe in self._probes.items() if probe.answered)

    def ask(self, uid: str, endpoint: Endpoint, *, on_answer: Callable[[], None], on_failure: Failed) -> None:
        """Probe this pod until it answers, unless that is under way already."""
        if uid not in self._probes:
            task = asyncio.create_task(self._until_answered(uid, endpoint, on_answer, on_failure))
            self._probes[uid] = _Probe(task)

    def forget(self, uid: str) -> None:
        """Stop caring about a pod that is no more."""
        if uid in self._probes:
            self._probes.pop(uid).task.cancel()

    async def close(self) -> None:
        """Stop all probes."""
        tasks = [probe.task for probe in self._probes.values()]
        for uid in list(self._probes):
            self.forget(uid)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_answered(
        self, uid: str, endpoint: Endpoint, on_answer: Callable[[], None], on_failure: Failed
    ) -> None:
        delay_s = FIRST_RETRY_S
        while True:
            try:
                async with self._slots:
                    await probe(self._session, endpoint)
                break
            except EngineError as error:
                LOG.info("probe failed", address=endpoint.address, error=str(error))
                on_failure(str(error))
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, LONGEST_RETRY_S)
        self._probes[uid].answered = True
        on_answer()
