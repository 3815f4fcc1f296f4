"""Brings one service to where its verdict says: writes down what it is about to do, does it, and reports.

A pass looks at the cache, decides (`verdict.aim`, `transition.step`: pure), acts and writes the status. Everything
that a later pass needs is in API objects; the pass after a crash is a pass like any other. A step that takes capacity
away is decided anew on a fresh read of the service's pods and Deployments, so that a watch that lags costs time and
never a replica.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from medley_operator.act.objects import ServiceObjects
from medley_operator.act.reporter import Reporter, subject_of
from medley_operator.act.surroundings import ServiceSurroundings
from medley_operator.cache import ClusterCache
from medley_operator.drain import Drains
from medley_operator.engines import Endpoint
from medley_operator.kube import ConflictError, KubeClient, NotFoundError, RefusedError, TemporaryError
from medley_operator.log import logger
from medley_operator.metrics import Metrics
from medley_operator.observe.replicas import deployed, replicas_of
from medley_operator.observe.views import DeploymentView, Key, PodView, ServiceView
from medley_operator.probe import Probes
from medley_operator.report.events import Events
from medley_operator.report.service_status import Facts
from medley_operator.report.words import mix_words
from medley_operator.transition import (
    Action,
    Delete,
    Drain,
    Ensure,
    Lower,
    Open,
    Probe,
    Shed,
    Situation,
    Step,
    Undrain,
    Watch,
    step,
)
from medley_operator.verdict import AUTO, Aim, Verdict, aim
from medley_operator.workloads import deployment, endpoint_url
from medley_operator.workqueue import RetryLater

LOG = logger("actor")

REFUSED_RETRY_S = 30.0
FOREIGN_RETRY_S = 1.0
MAY_NOT_ACT_RETRY_S = 1.0
"""A standby looks so often whether it may do what it would; a look costs microseconds."""


@dataclass(frozen=True)
class _Scene:
    """A service with everything that belongs to it, at one moment."""

    view: ServiceView
    verdict: Verdict | None
    aim: Aim
    deployments: tuple[DeploymentView, ...]
    pods: tuple[PodView, ...]
    situation: Situation
    step: Step


class ServiceActor:
    """Brings services to where they should be, one pass at a time."""

    def __init__(
        self,
        *,
        client: KubeClient,
        cache: ClusterCache,
        probes: Probes,
        drains: Drains,
        events: Events,
        metrics: Metrics,
        surroundings: ServiceSurroundings,
        verdict_of: Callable[[Key], Verdict | None],
        may_act: Callable[[], bool],
        wake: Callable[[Key], None],
    ) -> None:
        self._client = client
        self._cache = cache
        self._objects = ServiceObjects(client, cache)
        self._probes = probes
        self._drains = drains
        self._events = events
        self._reporter = Reporter(client, cache, events, metrics)
        self._surroundings = surroundings
        self._verdict_of = verdict_of
        self._may_act = may_act
        self._wake = wake
        self._trouble: dict[Key, str] = {}

    async def reconcile(self, key: Key) -> None:
        """One pass over one service.

        Raises:
            RetryLater: There is more to do, at a time or after a failure.
        """
        view = self._cache.services.get(key)
        if view is None or view.deleting:
            self._trouble.pop(key, None)
            return
        if not self._may_act():
            raise RetryLater(MAY_NOT_ACT_RETRY_S)
        try:
            scene = await self._pass(view)
        except ConflictError as error:
            LOG.info("somebody else changed it; looking again", service=view.id, error=str(error))
            raise RetryLater from error
        except TemporaryError as error:
            LOG.warning("the API server does not answer; holding", service=view.id, error=str(error))
            raise RetryLater(error.retry_after_s) from error
        if scene is not None and scene.step.wake_at_s is not None:
            raise RetryLater(max(0.1, scene.step.wake_at_s - time.time()))

    async def _pass(self, view: ServiceView) -> _Scene | None:
        scene = self._look(view)
        if scene.aim.begins(view.status):
            scene = await self._begin(scene)
        if scene.step.removes and scene.aim.acts:
            await self._objects.refresh(view)
            scene = self._look(scene.view)
        trouble = ""
        try:
            if view.llm is not None and view.llm.spec.mode == AUTO:
                await self._surroundings.ensure(view)
            await self._act(scene)
        except NotFoundError:
            LOG.info("an object vanished; looking again", service=view.id)
            self._wake(view.key)
        except ConflictError:
            raise
        except RefusedError as error:
            trouble = str(error)
            self._events.warning(subject_of(view), "ActionRefused", trouble)
        self._trouble[view.key] = trouble
        current = self._cache.services.get(view.key)
        if current is None or current.uid != view.uid:
            return None
        await self._report(self._look(current))
        if trouble:
            raise RetryLater(REFUSED_RETRY_S)
        return scene

    def _look(self, view: ServiceView) -> _Scene:
        """The service as the cache shows it, and what follows from that."""
        now_s = time.time()
        verdict = self._verdict_of(view.key)
        if verdict is not None and verdict.generation != view.generation:
            verdict = None  # of an older specification; the next round is on its way
        mine = [
            item for item in self._cache.deployments if item.key[0] == view.namespace and item.owner_uid == view.uid
        ]
        deployments = tuple(sorted(mine, key=lambda item: item.name))
        names = {item.name for item in deployments}
        ours = (pod for pod in self._cache.pods if pod.service == view.name and pod.namespace == view.namespace)
        pods = tuple(sorted((pod for pod in ours if pod.deployment in names), key=lambda pod: pod.name))
        heading = aim(view, verdict, deployments, now_s=now_s)
        pools = {item.name: item.pool for item in deployments}
        pools |= {name: variant.pool for name, variant in (verdict.variants if verdict else {}).items()}
        before = sum(heading.transition.from_.values()) if heading.transition is not None else 0
        after = sum(heading.target.values())
        situation = Situation(
            target={name: count for name, count in heading.target.items() if count},
            pools={name: pools.get(name, "") for name in heading.target},
            deployments=deployed(deployments),
            replicas=replicas_of(pods, deployments, self._cache.nodes.by_key()),
            probed=self._probes.answered,
            idle=self._drains.idle,
            floor=min(before, after),
            drain_timeout_s=float(view.llm.spec.disruption.drain_timeout_seconds) if view.llm else 300.0,
            now_s=now_s,
        )
        return _Scene(view, verdict, heading, deployments, pods, situation, step(situation))

    async def _begin(self, scene: _Scene) -> _Scene:
        """Write the new transition down before anything is done for it."""
        transition = scene.aim.transition
        assert transition is not None
        await self._report(scene)
        before, after = mix_words(transition.from_), mix_words(transition.to)
        self._events.normal(
            subject_of(scene.view),
            "TransitionStarted",
            f"moves {before} → {after} ({transition.reason}): {transition.message}",
        )
        view = self._cache.services.get(scene.view.key)
        return self._look(view or scene.view)

    async def _act(self, scene: _Scene) -> None:
        """Carry out a step, in its order."""
        self._probes_and_drains_of(scene)
        for action in scene.step.actions:
            if not scene.aim.acts and not isinstance(action, Probe | Open):
                continue
            if not self._may_act():
                raise RetryLater(MAY_NOT_ACT_RETRY_S)
            await self._carry_out(scene, action)

    def _probes_and_drains_of(self, scene: _Scene) -> None:
        """Forget what is known of this service's pods that are gone, or that drain no more."""
        watched = {action.replica.uid for action in scene.step.actions if isinstance(action, Watch)}
        for pod in scene.pods:
            if pod.uid not in watched and not pod.draining:
                self._drains.forget(pod.uid)

    async def _carry_out(self, scene: _Scene, action: Action) -> None:
        view, now_s = scene.view, time.time()
        match action:
            case Ensure(name, replicas):
                await self._grow(scene, name, replicas)
            case Lower(name, replicas):
                await self._objects.lower_to(_named(scene.deployments, name), replicas)
            case Delete(name):
                await self._objects.delete(_named(scene.deployments, name))
            case Probe(replica):
                self._probe(view, _pod(scene.pods, replica.uid))
            case Open(replica):
                pod = _pod(scene.pods, replica.uid)
                await self._objects.open_gate(pod, now_s=now_s)
                message = (
                    f"{pod.name} answered a real request {now_s - pod.created_s:.0f} s after its creation and serves"
                )
                self._events.normal(subject_of(view), "ReplicaServing", message)
            case Drain(replica):
                pod = _pod(scene.pods, replica.uid)
                transition = scene.aim.transition.id if scene.aim.transition else "surplus"
                await self._objects.drain(pod, transition, now_s=now_s)
                self._events.normal(
                    subject_of(view), "Draining", f"{pod.name} takes no more requests and finishes its last"
                )
            case Undrain(replica):
                pod = _pod(scene.pods, replica.uid)
                await self._objects.undrain(pod, now_s=now_s)
                self._events.normal(
                    subject_of(view), "DrainCancelled", f"{pod.name} is wanted after all and serves again"
                )
            case Watch(replica):
                self._watch(view, _pod(scene.pods, replica.uid))
            case Shed(replica, timed_out):
                pod = _pod(scene.pods, replica.uid)
                await self._objects.shed(pod)
                if pod.draining:
                    self._tell_drained(view, pod, timed_out=timed_out, now_s=now_s)

    async def _grow(self, scene: _Scene, name: str, replicas: int) -> None:
        """Raise a Deployment, or create it."""
        for item in scene.deployments:
            if item.name == name:
                await self._objects.raise_to(item, replicas)
                return
        foreign = self._cache.deployments.get((scene.view.namespace, name))
        if foreign is not None:  # of a service of this name that was deleted; it is about to be collected
            raise RetryLater(FOREIGN_RETRY_S)
        variant = scene.verdict.variants.get(name) if scene.verdict is not None else None
        llm = scene.view.llm
        if variant is None or llm is None:
            return  # known by name only, from before a restart; the next round knows what it is
        pool, profile = self._surroundings.pool(variant.pool), self._surroundings.profile(llm)
        if pool is None or profile is None:
            return
        manifest = deployment(llm, pool, profile, parallelism=variant.parallelism, replicas=replicas)
        if manifest["metadata"]["name"] == name:
            await self._objects.create(manifest)

    def _probe(self, view: ServiceView, pod: PodView) -> None:
        endpoint = _endpoint(view, pod)
        if endpoint is None:
            return
        subject = subject_of(view)
        self._probes.ask(
            pod.uid,
            endpoint,
            on_answer=lambda: self._wake(view.key),
            on_failure=lambda why: self._events.warning(subject, "ProbeFailed", f"{pod.name} {why}"),
        )

    def _watch(self, view: ServiceView, pod: PodView) -> None:
        endpoint = _endpoint(view, pod)
        if endpoint is not None:
            self._drains.watch(pod.uid, endpoint, pod.gate_changed_s, on_idle=lambda: self._wake(view.key))

    def _tell_drained(self, view: ServiceView, pod: PodView, *, timed_out: bool, now_s: float) -> None:
        took_s, subject = now_s - pod.gate_changed_s, subject_of(view)
        if timed_out:
            left = self._drains.in_flight(pod.uid)
            known = f"{left} requests in flight" if left is not None else "an unknown number of requests in flight"
            self._events.warning(subject, "DrainTimedOut", f"{pod.name} goes with {known} after {took_s:.0f} s")
        else:
            self._events.normal(subject, "Drained", f"{pod.name} has 0 requests in flight after {took_s:.0f} s")

    async def _report(self, scene: _Scene) -> None:
        if scene.verdict is None and scene.view.status.observed_generation is None:
            return  # there is nothing to say before the first planning round
        llm = scene.view.llm
        await self._reporter.report(
            Facts(
                view=scene.view,
                verdict=scene.verdict,
                aim=scene.aim,
                phase=scene.step.phase,
                replicas=scene.situation.replicas,
                pods=scene.pods,
                endpoint=endpoint_url(llm) if llm is not None else "",
                trouble=self._trouble.get(scene.view.key, ""),
                now_s=time.time(),
            )
        )


def _named(deployments: tuple[DeploymentView, ...], name: str) -> DeploymentView:
    return next(item for item in deployments if item.name == name)


def _pod(pods: tuple[PodView, ...], uid: str) -> PodView:
    return next(pod for pod in pods if pod.uid == uid)


def _endpoint(view: ServiceView, pod: PodView) -> Endpoint | None:
    """Where to ask the pod; None while it has no address."""
    if view.llm is None or not pod.address:
        return None
    engine = view.llm.spec.engine
    return Endpoint(pod.address, pod.port or engine.port, engine.type, view.llm.spec.model.name)
