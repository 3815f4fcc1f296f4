"""How given replicas share the requests: the split that a router has to realise, and what stays unserved.

The integer programme only needs *some* split to exist.
The one used here keeps the busiest replica as little busy as possible, which is the kindest to latency:

    minimise θ   subject to   Σ_v x[b,v] = 1 for all b,   Σ_b ℓ[b,v]·x[b,v] ≤ θ·n[v] for all v

The replicas serve everything just where θ ≤ 1. Otherwise the split that serves the most requests is used:

    maximise Σ_b λ[b]·Σ_v x[b,v]   subject to   Σ_v x[b,v] ≤ 1,   Σ_b ℓ[b,v]·x[b,v] ≤ n[v]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pulp

from medley_planner.memo import Memo
from medley_planner.problem import LOAD_TOLERANCE, ServiceProblem

_NOISE = 1e-9


class SplitError(RuntimeError):
    """The solver failed on a linear programme that always has a solution."""


@dataclass(frozen=True)
class Split:
    """How replicas share a service's requests.

    Args:
        shares: (b, v, share) of the problem's buckets and variants, positive, sorted.
        served_share: Share of the service's requests that are served.
        loads: Replicas of v that are busy, by v, headroom included; at most n[v].
    """

    shares: tuple[tuple[int, int, float], ...]
    served_share: float
    loads: tuple[float, ...]

    @property
    def serves_all(self) -> bool:
        """Whether no request stays unserved."""
        return self.served_share >= 1.0


def split(service: ServiceProblem, replicas: Sequence[int], memo: Memo) -> Split:
    """The split of a service's requests over so many replicas by variant."""
    counts = tuple(replicas)
    demand = service.fresh()
    return memo.recall(("split", demand, counts), lambda: _split(demand, counts))


def _split(service: ServiceProblem, replicas: tuple[int, ...]) -> Split:
    present = [v for v, count in enumerate(replicas) if count > 0]
    usable = [[v for v in present if load[v] < math.inf] for load in service.loads]
    if all(usable):
        if len(present) <= 1:
            shares = {(b, v): 1.0 for b, variants in enumerate(usable) for v in variants}
        else:
            shares = _balanced(service, replicas, usable)
        balanced = _measured(service, shares, served=[1.0] * len(usable))
        if all(load <= count + LOAD_TOLERANCE for load, count in zip(balanced.loads, replicas, strict=True)):
            return balanced
    return _most_served(service, replicas, usable)


def _balanced(
    service: ServiceProblem, replicas: tuple[int, ...], usable: list[list[int]]
) -> dict[tuple[int, int], float]:
    model = pulp.LpProblem("balanced", pulp.LpMinimize)
    busiest = model.add_variable("theta", 0)
    x = {(b, v): model.add_variable(f"x_{b}_{v}", 0) for b, variants in enumerate(usable) for v in variants}
    model.setObjective(pulp.LpAffineExpression([(busiest, 1.0)]))
    for b, variants in enumerate(usable):
        terms = pulp.LpAffineExpression([(x[b, v], 1.0) for v in variants])
        model.addConstraint(pulp.LpConstraint(terms, pulp.LpConstraintEQ, f"demand_{b}", 1))
    _add_capacity(model, service, x, replicas, busiest)
    values = _solved(model, x)
    totals = [math.fsum(values.get((b, v), 0.0) for v in variants) for b, variants in enumerate(usable)]
    return {(b, v): value / totals[b] for (b, v), value in values.items()}


def _most_served(service: ServiceProblem, replicas: tuple[int, ...], usable: list[list[int]]) -> Split:
    model = pulp.LpProblem("most_served", pulp.LpMaximize)
    x = {(b, v): model.add_variable(f"x_{b}_{v}", 0) for b, variants in enumerate(usable) for v in variants}
    if not x:
        return _measured(service, {}, served=[0.0] * len(usable))
    most = max(service.rates)
    model.setObjective(pulp.LpAffineExpression([(x[b, v], service.rates[b] / most) for b, v in x]))
    for b, variants in enumerate(usable):
        if variants:
            terms = pulp.LpAffineExpression([(x[b, v], 1.0) for v in variants])
            model.addConstraint(pulp.LpConstraint(terms, pulp.LpConstraintLE, f"demand_{b}", 1))
    _add_capacity(model, service, x, replicas, None)
    values = _solved(model, x)
    served = [min(1.0, math.fsum(values.get((b, v), 0.0) for v in variants)) for b, variants in enumerate(usable)]
    return _measured(service, values, served=served)


def _add_capacity(
    model: pulp.LpProblem,
    service: ServiceProblem,
    x: dict[tuple[int, int], pulp.LpVariable],
    replicas: tuple[int, ...],
    busiest: pulp.LpVariable | None,
) -> None:
    for v, count in enumerate(replicas):
        terms = [(variable, service.loads[b][v]) for (b, other), variable in x.items() if other == v]
        if not terms:
            continue
        if busiest is not None:
            terms.append((busiest, -float(count)))
        bound = 0 if busiest is not None else count
        expression = pulp.LpAffineExpression(terms)
        model.addConstraint(pulp.LpConstraint(expression, pulp.LpConstraintLE, f"capacity_{v}", bound))


def _solved(model: pulp.LpProblem, x: dict[tuple[int, int], pulp.LpVariable]) -> dict[tuple[int, int], float]:
    """The solution without what is only the solver's noise."""
    model.solve(pulp.HiGHS(msg=False, threads=1, random_seed=0))
    if model.sol_status != pulp.LpSolutionOptimal:
        raise SplitError(f"{model.name}: the solver ended with {pulp.LpStatus[model.status]}")
    values = {key: float(variable.varValue or 0.0) for key, variable in x.items()}
    return {key: value for key, value in values.items() if value > _NOISE}


def _measured(service: ServiceProblem, shares: dict[tuple[int, int], float], *, served: list[float]) -> Split:
    """The split with what follows from it."""
    loads = [
        math.fsum(service.loads[b][v] * share for (b, other), share in shares.items() if other == v)
        for v in range(len(service.variants))
    ]
    demand_rps = math.fsum(service.rates)
    served_rps = math.fsum(rate * share for rate, share in zip(service.rates, served, strict=True))
    # A request in a billion is the solver's noise, not a shortage.
    share = served_rps / demand_rps if demand_rps > 0 else 1.0
    return Split(
        shares=tuple((b, v, share) for (b, v), share in sorted(shares.items())),
        served_share=1.0 if share >= 1.0 - _NOISE else share,
        loads=tuple(loads),
    )
