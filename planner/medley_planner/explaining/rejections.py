"""Why a usable variant is not in the mix of one service: stock, or the price of what it serves best."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from medley_planner.explaining.binding import View
from medley_planner.fleet import Role
from medley_planner.programme.problem import ServiceProblem
from medley_planner.result import Outcome, Rejection
from medley_planner.wording import money, plural, variant_text


def not_chosen(view: View) -> Iterator[Rejection]:
    """Usable variants that are not in the mix."""
    if view.plan.outcome is Outcome.NO_GPU_FITS:
        yield from _without_some_size(view)
        return
    in_mix = {entry.variant for entry in view.plan.mix}
    chosen = [v for v, variant in enumerate(view.problem.variants) if variant in in_mix]
    for v, variant in enumerate(view.problem.variants):
        if variant in in_mix:
            continue
        pool = view.pools[variant.pool]
        available = view.stock[variant.pool].in_groups_of(variant.gpus)
        if available < variant.gpus and pool.exhausted:
            yield Rejection(variant, "PoolExhausted", pool.exhausted)
        elif available < variant.gpus:
            yield Rejection(
                variant,
                "NoStock",
                f"no {plural(variant.gpus, 'GPU')} of {variant.pool} can be had on one node",
            )
        else:
            yield Rejection(variant, "CostsMore", _costs_more(view, v, chosen))


def _without_some_size(view: View) -> Iterator[Rejection]:
    """Why the usable variants do not serve the most frequent of the sizes that none serves."""
    candidates = view.prepared.candidates
    unserved = max(candidates.unserved, key=lambda bucket: (bucket.weight, bucket.input_tokens, bucket.output_tokens))
    index = candidates.buckets.index(unserved)
    for candidate in candidates.usable:
        capacity = candidate.capacities[index]
        yield Rejection(candidate.variant, capacity.reason, capacity.detail)


@dataclass(frozen=True)
class _Served:
    """Requests of one size served by replicas in fractions, at so many USD per hour for each request per second."""

    price: float
    variants: tuple[int, ...]


def _costs_more(view: View, v: int, chosen: Collection[int]) -> str:
    """The size at which the variant compares best with the mix, in dollars per million requests."""
    problem = view.problem
    replica = money(problem.prices[v])
    best: tuple[float, int, _Served, _Served] | None = None
    for b in range(len(problem.loads)):
        here, there = _with_rest(problem, b, v), _cheapest(problem, b, chosen)
        if here is None or there is None:
            continue
        ratio = here.price / there.price if there.price > 0 else math.inf
        if best is None or ratio < best[0]:
            best = (ratio, b, here, there)
    if best is None:
        return f"{replica} for a replica"
    ratio, b, here, there = best
    bucket = view.prepared.candidates.buckets[problem.buckets[b]]
    size = f"{bucket.input_tokens} input and {bucket.output_tokens} output tokens"
    beside = [variant_text(problem.variants[w]) for w in here.variants if w != v]
    with_rest = f" (with {beside[0]})" if beside else ""
    rival = " and ".join(variant_text(problem.variants[w]) for w in there.variants)
    figures = f"{_per_million(here)} per million requests of {size}{with_rest}, {_per_million(there)} on {rival}"
    if ratio >= 1.0:
        return f"dearer at every size: at best {figures}"
    return f"cheaper for some sizes ({figures}), but a whole replica for {replica} does not pay for itself"


def _with_rest(problem: ServiceProblem, b: int, v: int) -> _Served | None:
    """Bucket b on v, and where v computes only a part of it, the rest on what is cheapest for that."""
    if problem.loads[b][v] == math.inf:
        return None
    mine = _Served(_price(problem, b, v), (v,))
    role = problem.variants[v].role
    if role is Role.SHARED:
        return mine
    other = Role.DECODE if role is Role.PREFILL else Role.PREFILL
    rest = _cheapest_of(problem, b, range(len(problem.variants)), other)
    return None if rest is None else _together(mine, rest)


def _cheapest(problem: ServiceProblem, b: int, among: Collection[int]) -> _Served | None:
    """Bucket b on what is cheapest of these variants, whole or in parts."""
    prefill, decode = (_cheapest_of(problem, b, among, role) for role in (Role.PREFILL, Role.DECODE))
    ways = [_cheapest_of(problem, b, among, Role.SHARED)]
    ways.append(_together(prefill, decode) if prefill is not None and decode is not None else None)
    return min((way for way in ways if way is not None), key=lambda way: (way.price, way.variants), default=None)


def _cheapest_of(problem: ServiceProblem, b: int, among: Collection[int], role: Role) -> _Served | None:
    able = [w for w in among if problem.variants[w].role is role and problem.loads[b][w] < math.inf]
    if not able:
        return None
    w = min(able, key=lambda w: (_price(problem, b, w), w))
    return _Served(_price(problem, b, w), (w,))


def _together(one: _Served, other: _Served) -> _Served:
    return _Served(one.price + other.price, (*one.variants, *other.variants))


def _price(problem: ServiceProblem, b: int, v: int) -> float:
    return problem.prices[v] * problem.loads[b][v] / problem.rates[b]


def _per_million(served: _Served) -> str:
    return f"{served.price / 3600 * 1e6:.4g} $"
