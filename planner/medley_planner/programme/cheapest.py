"""The cheapest mixes of services that share stock, with as few changes to what runs as pays for itself.

Two objectives meet here: the price, which has a lower bound worth telling, and the price with the cost of switching,
which is what a change has to beat. Let P be the least price and run the services as they do: then

- where the cheapest mix adds no replica to what runs, it costs nothing to switch to: it is the best in both respects;
- where what runs is feasible and costs P, any other mix costs at least P and something to switch: what runs is the
  best.

Only otherwise is the programme solved a second time, with the cost of switching.
"""

from __future__ import annotations

from dataclasses import replace

from medley_planner.fleet import Method
from medley_planner.programme.by_cuts import solve_by_cuts
from medley_planner.programme.dominance import one_variant_suffices, undominated
from medley_planner.programme.enumeration import enumerated
from medley_planner.programme.goals import Ending, Goal, Limits, Solution, Unserved
from medley_planner.programme.memo import Memo
from medley_planner.programme.milp import solve
from medley_planner.programme.problem import LOAD_TOLERANCE, TIE_USD_PER_GPU_HOUR, FleetProblem, ServiceProblem
from medley_planner.programme.split import serves_all


def cheapest(problem: FleetProblem, limits: Limits, memo: Memo) -> Solution:
    """The cheapest mixes that serve everything; `objective` is their price, `bound` a proven bound on the price alone.

    Args:
        problem: Services, of which some may run already, and the stock limits that could bind.
        limits: Time and gap of each of the two solves.
        memo: Keeps solutions by problem.
    """
    fresh = least_price(problem, limits, memo)
    if not fresh.found or not any(any(service.running) for service in problem.services):
        return fresh
    if all(_adds_nothing(service, mix) for service, mix in zip(problem.services, fresh.replicas, strict=True)):
        return fresh
    running = tuple(service.running for service in problem.services)
    if _price(problem, running) <= fresh.objective + _tie(problem, running) and _feasible(problem, running, memo):
        return replace(fresh, replicas=running, objective=_price(problem, running))
    moved = solve_pruned(problem, Goal.CHEAPEST, limits, memo)
    if not moved.found:
        return fresh
    return replace(moved, objective=_price(problem, moved.replicas), bound=fresh.bound)


def least_price(problem: FleetProblem, limits: Limits, memo: Memo) -> Solution:
    """The cheapest mixes whatever runs, their price and its bound."""
    fresh = replace(problem, services=tuple(service.fresh() for service in problem.services))
    solution = solve_pruned(fresh, Goal.CHEAPEST, limits, memo)
    if not solution.found:
        return solution
    price = _price(problem, solution.replicas)
    if solution.ending is Ending.OPTIMAL and price - solution.bound <= limits.relative_gap * price + _tie(
        problem, solution.replicas
    ):
        return replace(solution, objective=price, bound=min(price, solution.bound))
    return replace(solution, objective=price, bound=min(price, solution.bound - _tie(problem, solution.replicas)))


def solve_pruned(problem: FleetProblem, goal: Goal, limits: Limits, memo: Memo, *, unserved: Unserved = ()) -> Solution:
    """The programme without variants that no optimum needs, its solution in terms of all variants.

    A dominated variant may still save replicas, if not money.
    """
    key = ("solve", problem, goal, limits.relative_gap, limits.method, unserved)
    return memo.recall(key, lambda: _solve_pruned(problem, goal, limits, unserved, memo))


def _solve_pruned(problem: FleetProblem, goal: Goal, limits: Limits, unserved: Unserved, memo: Memo) -> Solution:
    kept = [
        tuple(range(len(service.variants))) if goal is Goal.FEWEST_REPLICAS else undominated(service, problem.stock)
        for service in problem.services
    ]
    small = replace(
        problem, services=tuple(service.only(keep) for service, keep in zip(problem.services, kept, strict=True))
    )
    key = ("solve pruned", small, goal, limits.relative_gap, limits.method, unserved)
    solution = memo.recall(key, lambda: _solve(small, goal, limits, unserved))
    if not solution.found:
        return solution
    replicas = tuple(
        _spread(service, keep, mix)
        for service, keep, mix in zip(problem.services, kept, solution.replicas, strict=True)
    )
    return replace(solution, replicas=replicas)


def _solve(problem: FleetProblem, goal: Goal, limits: Limits, unserved: Unserved) -> Solution:
    if (
        goal is Goal.CHEAPEST
        and len(problem.services) == 1
        and len(problem.services[0].variants) == 1
        and not problem.shared
    ):
        needed = one_variant_suffices(problem.services[0], 0)
        if needed is None:
            return Solution(Ending.INFEASIBLE)
        price = problem.services[0].prices[0] * needed
        return Solution(Ending.OPTIMAL, ((needed,),), objective=price, bound=price)
    if limits.method is Method.FAST:
        if goal is Goal.CHEAPEST and len(problem.services) == 1:
            exact = enumerated(problem)
            if exact is not None:
                return exact
        solution = solve_by_cuts(problem, goal, limits, unserved=unserved)
        if solution.ending is not Ending.NOTHING_FOUND or solution.seconds >= limits.time_limit_s:
            return solution
    return solve(problem, goal, limits, unserved=unserved)


def servable_alone(problem: FleetProblem, limits: Limits, memo: Memo) -> bool:
    """Whether one service can be served within its constraints at all; unknown counts as yes.

    Replicas of one variant often can, which is quickly seen.
    """
    return memo.recall(("servable", problem, limits.relative_gap), lambda: _servable_alone(problem, limits, memo))


def _servable_alone(problem: FleetProblem, limits: Limits, memo: Memo) -> bool:
    (service,) = problem.services
    if any(_suffices(problem, v) for v in range(len(service.variants))):
        return True
    return cheapest(problem, limits, memo).ending is not Ending.INFEASIBLE


def _suffices(problem: FleetProblem, v: int) -> bool:
    """Whether replicas of v alone serve the only service within all limits."""
    (service,) = problem.services
    needed = one_variant_suffices(service.only((v,)), 0)
    if needed is None:
        return False
    mix = tuple(needed if w == v else 0 for w in range(len(service.variants)))
    within = all(limit.used_by(service, mix) <= limit.most + LOAD_TOLERANCE for limit in problem.shared)
    return within and service.keeps_rows(mix)


def _spread(service: ServiceProblem, kept: tuple[int, ...], mix: tuple[int, ...]) -> tuple[int, ...]:
    counts = dict(zip(kept, mix, strict=True))
    return tuple(counts.get(v, 0) for v in range(len(service.variants)))


def _price(problem: FleetProblem, replicas: tuple[tuple[int, ...], ...]) -> float:
    return sum(service.cost(mix) for service, mix in zip(problem.services, replicas, strict=True))


def _tie(problem: FleetProblem, replicas: tuple[tuple[int, ...], ...]) -> float:
    """What the tie-break adds to the objective of these mixes."""
    return TIE_USD_PER_GPU_HOUR * sum(
        gpus * count
        for service, mix in zip(problem.services, replicas, strict=True)
        for gpus, count in zip(service.gpus, mix, strict=True)
    )


def _adds_nothing(service: ServiceProblem, mix: tuple[int, ...]) -> bool:
    return all(count <= runs for count, runs in zip(mix, service.running, strict=True))


def _feasible(problem: FleetProblem, replicas: tuple[tuple[int, ...], ...], memo: Memo) -> bool:
    pairs = list(zip(problem.services, replicas, strict=True))
    used = ((limit, sum(limit.used_by(service, mix) for service, mix in pairs)) for limit in problem.shared)
    if any(used_by_all > limit.most + LOAD_TOLERANCE for limit, used_by_all in used):
        return False
    return all(within_bounds(service, mix) and serves_all(service, mix, memo) for service, mix in pairs)


def within_bounds(service: ServiceProblem, mix: tuple[int, ...]) -> bool:
    """Whether a mix keeps the service's cap, bounds on replicas and shares of spot and of every pool."""
    return service.keeps_rows(mix)
