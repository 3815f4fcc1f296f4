"""Why a service cannot be planned, told apart by what would have to give way.

Constraints are relaxed one after the other, in the order in which their owner can change them: the price cap, how
replicas must be spread, the bounds on replicas, the stock. The first that makes a plan possible is the reason, and the
least relaxation that does is told with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from medley_planner.capacities.variants import Candidates
from medley_planner.fleet import Availability, Service, Stock
from medley_planner.infeasible.spread import spread_words, unkept_spread
from medley_planner.infeasible.trouble import Trouble
from medley_planner.programme.cheapest import least_price, servable_alone, solve_pruned
from medley_planner.programme.held import crowded_pools
from medley_planner.programme.memo import Memo
from medley_planner.programme.milp import Goal, Limits
from medley_planner.programme.problem import FleetProblem, ServiceProblem, stock_limits
from medley_planner.result import Binding, Outcome
from medley_planner.wording import listed, money, plural, rate

__all__ = ["Trouble", "diagnose", "nothing_fits"]

_CAP_STEPS_PER_USD = 10_000


def nothing_fits(service: Service, candidates: Candidates) -> Trouble | None:
    """The trouble that some request size is served nowhere; None where every size is."""
    unserved = candidates.unserved
    if not unserved or service.rate_rps == 0:
        return None
    share = math.fsum(bucket.weight for bucket in unserved)
    heaviest = max(unserved, key=lambda bucket: (bucket.weight, bucket.input_tokens, bucket.output_tokens))
    size = f"{heaviest.input_tokens} input and {heaviest.output_tokens} output tokens"
    index = candidates.buckets.index(heaviest)
    limits: dict[str, list[str]] = {}
    for candidate in candidates.usable:
        limits.setdefault(candidate.capacities.details[index], []).append(str(candidate.variant))
    for rejection in candidates.rejected:
        limits.setdefault(rejection.detail, []).append(str(rejection.variant))
    details = [f"{listed(variants)}: {detail}" for detail, variants in limits.items()]
    why = f" ({'; '.join(details[:2])})" if details else ""
    message = (
        f"No allowed GPU serves {plural(len(unserved), 'request size')} of {len(candidates.buckets)}, "
        f"{100 * share:.3g} % of the requests; the most frequent has {size}{why}"
    )
    return Trouble(Outcome.NO_GPU_FITS, message, (Binding("demand", size, message),))


def diagnose(
    service: Service, problem: ServiceProblem, stock: Mapping[str, Stock], limits: Limits, memo: Memo
) -> Trouble | None:
    """The trouble that keeps a service from being planned even alone; None where there is none, or only stock is short.

    Args:
        service: The service.
        problem: The same in figures.
        stock: What it may use.
        limits: Gap and time of a solve.
        memo: Keeps solutions by problem.
    """
    alone = FleetProblem((problem,), stock_limits((problem,), stock))
    if servable_alone(alone, limits, memo):
        return None
    if not _fits(service, stock):
        return None
    return (
        _cap(service, problem, stock, limits, memo)
        or unkept_spread(problem, stock, limits, memo)
        or _bounds(service, problem, stock, limits, memo)
    )


def _fits(service: Service, stock: Mapping[str, Stock]) -> bool:
    """Whether what runs still finds its GPUs; where it does not, nothing can be kept and the stock is the trouble."""
    pools = {variant.pool for variant, count in service.running.items() if count > 0}
    return pools <= set(stock) and not crowded_pools(stock, [service.running])


def _cap(
    service: Service, problem: ServiceProblem, stock: Mapping[str, Stock], limits: Limits, memo: Memo
) -> Trouble | None:
    if problem.cost_cap is None:
        return None
    uncapped = replace(problem, cost_cap=None)
    alone = FleetProblem((uncapped,), stock_limits((uncapped,), stock))
    solution = solve_pruned(alone, Goal.LEAST_BILL, limits, memo)
    if not solution.found:
        return None
    nearest = math.ceil(uncapped.bill(solution.replicas[0]) * _CAP_STEPS_PER_USD - 1e-3) / _CAP_STEPS_PER_USD
    detail = (
        f"serving {rate(service.rate_rps)} within the objectives costs at least {money(nearest)}, "
        f"{money(nearest - problem.cost_cap)} more than the cap of {money(problem.cost_cap)}"
    )
    binding = Binding("cost_cap", "maxCostPerHour", detail)
    return Trouble(Outcome.CAP_TOO_LOW, detail[0].upper() + detail[1:], (binding,), nearest)


def _bounds(
    service: Service, problem: ServiceProblem, stock: Mapping[str, Stock], limits: Limits, memo: Memo
) -> Trouble | None:
    if _only_stock_is_short(problem, stock, limits, memo):
        return None
    unbounded = replace(
        problem, cost_cap=None, replicas_min=0, replicas_max=None, pool_bounds=(), availability=Availability()
    )
    alone = FleetProblem((unbounded,), stock_limits((unbounded,), stock))
    fewest = solve_pruned(alone, Goal.FEWEST_REPLICAS, limits, memo)
    if not fewest.found:
        return None
    bindings = tuple(_violated(problem, sum(fewest.replicas[0]))) or (_conflicting(problem),)
    message = "; ".join(binding.detail for binding in bindings)
    return Trouble(
        Outcome.REPLICA_BOUNDS,
        f"The bounds on replicas exclude every mix that serves {rate(service.rate_rps)}: {message}",
        bindings,
    )


def _only_stock_is_short(problem: ServiceProblem, stock: Mapping[str, Stock], limits: Limits, memo: Memo) -> bool:
    """Whether lower bounds and spread alone ask for more than stock holds, and with more stock all would be well."""
    pool_bounds = tuple(replace(bounds, minimum=0) for bounds in problem.pool_bounds)
    free = replace(problem, replicas_min=0, pool_bounds=pool_bounds, availability=Availability())
    within_stock = FleetProblem((free,), stock_limits((free,), stock))
    return (
        least_price(FleetProblem((problem,), ()), limits, memo).found and least_price(within_stock, limits, memo).found
    )


def _violated(problem: ServiceProblem, needed: int) -> Iterator[Binding]:
    """Bounds that no mix can keep, each by itself."""
    if problem.replicas_max is not None and needed > problem.replicas_max:
        detail = f"at least {plural(needed, 'replica')} are needed, at most {problem.replicas_max} are allowed"
        yield Binding("replicas_max", "maxReplicas", detail)
    usable = {variant.pool for variant in problem.variants}
    for bounds in problem.pool_bounds:
        if bounds.minimum > 0 and bounds.pool not in usable:
            detail = (
                f"at least {plural(bounds.minimum, 'replica')} in {bounds.pool} are asked for, where none can serve"
            )
            yield Binding("pool_replicas_min", bounds.pool, detail)


def _conflicting(problem: ServiceProblem) -> Binding:
    """Bounds that are only together too tight."""
    words = [f"at least {problem.replicas_min} in all"] if problem.replicas_min > 1 else []
    words += [f"at most {problem.replicas_max} in all"] if problem.replicas_max is not None else []
    for bounds in problem.pool_bounds:
        words += [f"at least {bounds.minimum} in {bounds.pool}"] if bounds.minimum > 0 else []
        words += [f"at most {bounds.maximum} in {bounds.pool}"] if bounds.maximum is not None else []
    words += spread_words(problem)
    if problem.cost_cap is not None:
        words.append(f"at most {money(problem.cost_cap)}")
    return Binding("replicas_max", "scaling", f"no mix keeps {listed(words)} together")
