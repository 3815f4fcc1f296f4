"""The planning loop: woken by changes, it observes, plans off the event loop, and leaves a verdict on every service.

Rounds are debounced, so that a hundred services applied at once are planned together, and cost nothing where nothing
has changed that a plan depends on. A timer bounds how old a round can get.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from medley_operator.api.problems import Problem
from medley_operator.api.traces import TraceKey, histogram_of_config_map
from medley_operator.cache import ClusterCache
from medley_operator.kinds import CONFIG_MAPS, GPU_POOLS, MODEL_PROFILES, Kind
from medley_operator.kube import KubeClient, KubeError, NotFoundError
from medley_operator.log import logger
from medley_operator.metrics import Metrics
from medley_operator.observe.fleet import Observation, PoolFinding, Snapshot, next_deadline_s, observe
from medley_operator.observe.views import Key
from medley_operator.report.events import Events, Subject
from medley_operator.report.pool_status import pool_status, profile_status
from medley_operator.rounds import InvalidFleetError, Planner, Round, UnsoundPlanError
from medley_operator.verdict import Verdict
from medley_planner.workload.sizes import SizeHistogram

LOG = logger("loop")

DEBOUNCE_S = 0.15
SHORTEST_INTERVAL_S = 0.3
LONGEST_PAUSE_S = 3.0
"""After a round there is a pause as long as the round, within these bounds:
its own effects are then planned with once.
"""

TRACE_AGE_S = 60.0
"""ConfigMaps with traces are not watched; so old may a reading be."""

FAILED_RETRY_S = 5.0


class PlanningLoop:
    """Plans the fleet whenever something changed, while this process may act."""

    def __init__(
        self,
        *,
        client: KubeClient,
        cache: ClusterCache,
        events: Events,
        metrics: Metrics,
        interval_s: float,
        max_cost_per_hour: float | None,
        may_act: Callable[[], bool],
        on_verdict: Callable[[Key], None],
        beat: Callable[[], None],
    ) -> None:
        self._client = client
        self._cache = cache
        self._events = events
        self._metrics = metrics
        self._interval_s = interval_s
        self._max_cost_per_hour = max_cost_per_hour
        self._may_act = may_act
        self._on_verdict = on_verdict
        self._beat = beat
        self._planner = Planner()
        self._wanted = asyncio.Event()
        self._verdicts: dict[Key, Verdict] = {}
        self._traces: dict[TraceKey, tuple[float, SizeHistogram | Problem]] = {}
        self._timer_s = 0.0

    def want(self) -> None:
        """Something changed: plan soon."""
        self._wanted.set()

    def verdict(self, key: Key) -> Verdict | None:
        """The last round's verdict on a service."""
        return self._verdicts.get(key)

    def forget(self) -> None:
        """Leadership ended: another process decides now."""
        self._verdicts.clear()

    async def run(self) -> None:
        """Plan until cancelled."""
        wake_s = 0.0
        while True:
            self._beat()
            timeout_s = min(max(wake_s - time.time(), SHORTEST_INTERVAL_S), self._interval_s)
            try:
                await asyncio.wait_for(self._wanted.wait(), timeout=timeout_s)
                await asyncio.sleep(DEBOUNCE_S)
            except TimeoutError:
                pass
            self._wanted.clear()
            if not self._may_act():
                wake_s = time.time() + self._interval_s
                continue
            began_s = time.monotonic()
            try:
                wake_s = await self._round()
            except KubeError as error:
                LOG.warning("the round is put off", error=str(error))
                wake_s = time.time() + FAILED_RETRY_S
            await asyncio.sleep(min(max(SHORTEST_INTERVAL_S, time.monotonic() - began_s), LONGEST_PAUSE_S))

    async def _round(self) -> float:
        """One round. Returns when to have the next one at the latest."""
        now_s = time.time()
        observation = observe(await self._snapshot(), now_s=now_s, max_cost_per_hour=self._max_cost_per_hour)
        generations = {view.key: view.generation for view in self._cache.services}
        try:
            made = await asyncio.to_thread(self._planner.round, observation, generations, now_s=now_s)
        except InvalidFleetError as error:
            self._metrics.plan_failures_total.inc()
            LOG.exception("the fleet cannot be planned; what runs is kept", field=error.field)
            return now_s + FAILED_RETRY_S
        except UnsoundPlanError:
            self._metrics.plan_failures_total.inc()
            LOG.exception("the plan did not pass its check; what runs is kept")
            return now_s + FAILED_RETRY_S
        if not self._may_act():
            return now_s
        self._take(made)
        await self._report(observation, now_s)
        moments = [
            made.wake_at_s,
            next_deadline_s(observation, self._cache.pods, now_s=now_s),
            now_s + self._interval_s,
        ]
        return min(moment for moment in moments if moment is not None)

    async def _snapshot(self) -> Snapshot:
        cache = self._cache
        return Snapshot(
            services=tuple(cache.services),
            pools=tuple(cache.pools),
            profiles=tuple(cache.profiles),
            nodes=tuple(cache.nodes),
            pods=tuple(cache.pods),
            deployments=tuple(cache.deployments),
            traces=await self._read_traces(),
        )

    async def _read_traces(self) -> Mapping[TraceKey, SizeHistogram | Problem]:
        """The traces that services refer to, read again where the reading is old."""
        now_s = time.monotonic()
        wanted = {}
        for view in self._cache.services:
            reference = view.llm.spec.workload.sizes.trace_config_map if view.llm is not None else None
            if reference is not None:
                wanted[TraceKey(view.namespace, reference.name, reference.key)] = reference
        for gone in self._traces.keys() - wanted.keys():
            del self._traces[gone]
        for key, reference in sorted(wanted.items()):
            if key in self._traces and now_s < self._traces[key][0] + TRACE_AGE_S:
                continue
            try:
                data = (await self._client.get(CONFIG_MAPS, key.config_map, key.namespace)).get("data") or {}
            except NotFoundError:
                data = None
            histogram = await asyncio.to_thread(histogram_of_config_map, reference, data)
            self._traces[key] = (now_s, histogram)
        return {key: histogram for key, (_, histogram) in self._traces.items()}

    def _take(self, made: Round) -> None:
        """Keep the verdicts, and have the services looked at of which they changed."""
        before, self._verdicts = self._verdicts, dict(made.verdicts)
        for key, verdict in made.verdicts.items():
            if before.get(key) != verdict:
                self._on_verdict(key)
        if made.seconds > 0.001:
            self._metrics.plan_duration_seconds.observe(made.seconds)
            LOG.info("planned", services=len(made.verdicts), seconds=round(made.seconds, 3))
        if made.decision is not None:
            self._metrics.plan_gap_ratio.set(made.decision.plan.gap)

    async def _report(self, observation: Observation, now_s: float) -> None:
        """Write the statuses of pools and profiles, where they changed."""
        for found in observation.pools:
            await self._report_pool(found, now_s)
        for view in sorted(self._cache.profiles, key=lambda view: view.name):
            status = profile_status(view, now_s=now_s)
            if view.profile is None or view.profile.status != status:
                await self._write(MODEL_PROFILES, view.name, view.uid, status)

    async def _report_pool(self, found: PoolFinding, now_s: float) -> None:
        view, stock = found.view, found.stock
        if stock is not None:
            for state, gpus in (
                ("allocatable", stock.allocatable),
                ("services", stock.used_by_services),
                ("others", stock.used_by_others),
                ("free", stock.free),
            ):
                self._metrics.pool_gpus.labels(view.name, state).set(gpus)
        status = pool_status(found, now_s=now_s)
        before = view.pool.status if view.pool is not None else None
        if before == status:
            return
        await self._write(GPU_POOLS, view.name, view.uid, status)
        if status.exhausted is not None and (before is None or before.exhausted is None):
            self._events.warning(Subject(GPU_POOLS, "", view.name, view.uid), "PoolExhausted", status.exhausted.reason)

    async def _write(self, kind: Kind, name: str, uid: str, status: Any) -> None:
        manifest = {
            "metadata": {"name": name, "uid": uid},
            "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        try:
            raw = await self._client.apply(kind, manifest, subresource="status")
        except NotFoundError:
            return  # deleted meanwhile
        self._cache.shelf(kind).put_raw(raw)
