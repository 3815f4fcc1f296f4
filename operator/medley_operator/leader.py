"""Leadership by a Lease: of several operator processes, one acts.

The official client has a leader election of its own (`kubernetes.aio.leaderelection`). It was read, and is not used:
a request that hangs is not cut off by the renew deadline, connection errors end it instead of being retried, times
are local wall-clock times without a zone, it does not release the Lease when the process stops, and there is no way
to ask, just before a write, whether one still leads. This is the same protocol (that of client-go) with these five
points mended.

Expiry is judged by this process's own monotonic clock, from when it saw the Lease change, so clocks of machines need
not agree.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from medley_operator.kinds import LEASES
from medley_operator.kube import ConflictError, KubeClient, KubeError, NotFoundError, Object
from medley_operator.log import logger
from medley_operator.settings import Settings

LOG = logger("leader")

Changed = Callable[[bool], Awaitable[None]]
"""Is awaited with True when leadership was won, and with False when it ended."""


class Leadership:
    """This process's part in the election."""

    def __init__(self, client: KubeClient, settings: Settings, on_change: Changed) -> None:
        self._client = client
        self._settings = settings
        self._on_change = on_change
        self._lease: Object | None = None
        self._lease_seen_s = 0.0
        self._renewed_s: float | None = None

    @property
    def leads(self) -> bool:
        """Whether this process may act at this moment. Ends by itself when the Lease could not be renewed in time."""
        return self._renewed_s is not None and time.monotonic() < self._renewed_s + self._settings.renew_deadline_s

    async def run(self) -> None:
        """Take part in the election until cancelled."""
        announced = False
        while True:
            await self._attempt()
            if self.leads != announced:
                announced = self.leads
                LOG.info("leadership changed", leads=announced, identity=self._settings.pod_name)
                await self._on_change(announced)
            await asyncio.sleep(self._settings.retry_period_s)

    async def release(self) -> None:
        """Give the Lease back, so that another process need not wait until it expires.

        Fails quietly: it expires anyway.
        """
        if self._renewed_s is None or self._lease is None:
            return
        self._renewed_s = None
        lease = {**self._lease, "spec": {**self._lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}}
        try:
            await self._client.replace(LEASES, lease, timeout_s=self._settings.retry_period_s)
            LOG.info("lease released", identity=self._settings.pod_name)
        except KubeError as error:
            LOG.warning("lease not released, it expires by itself", error=str(error))

    async def _attempt(self) -> None:
        """Renew the Lease, or acquire it where nobody holds it."""
        asked_s = time.monotonic()
        try:
            held = await self._renew_or_acquire()
        except KubeError as error:
            LOG.warning("no answer about the lease", error=str(error))
            return
        if held:
            self._renewed_s = asked_s
        elif self._renewed_s is not None:
            self._renewed_s = None
            LOG.warning("another process holds the lease", holder=self._holder())

    async def _renew_or_acquire(self) -> bool:
        settings = self._settings
        timeout_s = max(settings.retry_period_s, settings.renew_deadline_s / 2)
        try:
            lease = await self._client.get(LEASES, settings.lease_name, settings.lease_namespace, timeout_s=timeout_s)
        except NotFoundError:
            self._lease = None
            return await self._write(self._client.create, None, timeout_s)
        self._see(lease)
        if self._holder() != settings.pod_name and not self._expired():
            return False
        return await self._write(self._client.replace, lease, timeout_s)

    async def _write(self, call: Callable[..., Awaitable[Object]], lease: Object | None, timeout_s: float) -> bool:
        try:
            self._see(await call(LEASES, self._claim(lease), timeout_s=timeout_s))
        except ConflictError:
            return False  # another process was faster; look again in the next attempt
        return True

    def _see(self, lease: Object) -> None:
        if self._lease is None or self._lease["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"]:
            self._lease_seen_s = time.monotonic()
        self._lease = lease

    def _holder(self) -> str:
        holder: str = ((self._lease or {}).get("spec") or {}).get("holderIdentity") or ""
        return holder

    def _expired(self) -> bool:
        spec = (self._lease or {}).get("spec") or {}
        duration_s = float(spec.get("leaseDurationSeconds") or 0)
        return not self._holder() or time.monotonic() >= self._lease_seen_s + duration_s

    def _claim(self, lease: Object | None) -> Object:
        """The Lease as it is when this process holds it."""
        settings = self._settings
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = (lease or {}).get("spec") or {}
        mine = old.get("holderIdentity") == settings.pod_name
        spec = {
            "holderIdentity": settings.pod_name,
            "leaseDurationSeconds": max(1, round(settings.lease_duration_s)),
            "acquireTime": old["acquireTime"] if mine else now,
            "renewTime": now,
            "leaseTransitions": (old.get("leaseTransitions") or 0) + (0 if mine or lease is None else 1),
        }
        metadata = {"name": settings.lease_name, "namespace": settings.lease_namespace}
        if lease is not None:
            metadata["resourceVersion"] = lease["metadata"]["resourceVersion"]
        return {"metadata": metadata, "spec": spec}
