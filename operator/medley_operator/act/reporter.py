"""Tells what became of a service: its status, its metrics, and events about what is new."""

from __future__ import annotations

from dataclasses import replace

from medley_operator.cache import ClusterCache
from medley_operator.kinds import LLM_SERVICES
from medley_operator.kube import KubeClient
from medley_operator.metrics import Metrics
from medley_operator.observe.views import ServiceView
from medley_operator.report.events import Events, Subject
from medley_operator.report.service_status import Facts, service_status
from medley_operator.report.words import mix_words
from medley_operator.transition import ReplicaState


def subject_of(view: ServiceView) -> Subject:
    """What events about a service are attached to."""
    return Subject(LLM_SERVICES, view.namespace, view.name, view.uid)


class Reporter:
    """Writes statuses where they differ from those that are there, and tells what changed."""

    def __init__(self, client: KubeClient, cache: ClusterCache, events: Events, metrics: Metrics) -> None:
        self._client = client
        self._cache = cache
        self._events = events
        self._metrics = metrics

    async def report(self, facts: Facts) -> None:
        """Make status, metrics and events follow from the facts.

        Raises:
            KubeError: The status could not be written; as of `KubeClient.apply`.
        """
        view = facts.view
        status = service_status(facts)
        self._measure(facts)
        if status == view.status:
            return
        manifest = {
            "metadata": {"name": view.name, "namespace": view.namespace, "uid": view.uid},
            "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        raw = await self._client.apply(LLM_SERVICES, manifest, subresource="status")
        self._cache.services.put_raw(raw)
        self._tell_changes(facts, replace(view, status=status))

    def _measure(self, facts: Facts) -> None:
        labels = (facts.view.namespace, facts.view.name)
        if facts.verdict is not None and facts.verdict.plan is not None:
            self._metrics.service_cost.labels(*labels).set(facts.verdict.plan.cost_per_hour)
        for state in ReplicaState:
            self._metrics.service_replicas.labels(*labels, state.name.lower()).set(facts.count(state))

    def _tell_changes(self, facts: Facts, after: ServiceView) -> None:
        """Events about what is new in a status that was just written."""
        before, subject = facts.view.status, subject_of(facts.view)
        done, verdict = after.status.last_transition, facts.verdict
        if done is not None and (before.last_transition is None or before.last_transition.id != done.id):
            self._metrics.transitions_total.labels(done.reason, done.outcome).inc()
            if done.outcome == "Completed":
                self._events.normal(
                    subject, "TransitionCompleted", f"replicas are as planned: {mix_words(facts.aim.target)}"
                )
        if verdict is None:
            return
        old_mix = before.plan.mix if before.plan is not None else None
        if after.status.plan is not None and after.status.plan.mix != old_mix and verdict.feasible:
            plan = after.status.plan
            self._events.normal(subject, "Planned", f"{plan.mix} at {plan.cost_per_hour:g} $/h: {plan.reason}")
        planned = next((c for c in after.status.conditions if c.type == "Planned"), None)
        if planned is not None and planned.status == "False":
            self._events.warning(subject, planned.reason, planned.message)
