"""Sharing stock between services without solving for all of them at once.

Each service alone, with all the stock, is a small programme. Their optima together are the joint optimum *if they fit*:
whatever the services do jointly, none pays less than alone, so the sum of what they pay alone is a lower bound on the
joint cost, and a joint plan that attains it is optimal.

Where they do not fit, only the services on an over-subscribed pool have to be solved jointly. Such a coalition is again
given all the stock, and the same argument holds with coalitions in the place of services: if all of them fit together,
that is the joint optimum; if not, those that meet on an over-subscribed pool join and are solved again.
Coalitions only grow, so this ends, at the latest with all services in one.

Where a coalition cannot be served even by all the stock, it leaves the least demand of the highest priority unserved,
then of the next, and of the ways to do that takes the cheapest. The argument holds for unserved demand by priority and
price in lexicographic order: the others serve everything, and alone the coalition cannot serve more.

Where many services compete, their own optima are not looked for one by one first: if the linear relaxation of all wants
more than there is, those that can use such a pool are one coalition from the start. A large coalition is decomposed
(`decompose.py`): one programme per service, at prices of what they share.

A price cap of the fleet is shared by all: where the coalitions together cost more, all services are solved as one, with
the cap beside the stock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from medley_planner.fleet import Method, Stock
from medley_planner.programme.cheapest import cheapest, least_price, solve_pruned, within_bounds
from medley_planner.programme.goals import Ending, Goal, Limits, Solution, Unserved
from medley_planner.programme.greedy import greedy
from medley_planner.programme.memo import Memo
from medley_planner.programme.problem import (
    LOAD_TOLERANCE,
    CostLimit,
    FleetProblem,
    ServiceProblem,
    SharedLimit,
    stock_limits,
)
from medley_planner.programme.split import serves_all, split
from medley_planner.sharing.decompose import decomposed
from medley_planner.sharing.one_by_one import one_by_one
from medley_planner.sharing.relaxed_prices import wanted_beyond

_UNSERVED_TOLERANCE = 1e-7

_LARGE_SHARES = 3000
"""A joint programme with more shares x than this is decomposed; by the reference method, it gets a plan made one by one
beforehand."""

_MANY_SERVICES = 8
"""From so many services on, the relaxation says who competes."""

Mixes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Coalition:
    """Services that were solved together.

    Args:
        members: Their names, sorted.
        replicas: n[v] of each member.
        bound: Proven bound on what they cost together, USD per hour.
        short: Stock does not suffice to serve everything.
        ending: How the solver ended; NOTHING_FOUND where a plan without proof is used.
        prices: By shared limit: what one unit more is worth, USD per hour, where that was found.
        alone: Proven bounds on what each member costs alone, with all the stock; empty where they were not looked for.
    """

    members: tuple[str, ...]
    replicas: tuple[tuple[int, ...], ...]
    bound: float
    short: bool
    ending: Ending
    prices: tuple[tuple[SharedLimit, float], ...] = ()
    alone: tuple[float, ...] = ()


@dataclass(frozen=True)
class Sharing:
    """A plan of all services within the shared stock."""

    coalitions: tuple[Coalition, ...]

    @property
    def mixes(self) -> dict[str, tuple[int, ...]]:
        """n[v] by service."""
        return {
            name: mix
            for coalition in self.coalitions
            for name, mix in zip(coalition.members, coalition.replicas, strict=True)
        }


def share(
    services: Mapping[str, ServiceProblem],
    stock: Mapping[str, Stock],
    limits: Limits,
    memo: Memo,
    cost_limit: CostLimit | None = None,
) -> Sharing:
    """The cheapest mixes of all services together under the shared stock, and the fleet's price cap.

    Args:
        services: Problems by name.
        stock: What the services may use together, by pool.
        limits: Gap, and time for all solves together.
        memo: Keeps solutions by problem.
        cost_limit: What they may add to the bill together; None is no limit.
    """
    budget = _Budget(limits)
    sharing = _share_stock(services, stock, budget, memo)
    if cost_limit is None or _bill(sharing, services) <= cost_limit.usd_per_hour + LOAD_TOLERANCE:
        return sharing
    members = tuple(sorted(services))
    return Sharing((_solve(members, services, stock, budget, memo, cost_limit=cost_limit),))


def _bill(sharing: Sharing, services: Mapping[str, ServiceProblem]) -> float:
    return math.fsum(services[name].bill(mix) for name, mix in sharing.mixes.items())


def _share_stock(
    services: Mapping[str, ServiceProblem], stock: Mapping[str, Stock], budget: _Budget, memo: Memo
) -> Sharing:
    groups = _competing(services, stock, budget.limits())
    coalitions = [_solve(members, services, stock, budget, memo) for members in groups]
    while True:
        crowded = _crowded_pools(coalitions, services, stock)
        merged = _merge(coalitions, crowded, services)
        if merged is None:
            return Sharing(tuple(sorted(coalitions, key=lambda coalition: coalition.members)))
        solved = {coalition.members: coalition for coalition in coalitions}
        coalitions = [solved.get(members) or _solve(members, services, stock, budget, memo) for members in merged]


def _competing(
    services: Mapping[str, ServiceProblem], stock: Mapping[str, Stock], limits: Limits
) -> list[tuple[str, ...]]:
    """Groups to start with: each service by itself, and those together that surely compete."""
    names = sorted(services)
    problems = tuple(services[name] for name in names)
    problem = FleetProblem(problems, stock_limits(problems, stock))
    if limits.method is not Method.FAST or len(names) < _MANY_SERVICES or not _is_large(problem):
        return [(name,) for name in names]
    crowded = {limit.pool for limit in wanted_beyond(problems, problem.stock)}
    together = tuple(
        name
        for name, each in zip(names, problems, strict=True)
        if any(variant.pool in crowded for variant in each.variants)
    )
    return sorted([*((name,) for name in names if name not in together), *([together] if together else [])])


class _Budget:
    """The solver's time that is left; counted by the solver's own clock, since the planner has none."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._spent_s = 0.0

    def limits(self) -> Limits:
        return replace(self._limits, time_limit_s=max(0.05, self._limits.time_limit_s - self._spent_s))

    def spend(self, solution: Solution) -> Solution:
        self._spent_s += solution.seconds
        return solution


def _solve(
    members: tuple[str, ...],
    services: Mapping[str, ServiceProblem],
    stock: Mapping[str, Stock],
    budget: _Budget,
    memo: Memo,
    *,
    cost_limit: CostLimit | None = None,
) -> Coalition:
    problems = tuple(services[name] for name in members)
    problem = FleetProblem(problems, stock_limits(problems, stock), cost_limit)
    if budget.limits().method is Method.FAST and _is_large(problem):
        coalition = _decomposed(members, problem, budget, memo)
        if coalition is not None:
            return coalition
    incumbent = one_by_one(problems, stock, budget.limits(), memo) if _is_large(problem) else None
    if incumbent is not None and cost_limit is not None and _billed(incumbent, problem) > cost_limit.usd_per_hour:
        incumbent = None
    solution = budget.spend(cheapest(problem, budget.limits(), memo))
    if solution.found and not (solution.ending is Ending.TIME_LIMIT and _is_better(incumbent, solution, problem, memo)):
        return Coalition(members, solution.replicas, solution.bound, short=False, ending=solution.ending)
    if solution.ending is Ending.INFEASIBLE:
        return _most_served(members, problem, incumbent, budget, memo)
    mixes = _most_serving([incumbent, greedy(problem)], problem, memo)
    whole = _serves_all(mixes, problem, memo)
    bound = solution.bound if solution.found else 0.0
    ending = Ending.TIME_LIMIT if solution.found else Ending.NOTHING_FOUND
    cannot = incumbent is not None or cost_limit is not None
    return Coalition(members, mixes, bound, short=not whole and cannot, ending=ending)


def _decomposed(members: tuple[str, ...], problem: FleetProblem, budget: _Budget, memo: Memo) -> Coalition | None:
    """The plan of a large coalition; None where none was found that serves everything."""
    limits = budget.limits()
    wide = replace(limits, relative_gap=max(limits.relative_gap, limits.shared_gap))
    key = ("decomposed", problem, members, wide.relative_gap)
    found = memo.recall(key, lambda: decomposed(problem, members, wide, memo))
    budget.spend(found.solution)
    if not found.solution.found or not _serves_all(found.solution.replicas, problem, memo):
        return None
    solution = found.solution
    return Coalition(
        members,
        solution.replicas,
        solution.bound,
        short=False,
        ending=solution.ending,
        prices=found.prices,
        alone=found.alone,
    )


def _is_large(problem: FleetProblem) -> bool:
    """Whether the joint programme may take longer than its solver is given."""
    shares = sum(len(service.loads) * len(service.variants) for service in problem.services)
    return len(problem.services) > 1 and shares > _LARGE_SHARES


def _is_better(incumbent: Mixes | None, solution: Solution, problem: FleetProblem, memo: Memo) -> bool:
    if incumbent is None or not _serves_all(incumbent, problem, memo):
        return False
    return _paid(incumbent, problem) < _paid(solution.replicas, problem)


def _billed(mixes: Mixes, problem: FleetProblem) -> float:
    return math.fsum(service.bill(mix) for service, mix in zip(problem.services, mixes, strict=True))


def _paid(mixes: Mixes, problem: FleetProblem) -> float:
    pairs = zip(problem.services, mixes, strict=True)
    return sum(service.cost(mix) + service.switching_cost(mix) for service, mix in pairs)


def _serves_all(mixes: Mixes, problem: FleetProblem, memo: Memo) -> bool:
    pairs = zip(problem.services, mixes, strict=True)
    return all(within_bounds(service, mix) and serves_all(service, mix, memo) for service, mix in pairs)


def _most_serving(candidates: Sequence[Mixes | None], problem: FleetProblem, memo: Memo) -> Mixes:
    """The mixes that serve the most requests; of those that serve as much, the cheapest."""

    def rank(mixes: Mixes) -> tuple[bool, float, float]:
        served_rps = sum(
            split(service, mix, memo).served_share * math.fsum(service.rates)
            for service, mix in zip(problem.services, mixes, strict=True)
        )
        return (not _serves_all(mixes, problem, memo), -served_rps, _paid(mixes, problem))

    return min((mixes for mixes in candidates if mixes is not None), key=rank)


def _most_served(
    members: tuple[str, ...], problem: FleetProblem, incumbent: Mixes | None, budget: _Budget, memo: Memo
) -> Coalition:
    unserved: Unserved = ()
    for priority in sorted({service.priority for service in problem.services}, reverse=True):
        least = budget.spend(solve_pruned(problem, Goal.MOST_SERVED, budget.limits(), memo, unserved=unserved))
        if not least.found:
            break
        unserved = (*unserved, (priority, least.objective + _UNSERVED_TOLERANCE))
    else:
        goal = Goal.CHEAPEST_OF_MOST_SERVED
        solution = budget.spend(solve_pruned(problem, goal, budget.limits(), memo, unserved=unserved))
        if solution.found:
            return Coalition(members, solution.replicas, 0.0, short=True, ending=solution.ending)
    mixes = _most_serving([incumbent, greedy(problem)], problem, memo)
    return Coalition(members, mixes, 0.0, short=True, ending=Ending.NOTHING_FOUND)


def _crowded_pools(
    coalitions: Sequence[Coalition], services: Mapping[str, ServiceProblem], stock: Mapping[str, Stock]
) -> set[str]:
    """Pools of which the coalitions together take more than there is."""
    mixes = Sharing(tuple(coalitions)).mixes
    return {
        limit.pool
        for limit in stock_limits(services.values(), stock)
        if sum(limit.used_by(services[name], mix) for name, mix in mixes.items()) > limit.gpus
    }


def _merge(
    coalitions: Sequence[Coalition], crowded: set[str], services: Mapping[str, ServiceProblem]
) -> list[tuple[str, ...]] | None:
    """Coalitions by members, those that meet on a crowded pool joined; None where none meet."""
    groups: list[tuple[set[str], set[str]]] = []
    for coalition in coalitions:
        members, pools = set(coalition.members), _pools_used(coalition, services) & crowded
        apart = []
        for others, theirs in groups:
            if pools & theirs:
                members |= others
                pools |= theirs
            else:
                apart.append((others, theirs))
        groups = [*apart, (members, pools)]
    if len(groups) == len(coalitions):
        return None
    return sorted(tuple(sorted(members)) for members, _ in groups)


def _pools_used(coalition: Coalition, services: Mapping[str, ServiceProblem]) -> set[str]:
    return {
        variant.pool
        for name, mix in zip(coalition.members, coalition.replicas, strict=True)
        for variant, count in zip(services[name].variants, mix, strict=True)
        if count > 0
    }


def alone_bound(service: ServiceProblem, stock: Mapping[str, Stock], limits: Limits, memo: Memo) -> float:
    """Proven: no mix that serves all of this service, alone with this stock, costs less; −∞ where none was found."""
    solution = least_price(FleetProblem((service,), stock_limits((service,), stock)), limits, memo)
    return solution.bound if solution.found else float("-inf")
