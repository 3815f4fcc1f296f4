"""One planning round: from an observation of the cluster to a verdict on every service."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from medley_operator.api.problems import Problem
from medley_operator.api.resolve import ResolvedService
from medley_operator.api.translate import plan_status
from medley_operator.explanations import Explanations
from medley_operator.observe.fleet import Observation
from medley_operator.verdict import Verdict
from medley_operator.workloads import deployment
from medley_operator.workloads.custom import PodTemplateError
from medley_planner.fleet import FleetState, PlanOptions, Variant
from medley_planner.plan import InvalidFleetError, UnsoundPlanError
from medley_planner.policy import Choice, Decision, FleetDecision, Standing, plan_and_decide
from medley_planner.programme.memo import Memo
from medley_planner.result import Outcome, ServicePlan

Key = tuple[str, str]

SERVED = frozenset({Outcome.PLANNED, Outcome.PINNED})
"""Outcomes with which a service's demand is served as it asks."""

TIME_LIMIT_S = 10.0


@dataclass(frozen=True)
class Round:
    """What a round found out.

    Args:
        verdicts: On every service that parses and is not being deleted.
        decision: The fleet's decision; None where there was nothing to plan.
        wake_at_s: When to plan again at the latest; at once, where plans are left to be explained.
        seconds: How long planning took; 0 where nothing had changed since the last round.
    """

    verdicts: Mapping[Key, Verdict]
    decision: FleetDecision | None
    wake_at_s: float | None
    seconds: float


class Planner:
    """Plans round after round, and does not plan again what has not changed.

    Not safe for use from two threads at a time.
    """

    def __init__(self) -> None:
        self._memo = Memo()
        self._explanations = Explanations(self._memo)
        self._last: tuple[FleetState, Mapping[str, Standing], FleetDecision] | None = None

    def round(self, observation: Observation, generations: Mapping[Key, int], *, now_s: float) -> Round:
        """Judge every service.

        Args:
            observation: The cluster.
            generations: The generation of every service's specification.
            now_s: The time.

        Raises:
            InvalidFleetError: A value that the planner refuses got past all checks; names the field.
            UnsoundPlanError: The planner made a mistake that its own check found.
        """
        verdicts = {
            key: Verdict(generation=generations[key], problems=found) for key, found in observation.problems.items()
        }
        if not observation.resolved:
            return Round(verdicts, None, None, 0.0)
        started_s = time.monotonic()
        bare = self._decide(observation, now_s)
        decision, more = self._explanations.explain(observation.state, bare)
        took_s = time.monotonic() - started_s
        by_service = {item.service: item for item in decision.decisions}
        gpu_types = {pool.name: pool.gpu.name for pool in observation.state.pools}
        for key, resolved in observation.resolved.items():
            made = by_service[resolved.service.key]
            verdicts[key] = _verdict(resolved, made, observation, gpu_types, generations[key])
        wakes = [item.wake_at_s for item in decision.decisions if item.wake_at_s is not None]
        return Round(verdicts, decision, now_s if more else min(wakes, default=None), took_s)

    def _decide(self, observation: Observation, now_s: float) -> FleetDecision:
        if self._last is not None:
            state, standings, decision = self._last
            wakes = [item.wake_at_s for item in decision.decisions if item.wake_at_s is not None]
            unchanged = state == observation.state and standings == observation.standings
            if unchanged and now_s < min(wakes, default=now_s + 1):
                return decision
        decision = plan_and_decide(
            observation.state,
            observation.standings,
            now_s=now_s,
            options=PlanOptions(time_limit_s=TIME_LIMIT_S, explain=False),
            memo=self._memo,
        )
        self._last = (observation.state, observation.standings, decision)
        return decision


def _verdict(
    resolved: ResolvedService,
    decision: Decision,
    observation: Observation,
    gpu_types: Mapping[str, str],
    generation: int,
) -> Verdict:
    try:
        variants = _deployments(resolved, decision.target, observation)
    except PodTemplateError as error:
        problem = Problem("InvalidPodTemplate", "spec.engine.podTemplate", str(error))
        return Verdict(generation=generation, problems=(problem,))
    wanted = dict(decision.target)
    judged = _judged(decision)
    return Verdict(
        generation=generation,
        choice=decision.choice,
        reason=decision.reason,
        message=decision.message,
        feasible=judged.outcome in SERVED,
        outcome=judged.outcome.value,
        plan=plan_status(decision.plan, gpu_types, resolved.model_source),
        candidate=plan_status(decision.candidate, gpu_types, resolved.model_source)
        if decision.candidate is not None
        else None,
        candidate_since_s=decision.candidate_since_s,
        target={name: wanted[variant] for name, variant in variants.items()},
        variants=variants,
    )


def _judged(decision: Decision) -> ServicePlan:
    """The plan that tells whether the service can be served:
    the one that is held back, where one is for want of a feasible one.
    """
    if decision.choice is Choice.HOLD and decision.candidate is not None:
        return decision.candidate
    return decision.plan


def _deployments(
    resolved: ResolvedService, target: tuple[tuple[Variant, int], ...], observation: Observation
) -> dict[str, Variant]:
    """The names of the Deployments that run these variants, at the revision of today's pod template."""
    names = {}
    for variant, _ in target:
        pool = observation.around.pools[variant.pool]
        manifest = deployment(
            resolved.service, pool, resolved.model_profile, parallelism=variant.parallelism, replicas=0
        )
        name: str = manifest["metadata"]["name"]
        names[name] = variant
    return names


__all__ = ["InvalidFleetError", "Planner", "Round", "UnsoundPlanError"]
