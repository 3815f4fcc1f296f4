"""Which constraints cost money: those without which the mix would be cheaper, asked one at a time.

All that could matter are asked, whether the mix touches them or not: replicas are whole, so that a bound of at most one
small GPU may rule out the mix that has two, and the next best has none.
What is compared is what decides: the bill, and what interruptions are expected to cost. A price cap is on the bill
alone, so without spot pools it never makes a mix dearer: it then only excludes mixes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from medley_planner.assemble import Prepared
from medley_planner.fleet import Availability, Pool, Stock
from medley_planner.programme.cheapest import least_price
from medley_planner.programme.memo import Memo
from medley_planner.programme.milp import Limits, Solution
from medley_planner.programme.problem import CostLimit, FleetProblem, ServiceProblem, stock_limits
from medley_planner.programme.split import split
from medley_planner.result import Binding, ServicePlan
from medley_planner.wording import counts_text, money, percent, plural, variant_text

_SAVES_USD = 0.005
"""Differences below half a cent are not worth a sentence."""

_PLENTY = 10**9


@dataclass(frozen=True)
class View:
    """One service's plan, with what it may use: the stock and the money that the other services leave.

    Args:
        prepared: The service.
        plan: Its plan.
        pools: All pools by name.
        stock: What the others leave, by pool.
        money: What the others leave of the fleet's price cap; None without a cap.
        limits: Gap and time of a solve.
        memo: Keeps solutions by problem.
    """

    prepared: Prepared
    plan: ServicePlan
    pools: Mapping[str, Pool]
    stock: Mapping[str, Stock]
    money: CostLimit | None
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

    def best(self, problem: ServiceProblem, stock: Mapping[str, Stock], *, capped: bool = True) -> Solution:
        """The cheapest mix of another problem, whatever runs.

        Args:
            problem: The problem.
            stock: What it may use.
            capped: Whether the fleet's price cap holds.
        """
        limits = stock_limits((problem,), stock)
        return least_price(FleetProblem((problem,), limits, self.money if capped else None), self.limits, self.memo)


def ample(stock: Stock) -> Stock:
    """More than anybody could use."""
    return Stock(dict.fromkeys(stock.gpus_in_groups_of, _PLENTY))


def binding(view: View) -> Iterator[Binding]:
    """Constraints without which the mix would be cheaper; the demand where there are none."""
    found = [*_binding_rules(view), *_binding_fleet_cap(view), *_binding_stock(view)]
    yield from found
    if not found and view.plan.mix:
        yield _binding_demand(view)


@dataclass(frozen=True)
class _Rule:
    """A constraint of the service that can be lifted.

    Args:
        constraint: Its name in docs/formulation.md.
        subject: The field, or the pool, that it is about.
        words: What it says.
        without: The service without it.
    """

    constraint: str
    subject: str
    words: str
    without: ServiceProblem


def _rules(view: View) -> Iterator[_Rule]:
    """All that the service asks for and could do without."""
    problem = view.problem
    if problem.replicas_max is not None:
        words = f"at most {plural(problem.replicas_max, 'replica')}"
        yield _Rule("replicas_max", "maxReplicas", words, replace(problem, replicas_max=None))
    if problem.replicas_min > 1 or (problem.replicas_min and not problem.loads):
        words = f"at least {plural(problem.replicas_min, 'replica')}"
        yield _Rule("replicas_min", "minReplicas", words, replace(problem, replicas_min=0))
    yield from _pool_rules(problem)
    if problem.cost_cap is not None:
        words = f"at most {money(problem.cost_cap)}"
        yield _Rule("cost_cap", "maxCostPerHour", words, replace(problem, cost_cap=None))
    yield from _spread_rules(problem)
    headroom = view.prepared.service.headroom
    if headroom > 0:
        loads = tuple(tuple(load * (1.0 - headroom) for load in bucket) for bucket in problem.loads)
        words = f"{percent(headroom)} of every replica kept free"
        yield _Rule("headroom", "headroom", words, replace(problem, loads=loads))
    if problem.queues:
        quantile = view.prepared.service.queueing_quantile
        words = f"no waiting for {percent(quantile)} of the requests"
        yield _Rule("queueing", "queueing", words, replace(problem, queues=()))


def _pool_rules(problem: ServiceProblem) -> Iterator[_Rule]:
    for index, bounds in enumerate(problem.pool_bounds):
        for name, bound, free in (
            ("pool_replicas_max", bounds.maximum, replace(bounds, maximum=None)),
            ("pool_replicas_min", bounds.minimum or None, replace(bounds, minimum=0)),
        ):
            if bound is not None:
                pool_bounds = (*problem.pool_bounds[:index], free, *problem.pool_bounds[index + 1 :])
                words = f"at {'most' if name.endswith('max') else 'least'} {plural(bound, 'replica')} in {bounds.pool}"
                yield _Rule(name, bounds.pool, words, replace(problem, pool_bounds=pool_bounds))


def _spread_rules(problem: ServiceProblem) -> Iterator[_Rule]:
    asked, free = problem.availability, Availability()
    rules = (
        (
            "spot_share",
            "spot.maxShare",
            asked.spot_max_share < free.spot_max_share,
            f"at most {percent(asked.spot_max_share)} of the replicas spot",
            replace(asked, spot_max_share=free.spot_max_share),
        ),
        (
            "pool_share",
            "maxSharePerPool",
            asked.pool_max_share < free.pool_max_share,
            f"at most {percent(asked.pool_max_share)} of the replicas in one pool",
            replace(asked, pool_max_share=free.pool_max_share),
        ),
        (
            "survivable",
            "spot.survivableShare",
            asked.survivable_share > free.survivable_share,
            f"{percent(asked.survivable_share)} of the demand served after the loss of a spot pool",
            replace(asked, survivable_share=free.survivable_share),
        ),
    )
    for constraint, subject, asks, words, without in rules:
        if asks:
            yield _Rule(constraint, subject, words, replace(problem, availability=without))


def _binding_rules(view: View) -> Iterator[Binding]:
    for rule in _rules(view):
        solution = view.best(rule.without, view.stock)
        saved = view.plan.expected_usd_per_hour - solution.objective
        if solution.found and saved > _SAVES_USD:
            would_do = f"{found_text(rule.without, solution)} would do for {price_text(rule.without, solution)}"
            detail = f"{rule.words}: without this bound, {would_do}, {money(saved)} less"
            yield Binding(rule.constraint, rule.subject, detail, saved)


def _binding_fleet_cap(view: View) -> Iterator[Binding]:
    """Money that the other services leave: more of it can only help where the cheapest bill is not what decides."""
    if view.money is None:
        return
    solution = view.best(view.problem, view.stock, capped=False)
    saved = view.plan.expected_usd_per_hour - solution.objective
    if solution.found and saved > _SAVES_USD:
        would_do = f"{found_text(view.problem, solution)} would do for {price_text(view.problem, solution)}"
        detail = f"{money(view.money.usd_per_hour)} of the fleet's cap are left: with more, {would_do}"
        yield Binding("fleet_cost_cap", "fleet", f"{detail}, {money(saved)} less", saved)


def _binding_stock(view: View) -> Iterator[Binding]:
    for pool in sorted({limit.pool for limit in stock_limits((view.problem,), view.stock)}):
        solution = view.best(view.problem, {**view.stock, pool: ample(view.stock[pool])})
        saved = view.plan.expected_usd_per_hour - solution.objective
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
            would_do = f"{found_text(view.problem, solution)} would do for {price_text(view.problem, solution)}"
            detail = f"{plural(available, 'GPU')} of {pool} can be had{exhausted}: with {wanted}, {would_do}"
            yield Binding("stock", pool, f"{detail}, {money(saved)} less", saved)


def _binding_demand(view: View) -> Binding:
    """What the least replica less would cost in served requests."""
    fewer = []
    for v, count in enumerate(view.counts):
        if count > 0:
            counts = tuple(n - 1 if other == v else n for other, n in enumerate(view.counts))
            fewer.append((split(view.problem, counts, view.memo).served_share, v))
    served, v = max(fewer, key=lambda each: (each[0], -each[1]))
    name = variant_text(view.problem.variants[v])
    if served >= 1.0 and any(view.problem.running):
        return Binding("demand", name, f"what runs is kept: one replica of {name} less would do, but saves too little")
    if served >= 1.0:
        return Binding("demand", name, f"one replica of {name} less would serve as much, but not within all bounds")
    return Binding("demand", name, f"one replica of {name} less would serve only {percent(served)} of the requests")


def found_text(problem: ServiceProblem, solution: Solution) -> str:
    """The mix of a solution for one service."""
    pairs = zip(problem.variants, solution.replicas[0], strict=True)
    return counts_text((variant, count) for variant, count in pairs if count > 0)


def price_text(problem: ServiceProblem, solution: Solution) -> str:
    """What a solution for one service costs: the bill, and what its interruptions are expected to cost."""
    bill = problem.bill(solution.replicas[0])
    risk = problem.cost(solution.replicas[0]) - bill
    return money(bill) + (f" and {money(risk)} for interruptions" if risk > _SAVES_USD else "")
