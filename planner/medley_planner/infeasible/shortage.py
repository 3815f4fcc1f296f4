"""What is missing where stock is short: which pools, and how many GPUs more would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from medley_planner.assemble import Prepared
from medley_planner.fleet import Pool, Stock
from medley_planner.programme.cheapest import solve_pruned
from medley_planner.programme.memo import Memo
from medley_planner.programme.milp import Ending, Goal, Limits
from medley_planner.programme.problem import FleetProblem, stock_limits
from medley_planner.programme.split import split, survives
from medley_planner.sharing.coalitions import Coalition
from medley_planner.wording import listed, plural


def shortage(
    members: Sequence[Prepared],
    coalition: Coalition,
    stock: Mapping[str, Stock],
    *,
    pools: Mapping[str, Pool],
    limits: Limits,
    memo: Memo,
) -> dict[str, str]:
    """By name of each member that goes short, what would help: the rest of a sentence.

    Args:
        members: The services of a coalition.
        coalition: What was found for them.
        stock: What they share.
        pools: All pools by name.
        limits: Gap and time of a solve.
        memo: Keeps solutions by problem.
    """
    short = {each.service.name: _lacks(each, mix, memo) for each, mix in zip(members, coalition.replicas, strict=True)}
    short = {name: lacks for name, lacks in short.items() if lacks}
    if not short:
        return {}
    if coalition.ending is Ending.NOTHING_FOUND:
        remedy = "the solver's time ended before it found a plan for all"
    else:
        remedy = _remedy(members, stock, pools, limits, memo)
    others = sorted(each.service.name for each in members)
    return {name: f"{lacks}{_beside(name, others)}: {remedy}" for name, lacks in short.items()}


def _lacks(each: Prepared, mix: tuple[int, ...], memo: Memo) -> str:
    if not split(each.problem, mix, memo).serves_all:
        return "stock is short"
    problem = each.problem
    by_pool: dict[str, int] = {}
    for variant, count in zip(problem.variants, mix, strict=True):
        by_pool[variant.pool] = by_pool.get(variant.pool, 0) + count
    if sum(mix) < problem.replicas_min:
        return f"stock is short of the {plural(problem.replicas_min, 'replica')} asked for at least"
    for bounds in problem.pool_bounds:
        if by_pool.get(bounds.pool, 0) < bounds.minimum:
            return f"stock is short of the {plural(bounds.minimum, 'replica')} asked for in {bounds.pool} at least"
    if not survives(problem, mix, memo):
        return "stock is short of what must serve after the loss of a spot pool"
    return ""


def _beside(name: str, members: Sequence[str]) -> str:
    others = [other for other in members if other != name]
    return f" (shared with {listed(others[:3])}{' and others' if len(others) > 3 else ''})" if others else ""


def _remedy(
    members: Sequence[Prepared], stock: Mapping[str, Stock], pools: Mapping[str, Pool], limits: Limits, memo: Memo
) -> str:
    problems = tuple(each.problem for each in members)
    within_bounds = FleetProblem(problems, stock_limits(problems, stock))
    more = solve_pruned(within_bounds, Goal.LEAST_EXTRA_STOCK, limits, memo)
    prefix = ""
    if not more.found:
        uncapped = tuple(replace(problem, cost_cap=None) for problem in problems)
        more = solve_pruned(FleetProblem(uncapped, within_bounds.stock), Goal.LEAST_EXTRA_STOCK, limits, memo)
        prefix = "with a higher price cap, "
    wanted = [(pool, count) for pool, count in more.extra_gpus if count > 0]
    if not more.found or not wanted:
        return "more GPUs alone would not do within the bounds on replicas"
    words = [f"{plural(count, 'more GPU')} of {pool}{_exhausted(pools[pool])}" for pool, count in wanted]
    return f"{prefix}{listed(words)} would do"


def _exhausted(pool: Pool) -> str:
    return f" (exhausted: {pool.exhausted})" if pool.exhausted else ""
