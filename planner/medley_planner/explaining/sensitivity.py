"""How far a plan holds, and what would be cheaper if the questions were others.

    turns     at which price of each pool, and at which rate of each service, the mix changes
    curves    what a service costs against its rate and its objectives, beside the best of single pools
    maps      which variant is cheapest for requests of which size

Turns of prices are those of the whole fleet, planned together; everything about a single service holds with the stock
that the other services leave. Each question takes a bounded number of plans; the caller is told before each and may end
it there, since the planner has no clock.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from medley_planner.capacities.capacity import capacities
from medley_planner.capacities.variants import CapacityFunction
from medley_planner.explaining.curves import (
    Alone,
    Axis,
    Curve,
    SizeMap,
    curve,
    log_spaced,
    present_value,
    size_map,
)
from medley_planner.explaining.turns import Figure, Search, Turn, find_turn, where_a_mix_is_full, where_costs_meet
from medley_planner.fleet import CapacityType, FleetState, Formulation, PlanOptions, Pool, Service, Variant
from medley_planner.plan import DEFAULT_OPTIONS, plan
from medley_planner.programme.held import remaining_stock
from medley_planner.programme.memo import Memo
from medley_planner.result import FleetPlan, Outcome

Progress = Callable[[int, int, str], bool]
"""Told before each question: how many are answered, how many there are, and which is next. False ends it."""


@dataclass(frozen=True)
class Effort:
    """How much is asked.

    Args:
        turns: Whether turns are looked for.
        price_reach: Prices are looked at from price / reach to price · reach.
        rate_reach: The same for rates.
        search: How a turn is looked for.
        rate_points: Points of a curve of cost against rate; 0 draws none.
        objective_points: Points of a curve of cost against an objective; 0 draws none.
        objective_reach: Objectives are looked at from objective / reach to objective · reach.
        compared_pools: So many pools alone, the cheapest now, are drawn beside the mix.
        map_steps: Sizes along each axis of a map; 0 draws none.
        least_tokens: The shortest input and output on a map.
        most_output_tokens: The longest output on a map.
    """

    turns: bool = True
    price_reach: float = 8.0
    rate_reach: float = 4.0
    search: Search = field(default_factory=Search)
    rate_points: int = 13
    objective_points: int = 11
    objective_reach: float = 4.0
    compared_pools: int = 6
    map_steps: int = 18
    least_tokens: int = 16
    most_output_tokens: int = 8192


TURNS_ONLY = Effort(rate_points=0, objective_points=0, map_steps=0)
"""Only where the mix changes."""


@dataclass(frozen=True)
class Sensitivity:
    """The answers, in the order of pools and services by name.

    Args:
        prices: Turns of pools' prices, down and up.
        rates: Turns of services' rates, down and up.
        curves: Costs against rates and objectives.
        maps: Cheapest variants over request sizes.
        unanswered: Questions that were not asked, because the caller ended it.
    """

    prices: tuple[Turn, ...] = ()
    rates: tuple[Turn, ...] = ()
    curves: tuple[Curve, ...] = ()
    maps: tuple[SizeMap, ...] = ()
    unanswered: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Question:
    """Something to ask, in words, and how it is answered."""

    words: str
    answer: Callable[[], Turn | Curve | SizeMap]


def sensitivity(
    state: FleetState,
    fleet_plan: FleetPlan,
    options: PlanOptions = DEFAULT_OPTIONS,
    *,
    effort: Effort | None = None,
    progress: Progress | None = None,
    memo: Memo | None = None,
    capacity_of: CapacityFunction = capacities,
) -> Sensitivity:
    """How far a plan holds, and what other rates, objectives and sizes would cost.

    Args:
        state: The fleet that was planned.
        fleet_plan: Its plan.
        options: How it was planned.
        effort: How much is asked; None is everything.
        progress: Told before each question.
        memo: What earlier calls worked out.
        capacity_of: What one replica sustains.

    Raises:
        InvalidFleetError: A value makes no sense; names the field.
    """
    bare = replace(options, explain=False)
    asked = _Asked(state, fleet_plan, bare, effort or Effort(), Memo() if memo is None else memo, capacity_of)
    questions = list(asked.questions())
    answers: list[Turn | Curve | SizeMap] = []
    for number, question in enumerate(questions):
        if progress is not None and not progress(number, len(questions), question.words):
            break
        answers.append(question.answer())
    turns = [each for each in answers if isinstance(each, Turn)]
    return Sensitivity(
        prices=tuple(each for each in turns if each.figure is Figure.PRICE),
        rates=tuple(each for each in turns if each.figure is Figure.RATE),
        curves=tuple(each for each in answers if isinstance(each, Curve)),
        maps=tuple(each for each in answers if isinstance(each, SizeMap)),
        unanswered=tuple(question.words for question in questions[len(answers) :]),
    )


@dataclass(frozen=True)
class _Asked:
    """What the questions are about."""

    state: FleetState
    plan: FleetPlan
    options: PlanOptions
    effort: Effort
    memo: Memo
    capacity_of: CapacityFunction

    def questions(self) -> Iterator[_Question]:
        services = sorted(self.state.services, key=lambda service: service.name)
        if self.effort.turns:
            for pool in sorted(self.state.pools, key=lambda pool: pool.name):
                yield from self._about_price(pool)
            for service in services:
                yield from self._about_rate(service)
        for service in services:
            yield from self._about_curves(service)

    def _about_price(self, pool: Pool) -> Iterator[_Question]:
        """Nothing turns on a price of 0, nor on one that is paid anyhow; what is not used is not used if dearer."""
        price = pool.price_usd_per_gpu_hour
        if price <= 0 or pool.capacity_type is CapacityType.RESERVED:
            return
        used = dict(self.plan.gpus_by_pool).get(pool.name, 0) > 0
        for upwards in (False, True) if used else (False,):
            reach = price * self.effort.price_reach if upwards else price / self.effort.price_reach
            word = "rises" if upwards else "falls"
            answer = functools.partial(self._price_turn, pool, reach)
            yield _Question(f"what changes if the price of {pool.name} {word}", answer)

    def _price_turn(self, pool: Pool, looked_to: float) -> Turn:
        return find_turn(
            Figure.PRICE,
            pool.name,
            now=pool.price_usd_per_gpu_hour,
            looked_to=looked_to,
            present=self.plan,
            plan_at=functools.partial(self._plan_at_price, pool.name),
            guess=where_costs_meet(pool.name, pool.price_usd_per_gpu_hour, self.plan),
            search=self.effort.search,
        )

    def _plan_at_price(self, name: str, price: float) -> FleetPlan:
        pools = tuple(
            replace(pool, price_usd_per_gpu_hour=price) if pool.name == name else pool for pool in self.state.pools
        )
        return self._plan(replace(self.state, pools=pools))

    def _plan(self, state: FleetState) -> FleetPlan:
        return plan(state, self.options, memo=self.memo, capacity_of=self.capacity_of)

    def _about_rate(self, service: Service) -> Iterator[_Question]:
        if service.rate_rps <= 0 or service.pinned:
            return
        for upwards in (False, True):
            reach = self.effort.rate_reach if upwards else 1 / self.effort.rate_reach
            word = "more" if upwards else "fewer"
            answer = functools.partial(self._rate_turn, service, service.rate_rps * reach)
            yield _Question(f"what changes with {word} requests of {service.name}", answer)

    def _rate_turn(self, service: Service, looked_to: float) -> Turn:
        state = self._alone_state(service)
        present = self._plan(state)
        return find_turn(
            Figure.RATE,
            service.name,
            now=service.rate_rps,
            looked_to=looked_to,
            present=present,
            plan_at=lambda rate: self._plan(replace(state, services=(replace(service, rate_rps=rate),))),
            guess=where_a_mix_is_full(
                service.name,
                service.rate_rps,
                present,
                usable=1.0 - service.headroom,
                upwards=looked_to > service.rate_rps,
            ),
            search=self.effort.search,
        )

    def _about_curves(self, service: Service) -> Iterator[_Question]:
        if service.pinned:
            return
        effort = self.effort
        reaches = (
            (Axis.RATE, effort.rate_points, effort.rate_reach),
            (Axis.TIME_PER_OUTPUT_TOKEN, effort.objective_points, effort.objective_reach),
            (Axis.TIME_TO_FIRST_TOKEN, effort.objective_points, effort.objective_reach),
        )
        for axis, points, reach in reaches:
            now = present_value(service, axis)
            if points > 0 and now:
                values = log_spaced(now / reach, now * reach, points)
                answer = functools.partial(self._curve, service, axis, values)
                yield _Question(f"what {service.name} costs against its {axis.value.replace('_', ' ')}", answer)
        if effort.map_steps > 0:
            yield _Question(f"what is cheapest for which sizes of {service.name}", lambda: self._map(service))

    def _curve(self, service: Service, axis: Axis, values: tuple[float, ...]) -> Curve:
        return curve(self._alone(service), axis, values, self._compared_pools(service))

    def _compared_pools(self, service: Service) -> tuple[str, ...]:
        """The pools that would do alone, the cheapest of them; those of the mix too where there is room."""
        if self.options.formulation is Formulation.MELANGE or not service.rate_rps:
            return ()
        costs: list[tuple[float, str]] = []
        alone = self._alone(replace(service, running={}))
        for pool in sorted(self.state.pools, key=lambda pool: pool.name):
            if service.pools is None or pool.name in service.pools:
                found = alone.plan(replace(alone.service, pools=(pool.name,), replicas_by_pool={}))
                costs.append((found.cost_usd_per_hour if found.outcome is Outcome.PLANNED else math.inf, pool.name))
        chosen = [name for _, name in sorted(costs)[: self.effort.compared_pools]]
        return tuple(sorted(chosen))

    def _map(self, service: Service) -> SizeMap:
        effort = self.effort
        context = service.max_context_tokens or service.model.max_context_tokens
        longest = max(2 * effort.least_tokens, min(context, service.model.max_context_tokens) - effort.least_tokens)
        inputs = _whole(log_spaced(effort.least_tokens, longest, effort.map_steps))
        outputs = _whole(log_spaced(effort.least_tokens, min(longest, effort.most_output_tokens), effort.map_steps))
        return size_map(self._alone(service), inputs, outputs)

    def _alone(self, service: Service) -> Alone:
        state = self._alone_state(replace(service, running={}))
        return Alone(
            state.services[0], state.pools, state.max_cost_usd_per_hour, self.options, self.memo, self.capacity_of
        )

    def _alone_state(self, service: Service) -> FleetState:
        """The service with what the others leave of stock and of the fleet's cap."""
        others = [each for each in self.plan.services if each.name != service.name]
        held: list[Mapping[Variant, int]] = [{entry.variant: entry.replicas for entry in each.mix} for each in others]
        stock = remaining_stock({pool.name: pool.stock for pool in self.state.pools}, held)
        pools = tuple(replace(pool, stock=stock[pool.name]) for pool in self.state.pools)
        cap = self.state.max_cost_usd_per_hour
        if cap is not None:
            cap = max(0.0, cap - math.fsum(each.cost_usd_per_hour for each in others))
        return FleetState((service,), pools, cap)


def _whole(values: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(sorted({round(value) for value in values}))
