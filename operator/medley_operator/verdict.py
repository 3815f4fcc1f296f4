"""What a planning round found out about one service, and what it means for the service's Deployments (pure)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from medley_operator.api.llmservice_status import LLMServiceStatus, PlanStatus, Transition
from medley_operator.api.problems import Problem
from medley_operator.observe.replicas import mix_of
from medley_operator.observe.views import DeploymentView, ServiceView
from medley_operator.report.conditions import timestamp
from medley_planner.fleet import Variant
from medley_planner.policy import Choice

AUTO, RECOMMEND, PAUSED = "Auto", "Recommend", "Paused"


@dataclass(frozen=True)
class Verdict:
    """What is to become of one service, until the next round.

    Args:
        generation: The generation of the specification that was judged.
        problems: What is wrong with it; then nothing was decided.
        choice: What to do; None where nothing was decided.
        reason: Why, as one word.
        message: Why, as a sentence.
        feasible: Whether the service's demand can be served as it asks.
        outcome: How planning the mix that the service should have ended.
        plan: The plan of the mix to have from now on.
        candidate: A plan that is not carried out, or not yet.
        candidate_since_s: Since when a better mix is on offer.
        target: Replicas by Deployment name.
        variants: The variant of every Deployment in `target`.
    """

    generation: int
    problems: tuple[Problem, ...] = ()
    choice: Choice | None = None
    reason: str = ""
    message: str = ""
    feasible: bool = False
    outcome: str = ""
    plan: PlanStatus | None = None
    candidate: PlanStatus | None = None
    candidate_since_s: float | None = None
    target: Mapping[str, int] = field(default_factory=dict)
    variants: Mapping[str, Variant] = field(default_factory=dict)


@dataclass(frozen=True)
class Aim:
    """Where the replicas of a service are to go.

    Args:
        target: Replicas by Deployment name.
        acts: Whether replicas may be added or removed; else only those that are there are looked after.
        transition: The change under way; None where replicas are as they should be.
        superseded: The change that a new one takes the place of.
    """

    target: Mapping[str, int]
    acts: bool
    transition: Transition | None
    superseded: Transition | None = None

    def begins(self, status: LLMServiceStatus) -> bool:
        """Whether the transition is a new one, which has to be written down before anything is done."""
        return self.transition is not None and (status.transition is None or status.transition.id != self.transition.id)


def running_mix(view: ServiceView, deployments: Iterable[DeploymentView]) -> dict[Variant, int]:
    """The mix that was asked for last: what the status says, or, for want of that, what the Deployments say."""
    if view.status.plan is not None and view.status.plan.entries:
        entries = view.status.plan.entries
        return {entry.variant: entry.replicas for entry in entries if entry.replicas}
    return mix_of(deployments)


def aim(view: ServiceView, verdict: Verdict | None, deployments: Iterable[DeploymentView], *, now_s: float) -> Aim:
    """Where to go: where the verdict says, or on with what was begun, or nowhere.

    Without a verdict (just started, a broken specification, an infeasible plan) a change that was begun is still
    completed: every replica of the old mix may be gone already.
    """
    live = {item.name: item.replicas for item in deployments if item.replicas and not item.deleting}
    under_way = view.status.transition
    begun = dict(under_way.to) if under_way is not None else live
    mode = view.llm.spec.mode if view.llm is not None else AUTO
    if mode != AUTO:
        return Aim(live, acts=False, transition=under_way)
    if verdict is None or verdict.problems or verdict.choice in {None, Choice.HOLD}:
        return Aim(begun, acts=True, transition=under_way)
    target = dict(sorted(verdict.target.items()))
    if target == begun:
        return Aim(target, acts=True, transition=under_way)
    reason, message = _why(verdict)
    started_at = timestamp(now_s)
    transition = Transition.model_validate(
        {
            "id": _identity(view.uid, target, started_at),
            "phase": "Adding",
            "reason": reason,
            "message": message,
            "startedAt": started_at,
            "phaseStartedAt": started_at,
            "from": dict(sorted(live.items())),
            "to": target,
        }
    )
    return Aim(target, acts=True, transition=transition, superseded=under_way)


def _why(verdict: Verdict) -> tuple[str, str]:
    """Why a transition begins, where the mix changes and where it does not."""
    if verdict.choice is Choice.CHANGE:
        return verdict.reason, verdict.message
    return "ReplicasDiffer", (
        "the mix stays as it is, but its Deployments are not as they should be: "
        "the pod template changed, or somebody scaled them"
    )


def _identity(uid: str, target: Mapping[str, int], started_at: str) -> str:
    """A name for a transition: short, and the same for the same change begun at the same second."""
    text = f"{uid} {sorted(target.items())} {started_at}"
    return hashlib.sha256(text.encode()).hexdigest()[:10]
