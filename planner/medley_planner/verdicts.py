"""The rules by which a service changes its mix, waits or keeps what it has, one service at a time.

A change is due at once where what runs is no longer right. A change for price alone has to save enough, for long
enough.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from medley_planner.checking.check import DECIDED, Violation
from medley_planner.fleet import Service, Variant
from medley_planner.result import Outcome, ServicePlan
from medley_planner.wording import mix_text, money


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
        candidate_since_s: Since when a mix that saves enough has been on offer without interruption; None where there
            is none.
        acts: Whether changes may be carried out; False only recommends.
    """

    min_savings_percent: float = 5.0
    stabilization_s: float = 60.0
    planned: bool = True
    spec_changed: bool = False
    candidate_since_s: float | None = None
    acts: bool = True


@dataclass(frozen=True)
class Case:
    """One service to decide about.

    Args:
        service: The service.
        standing: What is remembered of it.
        now: The plan that keeps what runs.
        candidate: The plan that would be best.
        wrong: What is wrong with what runs.
    """

    service: Service
    standing: Standing
    now: ServicePlan
    candidate: ServicePlan
    wrong: tuple[Violation, ...]

    @property
    def saved_usd_per_hour(self) -> float:
        """What the candidate costs less, what interruptions are expected to cost included."""
        return self.now.expected_usd_per_hour - self.candidate.expected_usd_per_hour

    @property
    def saved_percent(self) -> float:
        """The same as a share of what runs costs."""
        paid = self.now.expected_usd_per_hour
        return 100.0 * self.saved_usd_per_hour / paid if paid > 0 else 0.0


@dataclass(frozen=True)
class Verdict:
    """A decision without its plans."""

    choice: Choice
    reason: str
    message: str
    candidate_since_s: float | None = None
    wake_at_s: float | None = None


_WRONG = {
    "stock": "StockLost",
    "allowed": "PoolNotAllowed",
    "cost_cap": "CostCapExceeded",
    "fleet_cost_cap": "CostCapExceeded",
    "demand": "DemandNotServed",
    "survivable": "AvailabilityLost",
    "spot_share": "AvailabilityLost",
    "pool_share": "AvailabilityLost",
    "replicas_min": "BoundsViolated",
    "replicas_max": "BoundsViolated",
    "pool_replicas_min": "BoundsViolated",
    "pool_replicas_max": "BoundsViolated",
}
"""What is wrong with what runs, worst first, and the word for it."""


def first_verdict(case: Case, now_s: float) -> Verdict:
    """The verdict of the first rule that applies to a service.

    Args:
        case: The service.
        now_s: The time, on the clock of `candidate_since_s`.
    """
    for rule in (_pinned, _no_plan, _nothing_better, _hands_off, _shrinking, _first, _wrong_now, _new_spec):
        found = rule(case)
        if found is not None:
            return found
    return _for_price_alone(case, now_s)


def _pinned(case: Case) -> Verdict | None:
    return Verdict(Choice.KEEP, "Pinned", f"Keeps {mix_text(case.now.mix)} as asked") if case.service.pinned else None


def _no_plan(case: Case) -> Verdict | None:
    return _infeasible(case.candidate) if case.candidate.outcome not in DECIDED else None


def _nothing_better(case: Case) -> Verdict | None:
    if not same_mix(case.now, case.candidate):
        return None
    if case.candidate.outcome is not Outcome.PLANNED:
        return Verdict(Choice.KEEP, case.candidate.outcome.value, case.candidate.reason)
    return Verdict(Choice.KEEP, "Unchanged", f"{mix_text(case.now.mix)} is the best mix")


def _hands_off(case: Case) -> Verdict | None:
    if case.standing.acts:
        return None
    return Verdict(Choice.HOLD, "RecommendOnly", f"{from_to(case)} is recommended, and nothing is touched")


def _shrinking(case: Case) -> Verdict | None:
    """All that could be changed is to stop asking for GPUs that are gone: that frees nothing and helps nobody."""
    running = case.service.running
    fewer = all(entry.replicas <= running.get(entry.variant, 0) for entry in case.candidate.mix)
    if not (case.now.mix and case.candidate.outcome is Outcome.STOCK_SHORT and fewer):
        return None
    message = f"{case.candidate.reason}; what was asked for is kept, and serves again when the stock is back"
    return Verdict(Choice.KEEP, "StockShort", message)


def _first(case: Case) -> Verdict | None:
    if case.standing.planned and case.now.mix:
        return None
    return Verdict(Choice.CHANGE, "FirstPlan", case.candidate.reason)


def _wrong_now(case: Case) -> Verdict | None:
    """The worst of what is wrong with what runs, as far as the candidate is better in it."""
    for violation in sorted(case.wrong, key=lambda each: list(_WRONG).index(each.constraint)):
        if violation.constraint != "demand" or case.candidate.served_share > case.now.served_share:
            message = f"{from_to(case)}, because {violation.detail}"
            return Verdict(Choice.CHANGE, _WRONG[violation.constraint], message)
    return None


def _new_spec(case: Case) -> Verdict | None:
    if not case.standing.spec_changed:
        return None
    return Verdict(Choice.CHANGE, "SpecChanged", f"{from_to(case)}, because the specification changed")


def _infeasible(candidate: ServicePlan) -> Verdict:
    reason = "SolverTimeLimit" if candidate.outcome is Outcome.TIME_LIMIT else "Infeasible"
    return Verdict(Choice.HOLD, reason, f"{candidate.reason}; {mix_text(candidate.mix)} is kept")


def _for_price_alone(case: Case, now_s: float) -> Verdict:
    standing = case.standing
    saving = f"{from_to(case)} would save {money(case.saved_usd_per_hour)} ({case.saved_percent:.1f} %)"
    if case.candidate.served_share < case.now.served_share:
        return Verdict(
            Choice.KEEP, "Unchanged", f"{mix_text(case.now.mix)} serves more than any mix within stock would"
        )
    if case.saved_usd_per_hour <= 0 or case.saved_percent < standing.min_savings_percent:
        message = f"{saving}, less than the {standing.min_savings_percent:g} % that a change must save"
        return Verdict(Choice.KEEP, "SavingTooSmall", message)
    since = now_s if standing.candidate_since_s is None else min(standing.candidate_since_s, now_s)
    due_s = since + standing.stabilization_s
    if now_s < due_s:
        message = f"{saving}; it must last {math.ceil(due_s - now_s)} s longer"
        return Verdict(Choice.WAIT, "Stabilizing", message, since, due_s)
    return Verdict(Choice.CHANGE, "CheaperMix", f"{saving}, for {now_s - since:.0f} s now", since)


def given_up(case: Case, final: ServicePlan, verdict: Verdict) -> Verdict | None:
    """Why a change is not carried out after all, now that the keepers hold their stock; None where it is."""
    if final.outcome not in DECIDED:
        return _infeasible(final)
    if same_mix(case.now, final):
        return Verdict(Choice.KEEP, "Unchanged", f"{mix_text(case.now.mix)} is the best mix that stock allows")
    saved = case.now.expected_usd_per_hour - final.expected_usd_per_hour
    enough = case.now.expected_usd_per_hour * case.standing.min_savings_percent / 100.0
    if verdict.reason == "CheaperMix" and (saved <= 0 or saved < enough):
        message = f"{mix_text(final.mix)} is the best mix that stock allows, and saves only {money(saved)}"
        return Verdict(Choice.KEEP, "SavingTooSmall", message)
    return None


def may_make_room(case: Case, verdict: Verdict) -> bool:
    """Whether a keeper has another mix that serves no less."""
    return (
        verdict.reason in ("SavingTooSmall", "Stabilizing", "NoRoomToSurge")
        and case.candidate.outcome in DECIDED
        and case.candidate.served_share >= case.now.served_share
    )


def same_mix(one: ServicePlan, other: ServicePlan) -> bool:
    """Whether two plans ask for the same replicas."""
    return counts(one) == counts(other)


def counts(plan: ServicePlan) -> tuple[tuple[Variant, int], ...]:
    """Replicas by variant, sorted."""
    return tuple((entry.variant, entry.replicas) for entry in plan.mix)


def from_to(case: Case) -> str:
    """`2×l4 → 1×a100`."""
    return f"{mix_text(case.now.mix)} → {mix_text(case.candidate.mix)}"
