"""The event source: kopf watches, its handlers project each object and hand it to the cache, and do nothing else.

kopf runs in a thread with an event loop of its own. It was made to own its process: it takes over signals, ends with
its first fatal error (a watch answered with an error, a kind that vanished), and then cancels every task of its loop.
In a thread it can end and be started anew while the operator stays up, holds, and keeps its Lease.

kopf writes nothing here: there are only `on.event` handlers, so no annotations and no finalizers; peering, scanning
and posting of events are off.

What kopf cannot tell is when it has seen everything, and what was deleted while a watch was broken. So the operator
lists every kind itself when the watches have started, soon after, after every outage of the API server, and now and
then, and merges the list into what the watch told.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Any, cast

import kopf
from kubernetes.aio.client.configuration import Configuration

from medley_operator.cache import ClusterCache, key_of
from medley_operator.kinds import DEPLOYMENTS, PODS, WATCHED, Kind
from medley_operator.kube import KubeClient, KubeError
from medley_operator.log import logger
from medley_operator.observe import projections
from medley_operator.observe.views import Key
from medley_operator.workloads import naming

LOG = logger("watch")

SECOND_LIST_S = 15.0
"""When to list again after the start: a deletion between kopf's list and ours is then noticed."""

LIST_EVERY_S = 300.0
RETRY_S = 2.0
LABELS = {DEPLOYMENTS: f"{naming.LABEL_MANAGED_BY}={naming.MANAGED_BY}"}
"""What is watched by label, where not everything is."""

FIELDS = {PODS: "status.phase!=Succeeded,status.phase!=Failed"}
"""What is watched by field, where not everything is: pods that ended hold no GPUs."""


class ClusterWatch:
    """Keeps a cache in step with the cluster."""

    def __init__(self, cache: ClusterCache, client: KubeClient, configuration: Configuration) -> None:
        self._cache = cache
        self._client = client
        self._configuration = configuration
        self._list_wanted = asyncio.Event()

    def distrust(self) -> None:
        """The API server failed: what the watches told may be incomplete. Hold until everything was listed again."""
        if self._cache.synced:
            LOG.warning("the API server failed; holding until everything was listed again")
        self._cache.unsync()
        self._list_wanted.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._until_served()
            stop = threading.Event()
            thread = asyncio.create_task(asyncio.to_thread(self._watch, asyncio.get_running_loop(), stop))
            try:
                await self._list_until(thread)
                thread.result()
                LOG.warning("the watches ended; starting them anew")
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001  whatever ended kopf, the remedy is the same
                LOG.warning("the watches failed; starting them anew", error=f"{type(error).__name__}: {error}")
            finally:
                self._cache.unsync()
                stop.set()
                await asyncio.wait([thread], timeout=10)
            await asyncio.sleep(RETRY_S)

    async def _until_served(self) -> None:
        """Wait until the API server serves every kind: at the first start, the CRDs may come after the operator."""
        for kind in WATCHED:
            await _persistently(functools.partial(self._first_page, kind), f"waiting for {kind}")

    async def _first_page(self, kind: Kind) -> None:
        async for _ in self._client.pages(kind):
            return

    async def _list_until(self, thread: asyncio.Task[None]) -> None:
        """List all kinds, again and again, until the thread ends."""
        delays = iter((SECOND_LIST_S,))
        while not thread.done():
            self._list_wanted.clear()
            for kind in WATCHED:
                await _persistently(functools.partial(self._list, kind), f"listing {kind}")
            wanted = asyncio.create_task(self._list_wanted.wait())
            await asyncio.wait(
                {thread, wanted}, timeout=next(delays, LIST_EVERY_S), return_when=asyncio.FIRST_COMPLETED
            )
            wanted.cancel()

    async def _list(self, kind: Kind) -> None:
        shelf = self._cache.shelf(kind)
        found: dict[Key, tuple[int, Any]] = {}
        listed_at = 0
        pages = self._client.pages(kind, label_selector=LABELS.get(kind, ""), field_selector=FIELDS.get(kind, ""))
        async for page, version in pages:
            listed_at = version
            found |= {key_of(raw): (projections.version_of(raw), shelf.project(raw)) for raw in page}
        shelf.replace(found, listed_at)

    def _watch(self, loop: asyncio.AbstractEventLoop, stop: threading.Event) -> None:
        """Run kopf until it fails or is stopped. In a thread of its own."""
        registry = kopf.OperatorRegistry()
        self._register(registry, loop)
        asyncio.run(
            kopf.operator(
                registry=registry,
                settings=_kopf_settings(),
                # Unused without peering. Given, because kopf's own guess fails for a user id that has no name.
                identity=cast("Any", "medley"),
                clusterwide=True,
                standalone=True,
                stop_flag=stop,
            )
        )

    def _register(self, registry: kopf.OperatorRegistry, loop: asyncio.AbstractEventLoop) -> None:
        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            return await connection_info(self._configuration)

        for kind in WATCHED:
            handler = self._handler(kind, loop)
            kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=kind.plural)(handler)

    def _handler(self, kind: Kind, loop: asyncio.AbstractEventLoop) -> Callable[..., Awaitable[None]]:
        shelf = self._cache.shelf(kind)

        async def handle(event: kopf.RawEvent, **_: Any) -> None:
            raw: Any = event["object"]
            key, version = key_of(raw), projections.version_of(raw)
            if event["type"] == "DELETED":
                loop.call_soon_threadsafe(shelf.remove, key, version)
            else:
                loop.call_soon_threadsafe(shelf.put, key, version, shelf.project(raw))

        return handle


class _NoDiffs(kopf.AnnotationsDiffBaseStorage):
    """Spares kopf the copy that it makes of every object to find out what changed:
    handlers of plain events do not ask.
    """

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()


async def _persistently(attempt: Callable[[], Awaitable[None]], what: str) -> None:
    """Try until it works."""
    while True:
        try:
            return await attempt()
        except KubeError as error:
            LOG.warning(what, error=str(error))
        await asyncio.sleep(RETRY_S)


def _kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.networking.error_backoffs = (0.5, 1, 2, 2, 2)
    settings.watching.reconnect_backoff = 0.5
    settings.watching.chunk_size = 250
    settings.queueing.idle_timeout = 1.0
    settings.persistence.diffbase_storage = _NoDiffs()
    for kind, selector in LABELS.items():
        settings.watching.label_selectors[kind.group, kind.version, kind.plural] = selector
    for kind, selector in FIELDS.items():
        settings.watching.field_selectors[kind.group or "", kind.version, kind.plural] = selector
    return settings


async def connection_info(configuration: Configuration) -> kopf.ConnectionInfo:
    """The official client's configuration in kopf's terms. Asked for anew whenever the credentials were refused."""
    authorization = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization") or ""
    scheme, _, token = authorization.partition(" ")
    info = kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert or None,
        ca_data=configuration.ca_cert_data or None,
        insecure=not configuration.verify_ssl,
        certificate_path=configuration.cert_file or None,
        private_key_path=configuration.key_file or None,
    )
    return dataclasses.replace(info, scheme=scheme.strip().capitalize(), token=token.strip()) if token else info
