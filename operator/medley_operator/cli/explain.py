"""`medley explain`: what a running service's status says, in the tables of `medley plan`, with what is going on."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from medley_operator.api.conditions import Condition
from medley_operator.api.llmservice import LLMService
from medley_operator.api.llmservice_status import LastTransition, LLMServiceStatus, Transition
from medley_operator.api.problems import hint
from medley_operator.cli.cluster import Cluster, ClusterError
from medley_operator.cli.columns import money, rows_table
from medley_operator.cli.tables import plan_tables, service_headline

KINDS = frozenset({"llm", "llmservice", "llmservices", "llmservices.medley.dev"})
UNPLANNED = frozenset({"Unknown", "False"})


class TargetError(ValueError):
    """What was asked for is no LLMService; the message is for people."""


def service_name(target: str) -> str:
    """The name in `chat`, `llm/chat` or `llmservice/chat`.

    Raises:
        TargetError: It is of another kind, or has no name.
    """
    kind, slash, name = target.rpartition("/")
    if slash and kind not in KINDS:
        raise TargetError(f"{target!r}: only LLMServices can be explained, as llm/NAME or NAME")
    if not name:
        raise TargetError(f"{target!r}: a name is missing")
    return name


def is_planned(service: LLMService) -> bool:
    """Whether the service has a plan that serves it: condition Planned is True, and about the present spec."""
    status = service.status or LLMServiceStatus()
    planned = next((condition for condition in status.conditions if condition.type == "Planned"), None)
    return planned is not None and planned.status == "True" and not _is_behind(service)


def explanation(service: LLMService) -> dict[str, Any]:
    """The explanation for programs: what `-o json` and `-o yaml` print."""
    status = service.status or LLMServiceStatus()
    return {
        "namespace": service.namespace,
        "name": service.name,
        "model": service.spec.model.name,
        "rate": service.spec.workload.rate,
        "mode": service.spec.mode,
        "planned": is_planned(service),
        "upToDate": not _is_behind(service),
        "status": status.to_manifest(),
    }


def explanation_tables(service: LLMService) -> RenderableType:
    """The explanation for people."""
    status = service.status
    parts: list[RenderableType] = [service_headline(service)]
    if status is None:
        parts.append(Text("The operator has not looked at it yet: is it running?", style="yellow"))
        return Group(*parts)
    if _is_behind(service):
        parts.append(Text("The operator has not looked at the latest change of the spec yet.", style="yellow"))
    if service.spec.mode != "Auto":
        parts.append(Text(f"Mode {service.spec.mode}: the operator changes nothing.", style="yellow"))
    parts.append(_now(status))
    if status.transition is not None:
        parts.append(_transition(status.transition))
    if status.plan is not None:
        parts.append(Padding(plan_tables(status.plan), (1, 0, 1, 2), expand=False))
    if status.recommended is not None:
        parts.append(Text("Not acted on:", style="bold"))
        parts.append(Padding(plan_tables(status.recommended), (0, 0, 1, 2), expand=False))
    if status.candidate is not None:
        candidate = status.candidate
        parts.append(
            Text(f"Cheaper since {candidate.since}: {candidate.mix} at {money(candidate.cost_per_hour)} $/h, waiting.")
        )
    if status.last_transition is not None:
        parts.append(_last_transition(status.last_transition))
    parts += [Text(), _conditions(status.conditions)]
    return Group(*parts)


def fetch_service(cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
    """The LLMService as JSON.

    Raises:
        ClusterError: It cannot be had; where there is none of this name, the message names those that look alike.
    """
    try:
        return cluster.llm_service(namespace, name)
    except ClusterError as error:
        if error.code != 404:
            raise
        names = cluster.llm_service_names(namespace)
        message = f"namespace {namespace!r} has no LLMService {name!r}{hint(name, names)}"
        raise ClusterError(message, 404) from None


def _is_behind(service: LLMService) -> bool:
    status = service.status
    return status is None or status.observed_generation != service.metadata.generation


def _now(status: LLMServiceStatus) -> Text:
    counts = status.replicas
    made = Text()
    if status.plan is not None:
        made.append(f"{status.plan.mix}", style="bold").append(f"  {money(status.plan.cost_per_hour)} $/h")
    if counts is not None:
        made.append(f"  {counts.serving} of {counts.desired} serving, {counts.ready} ready, {counts.draining} draining")
    if status.endpoint:
        made.append(f"  {status.endpoint}", style="dim")
    return made


def _transition(transition: Transition) -> Group:
    names = sorted({*transition.from_, *transition.to})
    rows = [(name, str(transition.from_.get(name, 0)), str(transition.to.get(name, 0))) for name in names]
    head = Text.assemble(
        (f"{transition.phase}", "bold cyan"),
        f"  {transition.reason}: {transition.message}",
        (f"  since {transition.started_at}", "dim"),
    )
    return Group(head, Padding(rows_table(("deployment", "from", "to"), rows), (0, 0, 1, 2), expand=False))


def _last_transition(last: LastTransition) -> Text:
    return Text.assemble(("last change  ", "dim"), f"{last.outcome} {last.ended_at}  {last.reason}: {last.message}")


def _conditions(conditions: tuple[Condition, ...]) -> RenderableType:
    rows = [
        (condition.type, condition.status, condition.reason, condition.last_transition_time, condition.message)
        for condition in conditions
    ]
    return rows_table(("condition", "status", "reason", "since", "message"), rows)
