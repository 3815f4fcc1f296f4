"""Why this mix: what binds it, what other fleets would cost, and what keeps every other variant out.

All of it holds with the stock that the other services leave.
The answers are small programmes of one service each.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from medley_planner.binding import View, ample, binding
from medley_planner.fleet import Stock, Variant
from medley_planner.memo import Memo
from medley_planner.outlook import Outlook
from medley_planner.problem import ServiceProblem, remaining_stock, stock_limits
from medley_planner.result import Alternative, FleetPlan, MixEntry, Outcome, Rejection, ServicePlan
from medley_planner.split import split
from medley_planner.wording import counts_text, mix_text, money, percent, plural, variant_text


def explained(ready: Outlook, fleet_plan: FleetPlan, memo: Memo, *, only: Collection[str] | None = None) -> FleetPlan:
    """The plan with the explanation of these services, or of all."""
    return replace(
        fleet_plan,
        services=tuple(
            explain(ready, fleet_plan, each.name, memo) if only is None or each.name in only else each
            for each in fleet_plan.services
        ),
    )


def explain(ready: Outlook, fleet_plan: FleetPlan, name: str, memo: Memo) -> ServicePlan:
    """The plan of one service with its binding constraints, alternatives and rejections, and its sentence completed."""
    its_plan = fleet_plan.service(name)
    others = [
        {entry.variant: entry.replicas for entry in other.mix} for other in fleet_plan.services if other.name != name
    ]
    stock = remaining_stock(ready.stock, others)
    view = View(ready.prepared[name], its_plan, ready.pools, stock, ready.limits, memo)
    alternatives = tuple(_alternatives(view)) if its_plan.outcome is not Outcome.NO_GPU_FITS else ()
    explained_plan = replace(
        its_plan,
        binding=its_plan.binding or (tuple(binding(view)) if its_plan.outcome is Outcome.PLANNED else ()),
        alternatives=tuple(sorted(alternatives, key=_cheapest_first)),
        rejected=tuple(sorted((*its_plan.rejected, *_not_chosen(view)), key=lambda each: each.variant)),
    )
    return replace(explained_plan, reason=its_plan.reason + _against_single_type(explained_plan))


def _cheapest_first(alternative: Alternative) -> tuple[float, str]:
    cost = alternative.cost_usd_per_hour
    return (math.inf if cost is None else cost, alternative.name)


def _against_single_type(plan: ServicePlan) -> str:
    """How the mix compares with the best pool alone; empty where the mix is that pool."""
    if plan.outcome is not Outcome.PLANNED or len({entry.variant.pool for entry in plan.mix}) < 2:
        return ""
    single = [each for each in plan.alternatives if each.name.startswith("only ") and each.cost_usd_per_hour]
    if not single:
        return "; no pool alone could serve it"
    best = single[0]
    cost = best.cost_usd_per_hour or 0.0
    saved = percent((cost - plan.cost_usd_per_hour) / cost)
    return f"; the best single pool, {mix_text(best.mix)}, would cost {money(cost)}: {saved} saved"


def _alternatives(view: View) -> Iterator[Alternative]:
    """The best of every pool alone, and the best without each pool of the mix."""
    problem = view.problem
    used = sorted({entry.variant.pool for entry in view.plan.mix})
    for pool in sorted({variant.pool for variant in problem.variants}):
        if used != [pool]:
            here = [v for v, variant in enumerate(problem.variants) if variant.pool == pool]
            yield _alternative(view, f"only {pool}", problem.only(here))
    for pool in used:
        elsewhere = [v for v, variant in enumerate(problem.variants) if variant.pool != pool]
        yield _alternative(view, f"without {pool}", problem.only(elsewhere))


def _alternative(view: View, name: str, problem: ServiceProblem) -> Alternative:
    solution = view.best(problem, view.stock) if problem.variants else None
    if solution is None or not solution.found:
        return Alternative(name, (), None, None, _why_not(view, problem))
    mix = tuple(
        MixEntry(
            variant=problem.variants[v],
            replicas=count,
            gpus=count * problem.gpus[v],
            cost_usd_per_hour=count * problem.prices[v],
            utilisation=load / count * (1.0 - view.prepared.service.headroom),
        )
        for v, (count, load) in enumerate(
            zip(solution.replicas[0], split(problem, solution.replicas[0], view.memo).loads, strict=True)
        )
        if count > 0
    )
    extra = solution.objective - view.plan.cost_usd_per_hour
    difference = f"{money(abs(extra))} {'more' if extra >= 0 else 'less'}"
    return Alternative(
        name, mix, solution.objective, extra, f"{mix_text(mix)} for {money(solution.objective)}, {difference}"
    )


def _why_not(view: View, problem: ServiceProblem) -> str:
    """What stands in the way: sizes, then stock, then the cap, then the bounds on replicas."""
    unserved = [b for b, load in enumerate(problem.loads) if all(each == math.inf for each in load)]
    if not problem.variants or unserved:
        return _unserved_text(view, unserved) if problem.variants else "no other pool can serve any of it"
    ample = view.best(problem, _plenty(view.stock))
    if ample.found:
        cost, mix = (
            ample.objective,
            counts_text(
                (variant, count)
                for variant, count in zip(problem.variants, ample.replicas[0], strict=True)
                if count > 0
            ),
        )
        short = [
            f"{max(0, limit.gpus)} of {limit.used_by(problem, ample.replicas[0])} GPUs of {limit.pool}"
            for limit in stock_limits((problem,), view.stock)
            if limit.used_by(problem, ample.replicas[0]) > limit.gpus
        ]
        return f"stock is short: {mix} for {money(cost)} would do, of which there are {', '.join(dict.fromkeys(short))}"
    uncapped = view.best(replace(problem, cost_cap=None), _plenty(view.stock))
    if uncapped.found and problem.cost_cap is not None:
        return f"{money(uncapped.objective)}, more than the cap of {money(problem.cost_cap)}"
    return "the bounds on replicas exclude it"


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


def _not_chosen(view: View) -> Iterator[Rejection]:
    """Usable variants that are not in the mix."""
    if view.plan.outcome is Outcome.NO_GPU_FITS:
        yield from _without_some_size(view)
        return
    in_mix = {entry.variant for entry in view.plan.mix}
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
            yield Rejection(variant, "CostsMore", _costs_more(view, v, in_mix))


def _without_some_size(view: View) -> Iterator[Rejection]:
    """Why the usable variants do not serve the most frequent of the sizes that none serves."""
    candidates = view.prepared.candidates
    unserved = max(candidates.unserved, key=lambda bucket: (bucket.weight, bucket.input_tokens, bucket.output_tokens))
    index = candidates.buckets.index(unserved)
    for candidate in candidates.usable:
        capacity = candidate.capacities[index]
        yield Rejection(candidate.variant, capacity.reason, capacity.detail)


def _costs_more(view: View, v: int, in_mix: set[Variant]) -> str:
    """The size at which the variant compares best with the mix, in dollars per million requests."""
    problem = view.problem
    chosen = [other for other, variant in enumerate(problem.variants) if variant in in_mix]
    best: tuple[float, int, float, float, int] | None = None
    for b, load in enumerate(problem.loads):
        if load[v] == math.inf:
            continue
        here = problem.prices[v] * load[v] / problem.rates[b]
        there, other = min(
            ((problem.prices[w] * load[w] / problem.rates[b], w) for w in chosen if load[w] < math.inf),
            default=(math.inf, -1),
        )
        ratio = here / there if there > 0 else math.inf
        if best is None or ratio < best[0]:
            best = (ratio, b, here, there, other)
    if best is None or best[4] < 0:
        return f"{money(problem.prices[v])} for a replica"
    ratio, b, here, there, other = best
    bucket = view.prepared.candidates.buckets[problem.buckets[b]]
    size = f"{bucket.input_tokens} input and {bucket.output_tokens} output tokens"
    rival = variant_text(problem.variants[other])
    figures = f"{_per_million(here)} per million requests of {size}, {_per_million(there)} on {rival}"
    if ratio >= 1.0:
        return f"dearer at every size: at best {figures}"
    replica = f"a whole replica for {money(problem.prices[v])}"
    return f"cheaper for some sizes ({figures}), but {replica} does not pay for itself"


def _per_million(usd_per_hour_per_rps: float) -> str:
    return f"{usd_per_hour_per_rps / 3600 * 1e6:.4g} $"
