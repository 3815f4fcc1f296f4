"""Where a plan changes as one figure moves: the price of a pool, or the rate of a service.

Let the figure move from where it is to as far as one looks. If the plan there is the same, it is the same all the way:

- *price*: the cost of a mix is linear in a pool's price, so a mix that is cheapest at two prices is cheapest between;
- *rate*: a mix that serves a rate serves every lower one, and less never costs more, so a mix that is cheapest at two
  rates is cheapest between.

Otherwise the interval holds a turn, and is narrowed with few plans. Two mixes whose costs are lines meet where the
lines cross, unless a third mix is cheaper there, which the plan at that point then shows (the method of Eisner and
Severance, J. ACM 23(4), 1976). Likewise, a mix ends at the rate at which its busiest replica is full. So the plans on
both sides of such a guess are made; where that settles nothing, the interval is halved (geometrically). Caps, bounds of
all kinds, and what runs only make the guesses worse, not the answer: the two ends of the interval are plans that were
made.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

from medley_planner.result import FleetPlan, MixEntry, Outcome, ServicePlan
from medley_planner.wording import mix_text


class Figure(enum.StrEnum):
    """What moves."""

    PRICE = "price"
    """USD per GPU and hour of a pool."""
    RATE = "rate"
    """Requests per second of a service."""


@dataclass(frozen=True)
class Change:
    """A service on both sides of a turn: its mix, or why it has none."""

    service: str
    before: str
    after: str


@dataclass(frozen=True)
class Turn:
    """Where the plan changes as one figure moves and all others stay.

    Args:
        figure: What moves.
        subject: The pool, or the service.
        now: Its value.
        upwards: Which way it moves.
        holds_to: The farthest value at which the plan was seen to be the same; `looked_to` where no change was found.
        changes_at: The nearest value at which it was seen to differ; None where no change was found.
        looked_to: How far was looked.
        changes: The services whose mixes differ there, by name.
        cost_before_usd_per_hour: Price of the whole plan at `changes_at`, of the mixes as they are now; None where they
            cannot serve that.
        cost_after_usd_per_hour: Price of the whole plan at `changes_at`, of the mixes that are best there.
        plans: How many plans were made to find out.
    """

    figure: Figure
    subject: str
    now: float
    upwards: bool
    holds_to: float
    changes_at: float | None
    looked_to: float
    changes: tuple[Change, ...] = ()
    cost_before_usd_per_hour: float | None = None
    cost_after_usd_per_hour: float | None = None
    plans: int = 0


PlanAt = Callable[[float], FleetPlan]
"""The plan with the figure at a value."""

Guess = Callable[[float, FleetPlan], float | None]
"""Where the present plan gives way to the one that was made at a value; None where there is nothing to go by."""


@dataclass(frozen=True)
class Search:
    """How a turn is looked for.

    Args:
        relative_tolerance: The turn is told to so much of its value.
        most_plans: No more plans than this are made.
    """

    relative_tolerance: float = 0.002
    most_plans: int = 16


_GUESSES_IN_VAIN = 2
"""After so many guesses that did not halve the interval, it is only halved."""


def find_turn(
    figure: Figure,
    subject: str,
    *,
    now: float,
    looked_to: float,
    present: FleetPlan,
    plan_at: PlanAt,
    guess: Guess,
    search: Search,
) -> Turn:
    """The nearest turn between `now` and `looked_to`.

    Args:
        figure: What moves.
        subject: Whose it is.
        now: Its value, above 0.
        looked_to: How far to look, above 0; lower than `now` to look downwards.
        present: The plan at `now`.
        plan_at: Makes plans at other values.
        guess: Where to look first.
        search: How hard to look.
    """
    hunt = _Hunt(present, plan_at, guess, search, same_to=now, differs_at=looked_to)
    hunt.run()
    upwards = looked_to > now
    if hunt.other is None:
        return Turn(figure, subject, now, upwards, looked_to, None, looked_to, plans=hunt.plans)
    return Turn(
        figure=figure,
        subject=subject,
        now=now,
        upwards=upwards,
        holds_to=hunt.same_to,
        changes_at=hunt.differs_at,
        looked_to=looked_to,
        changes=changes(present, hunt.other),
        cost_before_usd_per_hour=_cost_of_present(figure, subject, now, present, hunt.differs_at),
        cost_after_usd_per_hour=hunt.other.cost_usd_per_hour,
        plans=hunt.plans,
    )


def _cost_of_present(figure: Figure, subject: str, now: float, present: FleetPlan, value: float) -> float | None:
    if figure is Figure.PRICE:
        here = math.fsum(entry.cost_usd_per_hour for entry in _in_pool(present, subject))
        return present.cost_usd_per_hour + here * (value / now - 1.0)
    return present.cost_usd_per_hour if value <= now else None


def _in_pool(plan: FleetPlan, pool: str) -> list[MixEntry]:
    return [entry for service in plan.services for entry in service.mix if entry.variant.pool == pool]


@dataclass
class _Hunt:
    """The interval from `same_to` (the plan is the present one) to `differs_at` (it is another), as it is narrowed."""

    present: FleetPlan
    plan_at: PlanAt
    guess: Guess
    search: Search
    same_to: float
    differs_at: float
    other: FleetPlan | None = None
    plans: int = 0
    guesses_in_vain: int = 0

    def run(self) -> None:
        self._look(self.differs_at)
        while self.other is not None and self._goes_on():
            if self.guesses_in_vain < _GUESSES_IN_VAIN and self._look_beside_guess():
                continue
            self.guesses_in_vain += 1
            if self._goes_on():
                self._look(math.sqrt(self.same_to * self.differs_at))

    def _goes_on(self) -> bool:
        return self.plans < self.search.most_plans and not self._is_narrow()

    def _is_narrow(self) -> bool:
        return abs(self.differs_at - self.same_to) <= self.search.relative_tolerance * self.differs_at * 1.001

    def _look_beside_guess(self) -> bool:
        """Plan on the far side of the guess, then on the near side; whether the interval shrank by half at least."""
        assert self.other is not None
        where = self.guess(self.differs_at, self.other)
        if where is None or not math.isfinite(where) or where <= 0:
            return False
        width = abs(math.log(self.differs_at / self.same_to))
        step = math.copysign(self.search.relative_tolerance / 2, self.differs_at - self.same_to)
        for value in (where * (1 + step), where * (1 - step)):
            if self._is_inside(value) and self.plans < self.search.most_plans:
                self._look(value)
        return abs(math.log(self.differs_at / self.same_to)) <= width / 2

    def _is_inside(self, value: float) -> bool:
        return min(self.same_to, self.differs_at) < value < max(self.same_to, self.differs_at)

    def _look(self, value: float) -> None:
        found = self.plan_at(value)
        self.plans += 1
        if changes(self.present, found):
            self.differs_at, self.other = value, found
        else:
            self.same_to = value


def changes(before: FleetPlan, after: FleetPlan) -> tuple[Change, ...]:
    """The services whose mixes or outcomes differ, by name."""
    return tuple(
        Change(one.name, summary(one), summary(other))
        for one, other in zip(before.services, after.services, strict=True)
        if _decided(one) != _decided(other)
    )


def _decided(plan: ServicePlan) -> tuple[object, ...]:
    return plan.outcome, tuple((entry.variant, entry.replicas) for entry in plan.mix)


def summary(plan: ServicePlan) -> str:
    """A service's mix in short, with its outcome where it is not simply planned."""
    mix = mix_text(plan.mix)
    return mix if plan.outcome is Outcome.PLANNED else f"{mix} ({plan.outcome.value})"


def where_costs_meet(pool: str, now: float, present: FleetPlan) -> Guess:
    """For a pool's price: where the present mixes are expected to cost as much as the others.

    With G·p for the pool's replicas at price p, interruptions included, and R for everything else, a plan costs
    R + G·p; two plans cost the same at p = (R₂ − R₁) / (G₁ − G₂).
    """
    slope, rest = _line(pool, now, present)

    def guess(value: float, other: FleetPlan) -> float | None:
        other_slope, other_rest = _line(pool, value, other)
        return None if slope == other_slope else (other_rest - rest) / (slope - other_slope)

    return guess


def _line(pool: str, price: float, plan: FleetPlan) -> tuple[float, float]:
    """G and R of a plan made at this price."""
    here = math.fsum(entry.cost_usd_per_hour + entry.risk_usd_per_hour for entry in _in_pool(plan, pool))
    return here / price, plan.expected_usd_per_hour - here


def where_a_mix_is_full(service: str, now: float, present: FleetPlan, *, usable: float, upwards: bool) -> Guess:
    """For a service's rate: where the smaller of the two mixes is full; its busiest replica is as idle as can be.

    Args:
        service: The service's name.
        now: Its rate.
        present: Its plan at that rate.
        usable: Share of a replica's capacity that may be used, in (0, 1].
        upwards: Whether the rate rises, so that the present mix is the smaller one.
    """

    def guess(value: float, other: FleetPlan) -> float | None:
        smaller, rate_rps = (present, now) if upwards else (other, value)
        busiest = max((entry.utilisation for entry in smaller.service(service).mix), default=0.0)
        return rate_rps * usable / busiest if busiest > 0 else None

    return guess
