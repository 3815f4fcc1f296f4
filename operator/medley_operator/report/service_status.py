"""The status of an LLMService out of what is known of it (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medley_operator.api.llmservice_status import LLMServiceStatus, Transition
from medley_operator.observe.views import PodView, ServiceView
from medley_operator.report.conditions import Finding, conditions, finding, timestamp
from medley_operator.transition import Phase, Replica, ReplicaState
from medley_operator.verdict import PAUSED, RECOMMEND, Aim, Verdict
from medley_planner.policy import Choice
from medley_planner.result import Outcome


@dataclass(frozen=True)
class Facts:
    """What a status is made of.

    Args:
        view: The service.
        verdict: What the last planning round found; None before the first.
        aim: Where the replicas are to go.
        phase: How far they are.
        replicas: The replicas.
        pods: Their pods.
        endpoint: The service's URL.
        trouble: What keeps actions from being carried out; empty where nothing does.
        now_s: The time.
    """

    view: ServiceView
    verdict: Verdict | None
    aim: Aim
    phase: Phase
    replicas: Sequence[Replica]
    pods: Sequence[PodView]
    endpoint: str
    trouble: str
    now_s: float

    @property
    def mode(self) -> str:
        """The service's mode."""
        return self.view.llm.spec.mode if self.view.llm is not None else ""

    @property
    def desired(self) -> int:
        """Replicas that are to be there."""
        return sum(self.aim.target.values())

    def count(self, *states: ReplicaState) -> int:
        """Replicas in these states."""
        return sum(replica.state in states for replica in self.replicas)


def service_status(facts: Facts) -> LLMServiceStatus:
    """The status to be written.

    The same facts give the same status, so that nothing is written when nothing changed.
    """
    old = facts.view.status
    transition = _transition(facts)
    changes: dict[str, object] = {
        "conditions": conditions(
            [_ready(facts), _planned(facts), _capacity_available(facts), _progressing(facts, transition)],
            old.conditions,
            generation=facts.verdict.generation if facts.verdict is not None else old.observed_generation or 0,
            now_s=facts.now_s,
        ),
        "replicas": _replicas(facts),
        "transition": transition,
        "endpoint": facts.endpoint or old.endpoint,
    }
    if facts.verdict is not None:
        changes |= _planned_fields(facts, facts.verdict)
    made = LLMServiceStatus.model_validate(
        {**{name: getattr(old, name) for name in LLMServiceStatus.model_fields}, **changes}
    )
    return made.model_copy(update=_ended(facts))


def _planned_fields(facts: Facts, verdict: Verdict) -> dict[str, object]:
    """What only a planning round changes: plan, recommendation, candidate."""
    fields: dict[str, object] = {"observed_generation": verdict.generation, "recommended": None, "candidate": None}
    if verdict.problems or verdict.choice is None:
        return fields
    if facts.mode == RECOMMEND:
        fields["recommended"] = verdict.candidate or verdict.plan
        return fields
    if verdict.choice is not Choice.HOLD:
        fields |= {"plan": verdict.plan, "planned_generation": verdict.generation}
    elif facts.view.status.plan is not None:
        fields |= {"plan": verdict.plan, "recommended": verdict.candidate}
    else:
        fields["recommended"] = verdict.candidate or verdict.plan
    if verdict.candidate is not None and verdict.candidate_since_s is not None:
        fields["candidate"] = {
            "mix": verdict.candidate.mix,
            "costPerHour": verdict.candidate.cost_per_hour,
            "since": timestamp(verdict.candidate_since_s),
        }
    return fields


def _replicas(facts: Facts) -> dict[str, object]:
    serving = facts.count(ReplicaState.SERVING)
    ready = sum(pod.containers_ready and not pod.deleting for pod in facts.pods)
    return {
        "summary": f"{serving}/{facts.desired}",
        "desired": facts.desired,
        "ready": ready,
        "serving": serving,
        "draining": facts.count(ReplicaState.DRAINING),
    }


def _transition(facts: Facts) -> Transition | None:
    """The change under way, with its phase brought up to date; None once it is done."""
    under_way = facts.aim.transition
    if under_way is None or not facts.aim.acts:
        return under_way
    if facts.phase is Phase.DONE:
        return None
    if under_way.phase == facts.phase.value:
        return under_way
    return under_way.model_copy(update={"phase": facts.phase.value, "phase_started_at": timestamp(facts.now_s)})


def _ended(facts: Facts) -> dict[str, object]:
    """`last_transition`, where a change ended with these facts."""
    ended, outcome = facts.aim.superseded, "Superseded"
    if facts.aim.acts and facts.phase is Phase.DONE and facts.aim.transition is not None:
        ended, outcome = facts.aim.transition, "Completed"
    if ended is None:
        return {}
    last = {
        "id": ended.id,
        "reason": ended.reason,
        "outcome": outcome,
        "message": ended.message,
        "startedAt": ended.started_at,
        "endedAt": timestamp(facts.now_s),
    }
    return {"last_transition": LLMServiceStatus.model_validate({"lastTransition": last}).last_transition}


def _ready(facts: Facts) -> Finding:
    serving = facts.count(ReplicaState.SERVING)
    if not facts.desired:
        return Finding("Ready", False, "NoReplicas", "no replicas are asked for")
    if serving >= facts.desired:
        return Finding("Ready", True, "AllReplicasServing", f"{serving} replicas serve")
    waits = _what_waits(facts.pods, facts.replicas)
    message = f"{serving} of {facts.desired} replicas serve{waits}"
    return Finding("Ready", False, "SomeReplicasServing" if serving else "NoReplicaServing", message)


def _what_waits(pods: Iterable[PodView], replicas: Iterable[Replica]) -> str:
    """What the replicas that do not serve wait for, as the rest of a sentence."""
    words = {ReplicaState.PENDING: "pending", ReplicaState.LOADING: "loading", ReplicaState.LOADED: "being probed"}
    counts = Counter(words[replica.state] for replica in replicas if replica.state in words)
    troubles = sorted({f"{pod.name}: {pod.trouble}" for pod in pods if pod.trouble and not pod.deleting})
    parts = [f"{count} {word}" for word, count in sorted(counts.items())] + troubles[:3]
    return "; " + ", ".join(parts) if parts else ""


def _planned(facts: Facts) -> Finding:
    verdict, view = facts.verdict, facts.view
    if verdict is None:
        return finding("Planned", view.status.conditions) or Finding("Planned", None, "NotPlannedYet", "")
    if verdict.problems:
        return Finding("Planned", False, verdict.problems[0].reason, "; ".join(str(item) for item in verdict.problems))
    if facts.mode == PAUSED:
        return Finding("Planned", None, "Paused", "spec.mode is Paused: neither planned nor acted on")
    if not verdict.feasible:
        return Finding("Planned", False, verdict.outcome or verdict.reason, verdict.message)
    if facts.mode == RECOMMEND:
        return Finding("Planned", True, "RecommendOnly", verdict.message)
    reason = verdict.reason if verdict.choice is Choice.WAIT else Outcome.PLANNED.value
    return Finding("Planned", True, reason, verdict.message)


def _capacity_available(facts: Facts) -> Finding:
    kind = "CapacityAvailable"
    if facts.verdict is not None and facts.verdict.outcome == Outcome.STOCK_SHORT.value:
        return Finding(kind, False, Outcome.STOCK_SHORT.value, facts.verdict.message)
    waiting = [pod for pod in facts.pods if pod.unschedulable and not pod.scheduled and not pod.deleting]
    if waiting:
        first = min(waiting, key=lambda pod: pod.name)
        message = f"{len(waiting)} replicas find no room; the scheduler says: {first.unschedulable}"
        return Finding(kind, False, "Unschedulable", message)
    return Finding(kind, True, "Available", "every replica that is asked for has its GPUs, or nothing says otherwise")


def _progressing(facts: Facts, transition: Transition | None) -> Finding:
    if facts.trouble:
        return Finding("Progressing", False, "ActionRefused", facts.trouble)
    if transition is None:
        return Finding("Progressing", False, "Settled", "replicas are as planned")
    return Finding("Progressing", True, transition.phase, f"{transition.reason}: {transition.message}")
