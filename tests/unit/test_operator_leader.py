"""Leadership: several processes against one Lease in memory, with requests that fail and hang."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

from medley_operator.kube import ConflictError, NotFoundError, TemporaryError
from medley_operator.leader import Leadership
from medley_operator.settings import Settings

DURATION_S, DEADLINE_S, RETRY_S = 1.0, 0.6, 0.05


class Leases:
    """The API server's side of one Lease. `outage` answers nothing."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.outage = False
        self._version = 0

    async def get(self, kind: object, name: str, namespace: str, *, timeout_s: float) -> dict[str, Any]:
        await self._answer()
        if self.lease is None:
            raise NotFoundError("none", code=404, reason="NotFound")
        return copy.deepcopy(self.lease)

    async def create(self, kind: object, manifest: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        await self._answer()
        if self.lease is not None:
            raise ConflictError("there", code=409, reason="AlreadyExists")
        return self._store(manifest)

    async def replace(self, kind: object, manifest: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        await self._answer()
        assert self.lease is not None
        if manifest["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ConflictError("changed", code=409, reason="Conflict")
        return self._store(manifest)

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.outage:
            raise TemporaryError("no answer", code=0, reason="TimeoutError")

    def _store(self, manifest: dict[str, Any]) -> dict[str, Any]:
        self._version += 1
        self.lease = copy.deepcopy(manifest)
        self.lease["metadata"]["resourceVersion"] = str(self._version)
        return copy.deepcopy(self.lease)


class Process:
    """One process of the election."""

    def __init__(self, name: str, leases: Leases) -> None:
        settings = Settings(
            pod_name=name, lease_duration_s=DURATION_S, renew_deadline_s=DEADLINE_S, retry_period_s=RETRY_S
        )
        self.told: list[bool] = []
        self.leadership = Leadership(leases, settings, self._tell)  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.leadership.run())

    async def _tell(self, leads: bool) -> None:
        self.told.append(leads)

    async def die(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


async def until(condition: Any, timeout_s: float = 5.0) -> float:
    """Wait for a condition; gives the seconds that took."""
    began_s = asyncio.get_running_loop().time()
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  what is waited for is a clock's doing
            await asyncio.sleep(0.01)
    return asyncio.get_running_loop().time() - began_s


async def test_one_of_several_leads_and_the_lease_says_who() -> None:
    leases = Leases()
    processes = [Process(name, leases) for name in "abc"]
    await until(lambda: any(process.leadership.leads for process in processes))
    for _ in range(20):
        await asyncio.sleep(RETRY_S)
        assert sum(process.leadership.leads for process in processes) == 1
    assert leases.lease is not None
    (leader,) = [process for process in processes if process.leadership.leads]
    assert "abc"[processes.index(leader)] == leases.lease["spec"]["holderIdentity"]
    for process in processes:
        await process.die()


async def test_a_dead_leader_is_replaced_after_the_lease_ran_out_and_not_before() -> None:
    leases = Leases()
    first = Process("a", leases)
    await until(lambda: first.leadership.leads)
    second = Process("b", leases)
    await asyncio.sleep(3 * RETRY_S)
    await first.die()
    took_s = await until(lambda: second.leadership.leads)
    assert took_s >= DURATION_S - 2 * RETRY_S
    assert not first.leadership.leads
    assert leases.lease is not None
    assert leases.lease["spec"]["leaseTransitions"] == 1
    await second.die()


async def test_a_released_lease_is_taken_over_at_once() -> None:
    leases = Leases()
    first = Process("a", leases)
    await until(lambda: first.leadership.leads)
    second = Process("b", leases)
    await asyncio.sleep(3 * RETRY_S)
    await first.die()
    await first.leadership.release()
    assert not first.leadership.leads
    assert await until(lambda: second.leadership.leads) < DURATION_S / 2
    await second.die()


async def test_a_leader_that_cannot_renew_stops_before_anybody_else_may_start() -> None:
    leases = Leases()
    leader = Process("a", leases)
    await until(lambda: leader.leadership.leads)
    leases.outage = True
    assert await until(lambda: not leader.leadership.leads) < DURATION_S
    await until(lambda: leader.told == [True, False])
    leases.outage = False
    await until(lambda: leader.told == [True, False, True])
    await leader.die()


async def test_a_stalled_event_loop_does_not_prolong_leadership() -> None:
    leases = Leases()
    leader = Process("a", leases)
    await until(lambda: leader.leadership.leads)
    await leader.die()  # nothing renews any more
    assert leader.leadership.leads
    await until(lambda: not leader.leadership.leads, DURATION_S)
