"""What other fleets would cost one service, or why they would not do.

only POOL        the best of every pool alone
without POOL     the best without each pool of the mix
without spot     the best that cannot be taken away, where some of the mix can
served whole     the best in which every replica computes whole requests, where some of the mix do not
served in parts  the best in which prompts and answers are computed apart, where none of the mix does so
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from medley_planner.explaining.binding import View, ample, found_text, price_text
from medley_planner.fleet import Availability, Role, Stock, Variant
from medley_planner.programme.milp import Solution
from medley_planner.programme.problem import ServiceProblem, stock_limits
from medley_planner.programme.split import split
from medley_planner.result import Alternative, MixEntry
from medley_planner.wording import mix_text, money, percent


def alternatives(view: View) -> tuple[Alternative, ...]:
    """Other fleets and their price difference, cheapest first; those that cannot serve come last, with the reason."""
    return tuple(sorted(_alternatives(view), key=_cheapest_first))


def _cheapest_first(alternative: Alternative) -> tuple[float, str]:
    cost = alternative.cost_usd_per_hour
    return (math.inf if cost is None else cost, alternative.name)


def _alternatives(view: View) -> Iterator[Alternative]:
    problem = view.problem
    for name, kept in _questions(view):
        yield _alternative(view, name, problem.only(v for v, each in enumerate(problem.variants) if each in kept))


def _questions(view: View) -> Iterator[tuple[str, frozenset[Variant]]]:
    """What is asked, by name: which variants may be used."""
    variants = view.problem.variants
    used = sorted({entry.variant.pool for entry in view.plan.mix})
    for pool in sorted({variant.pool for variant in variants}):
        if used != [pool]:
            yield f"only {pool}", frozenset(each for each in variants if each.pool == pool)
    for pool in used:
        yield f"without {pool}", frozenset(each for each in variants if each.pool != pool)
    spot = frozenset(view.problem.spot_pools)
    if len(spot & set(used)) > 1:
        yield "without spot", frozenset(each for each in variants if each.pool not in spot)
    roles = {entry.variant.role for entry in view.plan.mix}
    whole = frozenset(each for each in variants if each.role is Role.SHARED)
    if roles - {Role.SHARED}:
        yield "served whole", whole
    elif roles and len(whole) < len(variants):
        yield "served in parts", frozenset(variants) - whole


def _alternative(view: View, name: str, problem: ServiceProblem) -> Alternative:
    solution = view.best(problem, view.stock) if problem.variants else None
    if solution is None or not solution.found:
        return Alternative(name, (), None, None, _why_not(view, problem))
    mix = _entries(view, problem, solution)
    bill = problem.bill(solution.replicas[0])
    extra = bill - view.plan.cost_usd_per_hour
    difference = f"{money(abs(extra))} {'more' if extra >= 0 else 'less'}"
    return Alternative(name, mix, bill, extra, f"{mix_text(mix)} for {price_text(problem, solution)}, {difference}")


def _entries(view: View, problem: ServiceProblem, solution: Solution) -> tuple[MixEntry, ...]:
    usable = {candidate.variant: candidate for candidate in view.prepared.candidates.usable}
    counts = solution.replicas[0]
    return tuple(
        MixEntry(
            variant=problem.variants[v],
            replicas=count,
            gpus=count * problem.gpus[v],
            cost_usd_per_hour=count * problem.billed[v],
            utilisation=load / count * (1.0 - view.prepared.service.headroom),
            reserved_usd_per_hour=count * (usable[problem.variants[v]].price_usd_per_hour - problem.billed[v]),
            risk_usd_per_hour=count * (problem.prices[v] - problem.billed[v]),
        )
        for v, (count, load) in enumerate(zip(counts, split(problem, counts, view.memo).loads, strict=True))
        if count > 0
    )


def _why_not(view: View, problem: ServiceProblem) -> str:
    """What stands in the way: sizes, then stock, then the caps, then how replicas are spread, then their bounds."""
    unserved = [
        b
        for b, load in enumerate(problem.loads)
        if any(all(load[v] == math.inf for v in variants) for variants in problem.parts)
    ]
    if not problem.variants or unserved:
        return _unserved_text(view, unserved) if problem.variants else "no other pool can serve any of it"
    plenty = _plenty(view.stock)
    with_stock = view.best(problem, plenty)
    if with_stock.found:
        return _stock_text(view, problem, with_stock)
    uncapped = replace(problem, cost_cap=None)
    without_cap = view.best(uncapped, plenty)
    if problem.cost_cap is not None and without_cap.found:
        return f"{price_text(uncapped, without_cap)}, more than the cap of {money(problem.cost_cap)}"
    paid = view.best(uncapped, plenty, capped=False)
    if view.money is not None and paid.found:
        return f"{price_text(uncapped, paid)}, more than the {money(view.money.usd_per_hour)} left of the fleet's cap"
    anyhow = replace(uncapped, availability=Availability())
    if problem.availability != Availability() and view.best(anyhow, plenty, capped=False).found:
        return "how replicas must be spread excludes it"
    return "the bounds on replicas exclude it"


def _stock_text(view: View, problem: ServiceProblem, solution: Solution) -> str:
    counts = solution.replicas[0]
    short = [
        f"{max(0, limit.gpus)} of {limit.used_by(problem, counts)} GPUs of {limit.pool}"
        for limit in stock_limits((problem,), view.stock)
        if limit.used_by(problem, counts) > limit.gpus
    ]
    would_do = f"{found_text(problem, solution)} for {price_text(problem, solution)} would do"
    return f"stock is short: {would_do}, of which there are {', '.join(dict.fromkeys(short))}"


def _unserved_text(view: View, unserved: Sequence[int]) -> str:
    """Which sizes none of the variants serves."""
    problem = view.problem
    weights = math.fsum(problem.rates[b] for b in unserved) / math.fsum(problem.rates)
    heaviest = max(unserved, key=lambda b: (problem.rates[b], -b))
    bucket = view.prepared.candidates.buckets[problem.buckets[heaviest]]
    sizes = f"{bucket.input_tokens} input and {bucket.output_tokens} output tokens"
    return f"cannot serve {percent(weights)} of the requests, such as those of {sizes}"


def _plenty(stock: Mapping[str, Stock]) -> dict[str, Stock]:
    return {pool: ample(stock[pool]) for pool in stock}
