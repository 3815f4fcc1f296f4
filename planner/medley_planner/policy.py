"""From plans to decisions: which services change their mix now, which wait, and why the others keep what they have."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from medley_planner.fleet import FleetState, PlanOptions, Variant
from medley_planner.memo import Memo
from medley_planner.plan import DEFAULT_OPTIONS
from medley_planner.result import FleetPlan, ServicePlan


class Choice(enum.Enum):
    """What to do with a service now."""

    KEEP = "Keep"
    """What runs is right: bring nothing about."""
    CHANGE = "Change"
    """Bring about `Decision.target`."""
    WAIT = "Wait"
    """A better mix exists, but not yet for long enough: decide again at `Decision.wake_at_s`."""
    HOLD = "Hold"
    """No plan can be carried out: touch nothing, report why."""


@dataclass(frozen=True)
class Standing:
    """What is remembered of a service between decisions; all of it lives in the service's status.

    Args:
        min_savings_percent: A change for price alone must save at least so much of what runs costs.
        stabilization_s: … and must have been on offer for so long.
        planned: A plan of this service was carried out before; False for a new service.
        spec_changed: Its specification differs from the one that was planned for.
        candidate_since_s: Since when a mix that saves enough has been on offer without interruption; None where there is none.
        acts: Whether changes may be carried out; False only recommends.
    """

    min_savings_percent: float = 5.0
    stabilization_s: float = 60.0
    planned: bool = True
    spec_changed: bool = False
    candidate_since_s: float | None = None
    acts: bool = True


@dataclass(frozen=True)
class Decision:
    """What to do with one service, and why.

    Args:
        service: Its name.
        choice: What to do.
        reason: One searchable word: `FirstPlan`, `SpecChanged`, `StockLost`, `DemandNotServed`, `BoundsViolated`, `CostCapExceeded`,
            `CheaperMix`, `SavingTooSmall`, `Stabilizing`, `NoRoomToSurge`, `RecommendOnly`, `Infeasible`, `Pinned`, `Unchanged`.
        message: One sentence for people, with figures.
        target: Replicas by variant that should be asked for from now on, sorted, none zero. What runs, unless `choice` is CHANGE.
        plan: The plan of `target`: what to report as the service's plan.
        candidate: The plan that would be carried out if nothing held it back, where it differs from `plan`.
        candidate_since_s: To be remembered in `Standing` for the next decision.
        wake_at_s: When to decide again at the latest, though nothing else happens; None is never.
    """

    service: str
    choice: Choice
    reason: str
    message: str
    target: tuple[tuple[Variant, int], ...]
    plan: ServicePlan
    candidate: ServicePlan | None = None
    candidate_since_s: float | None = None
    wake_at_s: float | None = None


@dataclass(frozen=True)
class FleetDecision:
    """The decisions for all services of a fleet, sorted by service, and the fleet's plan with the keepers kept."""

    plan: FleetPlan
    decisions: tuple[Decision, ...]

    def of(self, service: str) -> Decision:
        """The decision for this service; KeyError where there is none."""
        for decision in self.decisions:
            if decision.service == service:
                return decision
        raise KeyError(service)


def plan_and_decide(
    state: FleetState,
    standings: Mapping[str, Standing],
    *,
    now_s: float,
    options: PlanOptions = DEFAULT_OPTIONS,
    memo: Memo | None = None,
) -> FleetDecision:
    """Plan the fleet, decide which services change now, and plan again with the others kept as they are.

    `Service.running` is the mix asked for now (the target of a transition that is under way).

    Args:
        state: The fleet.
        standings: By service name; a service without one is new.
        now_s: The time, on the clock of `candidate_since_s`.
        options: How to plan.
        memo: What earlier calls worked out.

    Raises:
        InvalidFleetError: A value of the fleet makes no sense; names the field.
    """
    raise NotImplementedError
