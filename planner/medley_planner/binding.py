"""Which constraints cost money: those without which the mix would be cheaper, asked one at a time.

All that could matter are asked, whether the mix touches them or not: replicas are whole, so that a bound of at most one
small GPU may rule out the mix that has two, and the next best has none.
A price cap never does: it is an upper bound on what is minimised, so it excludes mixes but makes none dearer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from medley_planner.assemble import Prepared
from medley_planner.cheapest import least_price
from medley_planner.fleet import Pool, Stock
from medley_planner.memo import Memo
from medley_planner.milp import Limits, Solution
from medley_planner.problem import FleetProblem, ServiceProblem, stock_limits
from medley_planner.result import Binding, ServicePlan
from medley_planner.split import split
from medley_planner.wording import counts_text, money, percent, plural, variant_text

_SAVES_USD = 0.005
"""Differences below half a cent are not worth a sentence."""

_PLENTY = 10**9


@dataclass(frozen=True)
class View:
    """One service's plan, with what it may use: the stock that the other services leave."""

    prepared: Prepared
    plan: ServicePlan
    pools: Mapping[str, Pool]
    stock: Mapping[str, Stock]
    limits: Limits
    memo: Memo

    @property
    def problem(self) -> ServiceProblem:
        """The service in figures."""
        return self.prepared.problem

    @property
    def counts(self) -> tuple[int, ...]:
        """n[v] of its plan."""
        mix = {entry.variant: entry.replicas for entry in self.plan.mix}
        return tuple(mix.get(variant, 0) for variant in self.problem.variants)

    def best(self, problem: ServiceProblem, stock: Mapping[str, Stock]) -> Solution:
        """The cheapest mix of another problem, whatever runs."""
        return least_price(FleetProblem((problem,), stock_limits((problem,), stock)), self.limits, self.memo)


def ample(stock: Stock) -> Stock:
    """More than anybody could use."""
    return Stock(dict.fromkeys(stock.gpus_in_groups_of, _PLENTY))


def binding(view: View) -> Iterator[Binding]:
    """Constraints without which the mix would be cheaper; the demand where there are none."""
    found = [*_binding_bounds(view), *_binding_stock(view)]
    yield from found
    if not found and view.plan.mix:
        yield _binding_demand(view)


def _binding_bounds(view: View) -> Iterator[Binding]:
    problem = view.problem
    if problem.replicas_max is not None:
        words = f"at most {plural(problem.replicas_max, 'replica')}"
        yield from _if_cheaper(view, replace(problem, replicas_max=None), "replicas_max", "maxReplicas", words)
    if problem.replicas_min > 1 or (problem.replicas_min and not problem.loads):
        words = f"at least {plural(problem.replicas_min, 'replica')}"
        yield from _if_cheaper(view, replace(problem, replicas_min=0), "replicas_min", "minReplicas", words)
    for index, bounds in enumerate(problem.pool_bounds):
        for name, bound, free in (
            ("pool_replicas_max", bounds.maximum, replace(bounds, maximum=None)),
            ("pool_replicas_min", bounds.minimum or None, replace(bounds, minimum=0)),
        ):
            if bound is not None:
                pool_bounds = (*problem.pool_bounds[:index], free, *problem.pool_bounds[index + 1 :])
                words = f"at {'most' if name.endswith('max') else 'least'} {plural(bound, 'replica')} in {bounds.pool}"
                yield from _if_cheaper(view, replace(problem, pool_bounds=pool_bounds), name, bounds.pool, words)


def _if_cheaper(view: View, looser: ServiceProblem, constraint: str, subject: str, words: str) -> Iterator[Binding]:
    solution = view.best(looser, view.stock)
    if not solution.found:
        return
    saved = view.plan.cost_usd_per_hour - solution.objective
    if saved > _SAVES_USD:
        mix = found_text(looser, solution)
        detail = f"{words}: without this bound, {mix} would do for {money(solution.objective)}, {money(saved)} less"
        yield Binding(constraint, subject, detail)


def _binding_stock(view: View) -> Iterator[Binding]:
    for pool in sorted({limit.pool for limit in stock_limits((view.problem,), view.stock)}):
        solution = view.best(view.problem, {**view.stock, pool: ample(view.stock[pool])})
        saved = view.plan.cost_usd_per_hour - solution.objective
        if solution.found and saved > _SAVES_USD:
            wanted = sum(
                gpus * count
                for variant, gpus, count in zip(
                    view.problem.variants, view.problem.gpus, solution.replicas[0], strict=True
                )
                if variant.pool == pool
            )
            available = view.stock[pool].gpus
            exhausted = f" ({view.pools[pool].exhausted})" if view.pools[pool].exhausted else ""
            detail = (
                f"{plural(available, 'GPU')} of {pool} can be had{exhausted}: with {wanted}, "
                f"{found_text(view.problem, solution)} would do for {money(solution.objective)}, {money(saved)} less"
            )
            yield Binding("stock", pool, detail)


def _binding_demand(view: View) -> Binding:
    """What the least replica less would cost in served requests."""
    fewer = []
    for v, count in enumerate(view.counts):
        if count > 0:
            counts = tuple(n - 1 if other == v else n for other, n in enumerate(view.counts))
            fewer.append((split(view.problem, counts, view.memo).served_share, v))
    served, v = max(fewer, key=lambda each: (each[0], -each[1]))
    name = variant_text(view.problem.variants[v])
    if served >= 1.0:
        return Binding("demand", name, f"what runs is kept: one replica of {name} less would do, but saves too little")
    return Binding("demand", name, f"one replica of {name} less would serve only {percent(served)} of the requests")


def found_text(problem: ServiceProblem, solution: Solution) -> str:
    """The mix of a solution for one service."""
    pairs = zip(problem.variants, solution.replicas[0], strict=True)
    return counts_text((variant, count) for variant, count in pairs if count > 0)
