"""The fleet's integer programme: PuLP for the model, HiGHS to solve it. The readable reference for faster ways.

Sets: services s, request-size buckets b, variants v, parts of a request i (one, or prompt and output tokens), pools p,
replica sizes k.

Data: loads ℓ[s,b,v] (replicas of v that serve bucket b of s, headroom included), prices c[v] as they decide and d[v] as
they are billed, GPUs g[v], running r[s,v], switching cost w[s,v] per added replica, stock S[p,k], usable(n) = what n
replicas can be loaded with.

Variables: replicas n[s,v] ∈ ℤ≥0, shares x[s,b,v] ≥ 0, shares after a loss y[s,p,b,v] ≥ 0, added replicas a[s,v] ≥ 0.

    minimise     Σ c·n + Σ w·a + ε Σ g·n
    demand       Σ_{v computes i} x[s,b,v] = 1                  for all s, b, i
    capacity     Σ_b ℓ[s,b,v]·x[s,b,v] ≤ usable(n[s,v])         for all s, v
    survivable   Σ_{v computes i, v not in p} y[s,p,b,v] = q[s], Σ_b ℓ·y ≤ usable(n)     for all s, spot pools p, b, i
    added        a[s,v] ≥ n[s,v] − r[s,v]                       for all s, v
    stock        Σ_{s, v in p, g[v] ≥ k} g[v]·n[s,v] ≤ S[p,k]   for all p, k
    fleet_cost_cap   Σ d·n ≤ C                                  where the fleet has a cap
    cost_cap, replicas_min, replicas_max, pool_replicas_min, pool_replicas_max, spot_share, pool_share
                 lower ≤ Σ_v weight[v]·n[s,v] ≤ upper           `ServiceProblem.rows`
    steps        n[s,v] ≥ Σ_j (N_j·t_j + e_j), e_j ≤ M_j·t_j, Σ_j t_j ≤ 1, t_j ∈ {0,1}, e_j ≥ 0
                 usable(n[s,v]) = Σ_j (U_j·t_j + D_j·e_j)       where queueing headroom is kept; else usable(n) = n

`added` linearises max(0, n − r): w ≥ 0 pushes a down on it. ε is far below a cent and only orders mixes of equal price.
Constraints carry these names in the model; docs/formulation.md derives them.

The same model with other objectives answers the questions around it (`Goal`): what is the most that can be served,
which stock is missing, how few replicas would do.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import pulp

from medley_planner.programme.goals import LEAVES_UNSERVED, Ending, Goal, Limits, Solution, Unserved
from medley_planner.programme.problem import TIE_USD_PER_GPU_HOUR, FleetProblem, ServiceProblem

__all__ = ["Ending", "Goal", "Limits", "Solution", "solve"]

_SEED = 0
_THREADS = 1
_ABSOLUTE_GAP = 1e-7
_INTEGER_TOLERANCE = 1e-4

_ADDS_STOCK = Goal.LEAST_EXTRA_STOCK

Terms = list[tuple[pulp.LpVariable, float]]
"""A linear expression; each variable once, since PuLP keeps the last of a pair."""


def solve(problem: FleetProblem, goal: Goal, limits: Limits, *, unserved: Unserved = ()) -> Solution:
    """Solve one integer programme.

    Args:
        problem: Services and what they share.
        goal: What to look for.
        limits: Time and gap.
        unserved: How much may stay unserved; priorities that are left out are free, of which `MOST_SERVED` serves the
            highest.
    """
    return _Programme(problem, goal, unserved).solve(limits)


class _Programme:
    """One model under construction; names of variables and constraints are those of the formulation."""

    def __init__(self, problem: FleetProblem, goal: Goal, unserved: Unserved) -> None:
        self.problem = problem
        self.goal = goal
        self.model = pulp.LpProblem("medley", pulp.LpMinimize)
        self.objective: Terms = []
        self.unserved: dict[int, Terms] = {service.priority: [] for service in problem.services}
        self.replicas = [
            [self._replica_variable(s, v) for v in range(len(service.variants))]
            for s, service in enumerate(problem.services)
        ]
        self.pools = sorted({limit.pool for limit in problem.stock})
        self.extra = {pool: self._extra_variable(p) for p, pool in enumerate(self.pools) if goal is _ADDS_STOCK}
        total_rps = math.fsum(rate for service in problem.services for rate in service.rates)
        for s, service in enumerate(problem.services):
            usable = [self._usable(s, v, service) for v in range(len(service.variants))]
            left = self._unserved(s, service, total_rps)
            everything = range(len(service.variants))
            self._served(f"_{s}", service, usable, left, among=everything, share=1.0)
            for p, (_, remaining) in enumerate(service.losses if goal not in LEAVES_UNSERVED else ()):
                survives = service.availability.survivable_share
                self._served(f"_{s}_without_{p}", service, usable, None, among=remaining, share=survives)
            self._count_rows(s, service)
            self._price(s, service)
        self._stock()
        self._fleet_cost_cap()
        for priority, share in unserved:
            self._at_most(f"unserved_{priority}", self.unserved[priority], share)
        free = max((priority for priority in self.unserved if priority not in dict(unserved)), default=None)
        objective = self.unserved[free] if goal is Goal.MOST_SERVED and free is not None else self.objective
        self.model.setObjective(pulp.LpAffineExpression(objective))

    def _replica_variable(self, s: int, v: int) -> pulp.LpVariable:
        upper = self.problem.services[s].useful[v]
        return self.model.add_variable(f"n_{s}_{v}", 0, upper, pulp.LpInteger)

    def _extra_variable(self, p: int) -> pulp.LpVariable:
        return self.model.add_variable(f"extra_{p}", 0, None, pulp.LpInteger)

    def _constrain(self, sense: int, name: str, terms: Terms, bound: float) -> None:
        self.model.addConstraint(pulp.LpConstraint(pulp.LpAffineExpression(terms), sense, name, bound))

    def _at_most(self, name: str, terms: Terms, bound: float) -> None:
        self._constrain(pulp.LpConstraintLE, name, terms, bound)

    def _at_least(self, name: str, terms: Terms, bound: float) -> None:
        self._constrain(pulp.LpConstraintGE, name, terms, bound)

    def _equal(self, name: str, terms: Terms, bound: float) -> None:
        self._constrain(pulp.LpConstraintEQ, name, terms, bound)

    def _usable(self, s: int, v: int, service: ServiceProblem) -> Terms:
        """usable(n) as a linear expression."""
        if not service.queues:
            return [(self.replicas[s][v], 1.0)]
        counted: Terms = [(self.replicas[s][v], -1.0)]
        usable: Terms = []
        chosen: Terms = []
        for j, step in enumerate(service.steps(v)):
            here = self.model.add_variable(f"t_{s}_{v}_{j}", 0, 1, pulp.LpInteger)
            chosen.append((here, 1.0))
            counted.append((here, float(step.replicas)))
            usable.append((here, step.usable))
            if step.more:
                more = self.model.add_variable(f"e_{s}_{v}_{j}", 0, step.more)
                counted.append((more, 1.0))
                usable.append((more, step.slope))
                self._at_most(f"steps_more_{s}_{v}_{j}", [(more, 1.0), (here, -float(step.more))], 0)
        self._at_most(f"steps_{s}_{v}", counted, 0)
        self._at_most(f"steps_one_{s}_{v}", chosen, 1)
        return usable

    def _unserved(self, s: int, service: ServiceProblem, total_rps: float) -> list[pulp.LpVariable] | None:
        """The share of each bucket that nobody serves; None where all must be served."""
        if self.goal not in LEAVES_UNSERVED:
            return None
        variables = [self.model.add_variable(f"u_{s}_{b}", 0, 1) for b in range(len(service.rates))]
        self.unserved[service.priority] += [
            (u, rate / total_rps) for u, rate in zip(variables, service.rates, strict=True)
        ]
        return variables

    def _served(
        self,
        name: str,
        service: ServiceProblem,
        usable: list[Terms],
        unserved: list[pulp.LpVariable] | None,
        *,
        among: Collection[int],
        share: float,
    ) -> None:
        """`demand` and `capacity`, or `survivable`: these variants serve this share of every bucket."""
        used: dict[int, Terms] = {v: [] for v in among}
        for b, loads in enumerate(service.loads):
            shares = {v: self.model.add_variable(f"x{name}_{b}_{v}", 0) for v in among if loads[v] < math.inf}
            for v, variable in shares.items():
                used[v].append((variable, loads[v]))
            for i, part in enumerate(service.parts):
                served: Terms = [(shares[v], 1.0) for v in part if v in shares]
                if unserved is not None:
                    served.append((unserved[b], 1.0))
                self._equal(f"demand{name}_{b}_{i}", served, share)
        for v, terms in used.items():
            if terms:
                self._at_most(f"capacity{name}_{v}", [*terms, *((each, -weight) for each, weight in usable[v])], 0)

    def _count_rows(self, s: int, service: ServiceProblem) -> None:
        for r, row in enumerate(service.rows):
            name = f"{row.constraint}_{s}_{r}"
            terms = [(each, weight) for each, weight in zip(self.replicas[s], row.weights, strict=True) if weight]
            if row.lower is not None:
                self._minimum(name, s, terms, row.lower)
            if row.upper is not None:
                self._at_most(name, terms, row.upper)

    def _minimum(self, name: str, s: int, terms: Terms, minimum: float) -> None:
        if self.goal is Goal.MOST_SERVED:
            return
        if self.goal is Goal.CHEAPEST_OF_MOST_SERVED:
            missing = self.model.add_variable(f"missing_{name}", 0, minimum)
            dearest = max(self.problem.services[s].prices, default=0.0)
            self.objective.append((missing, 10.0 * dearest + 10.0))
            terms = [*terms, (missing, 1.0)]
        self._at_least(name, terms, minimum)

    def _price(self, s: int, service: ServiceProblem) -> None:
        if self.goal is Goal.MOST_SERVED:
            return
        for v, variable in enumerate(self.replicas[s]):
            if self.goal is Goal.FEWEST_REPLICAS:
                self.objective.append((variable, 1.0))
                continue
            price = service.prices[v] + TIE_USD_PER_GPU_HOUR * service.gpus[v]
            if self.goal is _ADDS_STOCK:
                self.objective.append((variable, 1e-6 * price))
            elif self.goal is Goal.LEAST_BILL:
                self.objective.append((variable, service.billed[v] + 1e-6 * price))
            elif service.running[v] == 0:
                self.objective.append((variable, price + service.switching[v]))
            else:
                self.objective.append((variable, price))
                self._added(s, v, service)

    def _added(self, s: int, v: int, service: ServiceProblem) -> None:
        if service.switching[v] > 0:
            added = self.model.add_variable(f"a_{s}_{v}", 0, None)
            self.objective.append((added, service.switching[v]))
            self._at_least(f"added_{s}_{v}", [(added, 1.0), (self.replicas[s][v], -1.0)], -service.running[v])

    def _stock(self) -> None:
        for limit in self.problem.stock:
            terms = self._together([limit.weights(service) for service in self.problem.services])
            if limit.pool in self.extra:
                terms.append((self.extra[limit.pool], -1.0))
            self._at_most(f"stock_{self.pools.index(limit.pool)}_{limit.group}", terms, limit.most)
        for pool, variable in self.extra.items():
            prices = [
                service.prices[v] / service.gpus[v]
                for service in self.problem.services
                for v, variant in enumerate(service.variants)
                if variant.pool == pool
            ]
            self.objective.append((variable, max(prices, default=0.0) + 1e-3))

    def _fleet_cost_cap(self) -> None:
        cap = self.problem.cost_limit
        if cap is not None:
            bill = self._together([cap.weights(service) for service in self.problem.services])
            self._at_most("fleet_cost_cap", bill, cap.most)

    def _together(self, weights: list[tuple[float, ...]]) -> Terms:
        """Σ_s Σ_v weights[s][v]·n[s,v]."""
        return [
            (variable, weight)
            for row, of_service in zip(self.replicas, weights, strict=True)
            for variable, weight in zip(row, of_service, strict=True)
            if weight
        ]

    def solve(self, limits: Limits) -> Solution:
        solver = pulp.HiGHS(
            msg=False,
            threads=_THREADS,
            random_seed=_SEED,
            timeLimit=max(limits.time_limit_s, 0.01),
            gapRel=limits.relative_gap,
            gapAbs=_ABSOLUTE_GAP,
        )
        self.model.solve(solver)
        highs = self.model.solverModel
        seconds = float(highs.getRunTime())
        if self.model.sol_status == pulp.LpSolutionInfeasible:
            return Solution(Ending.INFEASIBLE, seconds=seconds)
        if self.model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
            return Solution(Ending.NOTHING_FOUND, seconds=seconds)
        replicas = tuple(tuple(_whole(variable) for variable in row) for row in self.replicas)
        if any(count < 0 for row in replicas for count in row):
            return Solution(Ending.NOTHING_FOUND, seconds=seconds)
        optimal = self.model.sol_status == pulp.LpSolutionOptimal
        return Solution(
            ending=Ending.OPTIMAL if optimal else Ending.TIME_LIMIT,
            replicas=replicas,
            objective=float(highs.getInfo().objective_function_value),
            bound=float(highs.getInfo().mip_dual_bound),
            extra_gpus=tuple((pool, _whole(variable)) for pool, variable in sorted(self.extra.items())),
            seconds=seconds,
        )


def _whole(variable: pulp.LpVariable) -> int:
    """The integer that the solver means; −1 where its value is none."""
    value = variable.varValue
    if value is None:
        return 0
    nearest = round(value)
    return nearest if abs(value - nearest) <= _INTEGER_TOLERANCE else -1
