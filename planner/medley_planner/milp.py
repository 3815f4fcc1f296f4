"""The fleet's integer programme: PuLP for the model, HiGHS to solve it.

Sets: services s, request-size buckets b, variants v, pools p, replica sizes k.

Data: loads ℓ[s,b,v] (replicas of v that serve bucket b of s, headroom included), prices c[v], GPUs g[v], running
r[s,v], switching cost w[s,v] per added replica, stock S[p,k].

Variables: replicas n[s,v] ∈ ℤ≥0, shares x[s,b,v] ≥ 0, added replicas a[s,v] ≥ 0.

    minimise     Σ c·n + Σ w·a + ε Σ g·n
    demand       Σ_v x[s,b,v] = 1                          for all s, b
    capacity     Σ_b ℓ[s,b,v]·x[s,b,v] ≤ n[s,v]            for all s, v
    added        a[s,v] ≥ n[s,v] − r[s,v]                  for all s, v
    stock        Σ_{s, v in p, g[v] ≥ k} g[v]·n[s,v] ≤ S[p,k]   for all p, k
    cost_cap     Σ_v c[v]·n[s,v] ≤ C[s]                    where s has a cap
    replicas_min, replicas_max, pool_replicas_min, pool_replicas_max   where s has bounds

`added` linearises max(0, n − r): w ≥ 0 pushes a down on it. ε is far below a cent and only orders mixes of equal price.
Constraints carry these names in the model; docs/formulation.md derives them.

The same model with other objectives answers the questions around it (`Goal`): what is the most that can be served,
which stock is missing, how few replicas would do.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import pulp

from medley_planner.problem import TIE_USD_PER_GPU_HOUR, FleetProblem, ServiceProblem

_SEED = 0
_THREADS = 1
_ABSOLUTE_GAP = 1e-7
_INTEGER_TOLERANCE = 1e-4


class Goal(enum.Enum):
    """What the programme looks for."""

    CHEAPEST = "cheapest"
    """The cheapest mixes that serve everything."""
    MOST_SERVED = "most served"
    """Mixes that leave the least demand unserved, in requests per second; lower bounds on replicas do not count."""
    CHEAPEST_OF_MOST_SERVED = "cheapest of most served"
    """Of those that leave no more than `least_unserved`: lower bounds kept as stock allows, then the cheapest."""
    LEAST_EXTRA_STOCK = "least extra stock"
    """Mixes that serve everything with GPUs beyond the stock, as few dollars' worth as possible."""
    FEWEST_REPLICAS = "fewest replicas"
    """Mixes that serve everything with as few replicas as possible."""


class Ending(enum.Enum):
    """How a solve ended."""

    OPTIMAL = "optimal"
    TIME_LIMIT = "time limit"
    """Feasible; how far from the optimum, `bound` says."""
    INFEASIBLE = "infeasible"
    NOTHING_FOUND = "nothing found"
    """The time ended first, or the solver failed: nothing is known."""


@dataclass(frozen=True)
class Limits:
    """How long and how exactly to solve."""

    time_limit_s: float
    relative_gap: float


@dataclass(frozen=True)
class Solution:
    """What a solve found.

    Args:
        ending: How it ended.
        replicas: n[s][v], integers; empty where there is no solution.
        objective: Value of the goal's objective.
        bound: Proven bound on it.
        extra_gpus: With `LEAST_EXTRA_STOCK`: GPUs wanted beyond the stock, by pool.
        seconds: Time the solver took.
    """

    ending: Ending
    replicas: tuple[tuple[int, ...], ...] = ()
    objective: float = math.inf
    bound: float = -math.inf
    extra_gpus: tuple[tuple[str, int], ...] = ()
    seconds: float = 0.0

    @property
    def found(self) -> bool:
        """Whether there are mixes."""
        return self.ending in (Ending.OPTIMAL, Ending.TIME_LIMIT)


_ADDS_STOCK = Goal.LEAST_EXTRA_STOCK
_LEAVES_UNSERVED = (Goal.MOST_SERVED, Goal.CHEAPEST_OF_MOST_SERVED)


def solve(problem: FleetProblem, goal: Goal, limits: Limits, *, least_unserved: float = 0.0) -> Solution:
    """Solve one integer programme.

    Args:
        problem: Services and the stock they share.
        goal: What to look for.
        limits: Time and gap.
        least_unserved: With `CHEAPEST_OF_MOST_SERVED`: share of all requests that may stay unserved.
    """
    return _Programme(problem, goal, least_unserved).solve(limits)


class _Programme:
    """One model under construction; names of variables and constraints are those of the formulation."""

    def __init__(self, problem: FleetProblem, goal: Goal, least_unserved: float) -> None:
        self.problem = problem
        self.goal = goal
        self.model = pulp.LpProblem("medley", pulp.LpMinimize)
        self.objective: list[tuple[pulp.LpVariable, float]] = []  # each variable once: PuLP keeps the last of a pair
        self.unserved: list[tuple[pulp.LpVariable, float]] = []
        self.replicas = [
            [self._replica_variable(s, v) for v in range(len(service.variants))]
            for s, service in enumerate(problem.services)
        ]
        self.pools = sorted({limit.pool for limit in problem.stock})
        self.extra = {pool: self._extra_variable(p) for p, pool in enumerate(self.pools) if goal is _ADDS_STOCK}
        total_rps = math.fsum(rate for service in problem.services for rate in service.rates)
        for s, service in enumerate(problem.services):
            self._demand_and_capacity(s, service, total_rps)
            self._count_rows(s, service)
            self._price(s, service)
        self._stock()
        if goal is Goal.CHEAPEST_OF_MOST_SERVED:
            self._at_most("unserved", self.unserved, least_unserved)
        objective = self.unserved if goal is Goal.MOST_SERVED else self.objective
        self.model.setObjective(pulp.LpAffineExpression(objective))

    def _replica_variable(self, s: int, v: int) -> pulp.LpVariable:
        upper = self.problem.services[s].useful[v]
        return self.model.add_variable(f"n_{s}_{v}", 0, upper, pulp.LpInteger)

    def _extra_variable(self, p: int) -> pulp.LpVariable:
        return self.model.add_variable(f"extra_{p}", 0, None, pulp.LpInteger)

    def _at_most(self, name: str, terms: list[tuple[pulp.LpVariable, float]], bound: float) -> None:
        expression = pulp.LpAffineExpression(terms)
        self.model.addConstraint(pulp.LpConstraint(expression, pulp.LpConstraintLE, name, bound))

    def _at_least(self, name: str, terms: list[tuple[pulp.LpVariable, float]], bound: float) -> None:
        expression = pulp.LpAffineExpression(terms)
        self.model.addConstraint(pulp.LpConstraint(expression, pulp.LpConstraintGE, name, bound))

    def _demand_and_capacity(self, s: int, service: ServiceProblem, total_rps: float) -> None:
        used: list[list[tuple[pulp.LpVariable, float]]] = [[] for _ in service.variants]
        for b, loads in enumerate(service.loads):
            served: list[tuple[pulp.LpVariable, float]] = []
            for v, load in enumerate(loads):
                if load < math.inf:
                    share = self.model.add_variable(f"x_{s}_{b}_{v}", 0, None)
                    served.append((share, 1.0))
                    used[v].append((share, load))
            if self.goal in _LEAVES_UNSERVED:
                unserved = self.model.add_variable(f"u_{s}_{b}", 0, 1)
                served.append((unserved, 1.0))
                self.unserved.append((unserved, service.rates[b] / total_rps))
            expression = pulp.LpAffineExpression(served)
            self.model.addConstraint(pulp.LpConstraint(expression, pulp.LpConstraintEQ, f"demand_{s}_{b}", 1))
        for v, terms in enumerate(used):
            self._at_most(f"capacity_{s}_{v}", [*terms, (self.replicas[s][v], -1.0)], 0)

    def _count_rows(self, s: int, service: ServiceProblem) -> None:
        for r, row in enumerate(service.rows):
            name = f"{row.constraint}_{s}_{r}"
            terms = [
                (variable, weight) for variable, weight in zip(self.replicas[s], row.weights, strict=True) if weight
            ]
            if row.lower is not None:
                self._minimum(name, s, terms, row.lower)
            if row.upper is not None:
                self._at_most(name, terms, row.upper)

    def _minimum(self, name: str, s: int, terms: list[tuple[pulp.LpVariable, float]], minimum: float) -> None:
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
            terms = [
                (self.replicas[s][v], float(service.gpus[v]))
                for s, service in enumerate(self.problem.services)
                for v, variant in enumerate(service.variants)
                if variant.pool == limit.pool and service.gpus[v] >= limit.group
            ]
            if limit.pool in self.extra:
                terms.append((self.extra[limit.pool], -1.0))
            self._at_most(f"stock_{self.pools.index(limit.pool)}_{limit.group}", terms, limit.most)
        if self.problem.cost_limit is not None:
            bill = [
                (variable, weight)
                for s, service in enumerate(self.problem.services)
                for variable, weight in zip(self.replicas[s], self.problem.cost_limit.weights(service), strict=True)
            ]
            self._at_most("fleet_cost_cap", bill, self.problem.cost_limit.most)
        for pool, variable in self.extra.items():
            prices = [
                service.prices[v] / service.gpus[v]
                for service in self.problem.services
                for v, variant in enumerate(service.variants)
                if variant.pool == pool
            ]
            self.objective.append((variable, max(prices, default=0.0) + 1e-3))

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
