"""Puts the operator together: cache, watches, leadership, the planning loop, the actors,
and the servers around them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp

from medley_operator.act.actor import ServiceActor
from medley_operator.act.surroundings import ServiceSurroundings
from medley_operator.cache import ClusterCache
from medley_operator.drain import Drains
from medley_operator.health import Pulse, serve_health, serve_metrics
from medley_operator.kinds import DEPLOYMENTS, GPU_POOLS, LEASES, LLM_SERVICES, PODS, Kind
from medley_operator.kube import KubeClient, KubeError, TemporaryError, load_configuration
from medley_operator.leader import Leadership
from medley_operator.log import logger
from medley_operator.loop import PlanningLoop
from medley_operator.metrics import Metrics
from medley_operator.observe.views import Key
from medley_operator.probe import Probes
from medley_operator.report.events import Events
from medley_operator.settings import Settings
from medley_operator.version import VERSION
from medley_operator.watch import ClusterWatch
from medley_operator.workqueue import Workqueue

LOG = logger("operator")

WORKERS = 16
FOLLOW_EVERY_S = 0.1
RESYNC_EVERY_S = 300.0
OUTAGE_CODES = frozenset({0, 500, 502, 503, 504})
"""Answers, or none (0), after which the watches may have missed something. Requests for the Lease are not counted: they
are cut off early, and after an outage leadership has to be won anew, which counts."""


class Operator:
    """One operator process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._metrics = Metrics()
        self._pulse = Pulse(self._metrics)
        self._queue: Workqueue[Key] = Workqueue()
        self._cache = ClusterCache(self._changed)

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set, then give leadership back.

        Raises:
            ConfigurationError: There is no usable way to an API server.
            ExceptionGroup: A part ended with an error that it does not handle.
        """
        configuration = await load_configuration()
        async with contextlib.AsyncExitStack() as stack:
            self._client = KubeClient(configuration, on_error=self._failed)
            stack.push_async_callback(self._client.close)
            session = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
            self._build(session)
            stack.push_async_callback(self._probes.close)
            stack.push_async_callback(self._drains.close)
            self._watch = ClusterWatch(self._cache, self._client, configuration)
            await stack.enter_async_context(serve_metrics(self._settings.metrics_port, self._metrics))
            await stack.enter_async_context(serve_health(self._settings.health_port, self._pulse, self._missing))
            LOG.info("started", version=VERSION, identity=self._settings.pod_name)
            await self._run_parts(stop)

    def _build(self, session: aiohttp.ClientSession) -> None:
        self._events = Events(self._client, self._settings.pod_name)
        self._probes = Probes(session)
        self._drains = Drains(session)
        self._surroundings = ServiceSurroundings(self._client, self._cache)
        self._leadership = Leadership(self._client, self._settings, self._leadership_changed)
        self._loop = PlanningLoop(
            client=self._client,
            cache=self._cache,
            events=self._events,
            metrics=self._metrics,
            interval_s=self._settings.plan_interval_s,
            max_cost_per_hour=self._settings.max_cost_per_hour or None,
            may_act=self._may_act,
            on_verdict=self._queue.add,
            beat=lambda: self._pulse.beat("planning loop"),
        )
        self._actor = ServiceActor(
            client=self._client,
            cache=self._cache,
            probes=self._probes,
            drains=self._drains,
            events=self._events,
            metrics=self._metrics,
            surroundings=self._surroundings,
            verdict_of=self._loop.verdict,
            may_act=self._may_act,
            wake=self._queue.add,
        )

    async def _run_parts(self, stop: asyncio.Event) -> None:
        parts: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "pulse": self._pulse.run,
            "watch": self._watch.run,
            "leadership": self._leadership.run,
            "events": self._events.run,
            "planning loop": self._loop.run,
            "workers": lambda: self._queue.work(self._actor.reconcile, workers=WORKERS),
            "leave": self._follow_leave,
            "resync": self._resync,
        }
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(part(), name=name) for name, part in parts.items()]
                await stop.wait()
                LOG.info("stopping")
                for task in tasks:
                    task.cancel()
        finally:
            await self._leadership.release()

    async def _resync(self) -> None:
        """Look at every service now and then though nothing tells to, so that a change that was missed heals."""
        while True:
            await asyncio.sleep(RESYNC_EVERY_S)
            self._wake_all()

    def _may_act(self) -> bool:
        """Whether this process may act at this moment."""
        return self._cache.synced and self._leadership.leads

    def _missing(self) -> str:
        """What keeps this process from being ready to act or to take over."""
        return "" if self._cache.synced else "the caches are not synced"

    def _failed(self, verb: str, kind: Kind, error: KubeError) -> None:
        self._metrics.count_api_error(verb, kind, error)
        if kind is not LEASES and isinstance(error, TemporaryError) and error.code in OUTAGE_CODES:
            self._watch.distrust()

    async def _leadership_changed(self, leads: bool) -> None:
        self._metrics.leader.set(leads)
        if leads:
            self._wake_all()
        else:
            self._loop.forget()
            self._watch.distrust()

    async def _follow_leave(self) -> None:
        """Plan soon when this process may act again: rounds that came up meanwhile were put off."""
        could = False
        while True:
            can = self._may_act()
            self._metrics.synced.set(self._cache.synced)
            if can != could:
                LOG.info("acting" if can else "not acting", synced=self._cache.synced, leads=self._leadership.leads)
                self._loop.want()
            could = can
            await asyncio.sleep(FOLLOW_EVERY_S)

    def _wake_all(self) -> None:
        self._loop.want()
        for view in self._cache.services:
            self._queue.add(view.key)

    def _changed(self, kind: Kind, before: Any, after: Any) -> None:
        """The cache changed: mark what has to be looked at. Called for every change, so it does no more than that."""
        view = after if after is not None else before
        self._loop.want()
        if kind is LLM_SERVICES:
            self._queue.add(view.key)
            if after is None:
                self._forget_service(before)
        elif kind in {PODS, DEPLOYMENTS}:
            if view.service:
                self._queue.add((view.namespace, view.service))
            if kind is PODS and before is not None and (after is None or after.uid != before.uid):
                self._probes.forget(before.uid)
                self._drains.forget(before.uid)
        elif kind is GPU_POOLS and after is None:
            self._metrics.forget_pool(before.name)

    def _forget_service(self, view: Any) -> None:
        self._queue.forget(view.key)
        self._surroundings.forget(view.uid)
        self._metrics.forget_service(view.namespace, view.name)
