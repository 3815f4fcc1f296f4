"""The life of a scaling operation: a table of phases and legal moves. Pure; the picture is in
docs/engine/operations.md.

Before ``switching`` nothing has changed for clients, and every failure or abort leads back to the old configuration.
From ``switching`` on the new one is in force, and every failure is got over forwards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

Phase = Literal[
    "accepted", "planning", "preparing", "attaching", "warming", "switching", "draining", "releasing", "succeeded",
    "aborting", "aborted", "failed",
]  # fmt: skip

FORWARD: tuple[Phase, ...] = (
    "accepted", "planning", "preparing", "attaching", "warming", "switching", "draining", "releasing", "succeeded",
)  # fmt: skip
BEFORE_COMMIT: frozenset[Phase] = frozenset(FORWARD[: FORWARD.index("switching")])
TERMINAL: frozenset[Phase] = frozenset({"succeeded", "aborted", "failed"})

MOVES: Mapping[Phase, frozenset[Phase]] = {
    "accepted": frozenset({"planning", "aborting", "failed"}),
    "planning": frozenset({"preparing", "aborting", "failed"}),
    "preparing": frozenset({"attaching", "aborting", "failed"}),
    "attaching": frozenset({"warming", "aborting", "failed"}),
    "warming": frozenset({"switching", "aborting", "failed"}),
    "switching": frozenset({"draining"}),
    "draining": frozenset({"releasing"}),
    "releasing": frozenset({"succeeded"}),
    "succeeded": frozenset(),
    "aborting": frozenset({"aborted"}),
    "aborted": frozenset(),
    "failed": frozenset(),
}

PERCENT: Mapping[Phase, int] = {
    "accepted": 0, "planning": 2, "preparing": 5, "attaching": 60, "warming": 75, "switching": 85, "draining": 90,
    "releasing": 97, "succeeded": 100, "aborting": 0, "aborted": 0, "failed": 0,
}  # fmt: skip


class IllegalMoveError(RuntimeError):
    """The table does not allow this move."""


class TooLateError(RuntimeError):
    """The operation is past its commit point and cannot be aborted."""


class OperationConflictError(RuntimeError):
    """The operation id is known with other wishes, or another operation runs."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One change of configuration. ``since`` holds when each phase began, in seconds of the coordinator's monotonic
    clock.
    """

    id: str
    target: int
    rebalance: bool
    phase: Phase = "accepted"
    config: str = ""
    instance: str = ""
    old_instance: str = ""
    message: str = ""
    since: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def committed(self) -> bool:
        """Whether the new configuration is in force."""
        return self.phase in FORWARD and self.phase not in BEFORE_COMMIT

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.phase in TERMINAL

    def seconds(self) -> dict[str, float]:
        """Time spent in each phase that has ended."""
        order = list(self.since.items())
        return {name: round(end - start, 6) for (name, start), (_, end) in pairwise(order)}

    def report(self, prepared_percent: float = 0.0) -> dict[str, Any]:
        """As the API shows it. ``prepared_percent`` is the manager's own progress while pages are filled."""
        percent: float = PERCENT[self.phase]
        if self.phase == "preparing":
            percent += (PERCENT["attaching"] - percent) * prepared_percent / 100
        return {
            "id": self.id,
            "dataParallel": self.target,
            "rebalance": self.rebalance,
            "phase": self.phase,
            "percent": round(percent, 1),
            "committed": self.committed,
            "finished": self.finished,
            "result": self.phase if self.finished else None,
            "message": self.message,
            "seconds": self.seconds(),
            "details": dict(self.details),
        }


def begin(operation_id: str, target: int, rebalance: bool, now: float) -> Operation:
    """A new operation."""
    return Operation(operation_id, target, rebalance, since={"accepted": now})


def move(operation: Operation, phase: Phase, now: float, message: str = "", **changes: Any) -> Operation:
    """Go to a phase.

    Raises:
        IllegalMoveError: the table does not allow it.
    """
    if phase not in MOVES[operation.phase]:
        raise IllegalMoveError(f"operation {operation.id}: {operation.phase} → {phase}")
    return replace(
        operation, phase=phase, message=message or operation.message, since={**operation.since, phase: now}, **changes
    )


def with_details(operation: Operation, **details: Any) -> Operation:
    """Add what was learned on the way."""
    return replace(operation, details={**operation.details, **details})


def check_abort(operation: Operation) -> bool:
    """Whether an abort has anything left to do (False: it has ended without taking effect already).

    Raises:
        TooLateError: it is past its commit point.
    """
    if operation.committed:
        raise TooLateError(f"operation {operation.id} is in phase {operation.phase}: the new configuration is in force")
    return not operation.finished


def same_wish(operation: Operation, target: int, rebalance: bool) -> bool:
    """Whether a repeated request asks for what this operation is about."""
    return (operation.target, operation.rebalance) == (target, rebalance)


def default_id(target: int, rebalance: bool, generation: int) -> str:
    """An id for a request without one: the same wish on the same configuration has the same id, so repeating it is
    harmless.
    """
    text = json.dumps([target, rebalance, generation])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def dump(operation: Operation) -> dict[str, Any]:
    """As JSON."""
    return {name: getattr(operation, name) for name in Operation.__slots__}


def parse(raw: Mapping[str, Any]) -> Operation:
    """From :func:`dump`."""
    return Operation(**raw)
