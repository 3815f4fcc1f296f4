"""Conditions by the Kubernetes conventions: built purely, with the time of the last change of `status` carried over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from medley_operator.api.conditions import Condition

MAX_MESSAGE_CHARACTERS = 4096


@dataclass(frozen=True)
class Finding:
    """A condition without its times.

    `holds` None is Unknown.
    """

    type: str
    holds: bool | None
    reason: str
    message: str


def timestamp(moment_s: float) -> str:
    """Seconds since the epoch as a Kubernetes timestamp."""
    return datetime.fromtimestamp(int(moment_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def conditions(
    findings: Iterable[Finding], former: Iterable[Condition], *, generation: int, now_s: float
) -> tuple[Condition, ...]:
    """The findings as conditions: those whose `status` did not change keep the time of their last transition."""
    before = {condition.type: condition for condition in former}
    made = []
    for finding in findings:
        status = {True: "True", False: "False", None: "Unknown"}[finding.holds]
        old = before.get(finding.type)
        since = old.last_transition_time if old is not None and old.status == status else timestamp(now_s)
        made.append(
            Condition.model_validate(
                {
                    "type": finding.type,
                    "status": status,
                    "reason": finding.reason,
                    "message": _clipped(finding.message),
                    "lastTransitionTime": since,
                    "observedGeneration": generation,
                }
            )
        )
    return tuple(made)


def finding(kind: str, former: Iterable[Condition]) -> Finding | None:
    """A condition of before as a finding, to be kept as it is; None where there was none."""
    for condition in former:
        if condition.type == kind:
            holds = {"True": True, "False": False}.get(condition.status)
            return Finding(kind, holds, condition.reason, condition.message)
    return None


def _clipped(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_CHARACTERS else message[: MAX_MESSAGE_CHARACTERS - 1] + "…"
