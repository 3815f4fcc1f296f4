"""The programme over replicas as a sparse matrix for HiGHS: columns, rows that hold from the start, cuts as they come.

The rows are those of `milp.py` without demand and capacity, which the cuts of `serving.py` stand for:

    minimise     Σ c·n + Σ w·a + ε Σ g·n
    cuts         Σ_v y[v]·usable(n[s,v]) (+ θ[s]) ≥ φ(y)
    added, steps, stock, fleet_cost_cap and the rows of each service
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import highspy
import numpy as np
import numpy.typing as npt

from medley_planner.programme.goals import LEAVES_UNSERVED, Goal, Unserved
from medley_planner.programme.problem import (
    LOAD_TOLERANCE,
    TIE_USD_PER_GPU_HOUR,
    FleetProblem,
    ServiceProblem,
    StockLimit,
)
from medley_planner.programme.serving import Cut
from medley_planner.programme.sparse import Array, SparseModel, Term

_INFINITY = highspy.kHighsInf

_SEARCH_OPTIONS = (
    ("mip_heuristic_run_rins", False),
    ("mip_heuristic_run_rens", False),
    ("mip_heuristic_run_root_reduced_cost", False),
    ("mip_heuristic_run_feasibility_jump", False),
    ("mip_detect_symmetry", False),
    ("mip_allow_restart", False),
    ("mip_abs_gap", 1e-8),
    ("mip_feasibility_tolerance", 1e-8),
    ("primal_feasibility_tolerance", 1e-9),
)
"""Programmes of a few dozen rows: most of what helps large ones costs more here than the search itself."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ServiceVariables:
    """Columns of one service.

    Args:
        replicas: Of n[v].
        usable: usable(n[v]) as terms; empty where it is n[v] itself.
        unserved: Of θ, requests per second that stay unserved; −1 where all must be served.
    """

    replicas: Indices
    usable: tuple[tuple[Term, ...], ...]
    unserved: int


@dataclass(frozen=True)
class Variables:
    """Columns of the programme."""

    services: tuple[ServiceVariables, ...]
    extra: tuple[tuple[str, int], ...]

    def usable(self, s: int, values: Array) -> Array:
        """usable(n[v]) of a service in a solution."""
        each = self.services[s]
        if not each.usable:
            return np.asarray(values[each.replicas])
        return np.array([math.fsum(values[column] * weight for column, weight in terms) for terms in each.usable])

    def unserved(self, s: int, values: Array) -> float:
        """θ of a service in a solution."""
        column = self.services[s].unserved
        return 0.0 if column < 0 else float(values[column])

    def extra_gpus(self, values: Array) -> tuple[tuple[str, int], ...]:
        """GPUs wanted beyond the stock, by pool."""
        return tuple((pool, round(float(values[column]))) for pool, column in self.extra)


@dataclass(frozen=True)
class Found:
    """What one run of the solver gave."""

    infeasible: bool
    values: Array | None
    objective: float
    bound: float
    seconds: float


class Programme:
    """The programme over replicas of some services; cuts are added to it as they are found.

    The solver gets it when it is first asked: where looking at mixes is enough, it never is.
    """

    def __init__(self, problem: FleetProblem, goal: Goal, unserved: Unserved) -> None:
        self._problem = problem
        self._goal = goal
        self._model = SparseModel()
        self._total_rps = math.fsum(rate for service in problem.services for rate in service.rates)
        known = dict(unserved)
        free = [service.priority for service in problem.services if service.priority not in known]
        self._first = max(free, default=0)
        pools = sorted({limit.pool for limit in problem.stock})
        self._extra = {pool: self._extra_column(pool) for pool in pools if goal is Goal.LEAST_EXTRA_STOCK}
        services = tuple(self._service(service) for service in problem.services)
        self.variables = Variables(services, tuple(sorted(self._extra.items())))
        for limit in problem.shared:
            terms = [
                (int(column), weight)
                for each, service in zip(services, problem.services, strict=True)
                for column, weight in zip(each.replicas, limit.weights(service), strict=True)
                if weight
            ]
            if isinstance(limit, StockLimit) and limit.pool in self._extra:
                terms.append((self._extra[limit.pool], -1.0))
            self._model.row(terms, upper=limit.most)
        for priority, share in unserved:
            left = [
                each.unserved for each, of in zip(services, problem.services, strict=True) if of.priority == priority
            ]
            self._model.row([(column, 1.0) for column in left], upper=share * self._total_rps)
        costs = np.array(self._model.costs, dtype=np.float64)
        self._own_costs = [costs[each.replicas] for each in services]
        self._surcharges = [np.zeros(len(each.replicas)) for each in services]
        self._cuts: list[tuple[int, Cut]] = []
        """(service, cut) by row of the solver after those of the model."""
        self._passed = 0
        self._solver: highspy.Highs | None = None
        self._searches = any(self._model.whole)

    def unit_costs(self, s: int) -> Array:
        """What one more replica of each variant costs at least, in the goal's terms, surcharges included."""
        return self._own_costs[s] + self._surcharges[s]

    def charge(self, surcharges: Sequence[Array]) -> None:
        """Make the replicas of each service cost so much more, by variant."""
        self._surcharges = list(surcharges)
        if self._solver is not None:
            self._pass_costs(self._solver)

    def _highs(self) -> highspy.Highs:
        """The solver with all cuts."""
        if self._solver is None:
            self._solver = self._model.passed(_SEARCH_OPTIONS)
            self._pass_costs(self._solver)
        for s, cut in self._cuts[self._passed :]:
            self._pass_cut(self._solver, s, cut)
        self._passed = len(self._cuts)
        return self._solver

    def _pass_costs(self, highs: highspy.Highs) -> None:
        for s, each in enumerate(self.variables.services):
            for column, cost in zip(each.replicas.tolist(), self.unit_costs(s).tolist(), strict=True):
                highs.changeColCost(column, cost)

    def _extra_column(self, pool: str) -> int:
        prices = [
            service.prices[v] / service.gpus[v]
            for service in self._problem.services
            for v, variant in enumerate(service.variants)
            if variant.pool == pool
        ]
        return self._model.column(max(prices, default=0.0) + 1e-3, whole=True)

    def _service(self, service: ServiceProblem) -> ServiceVariables:
        costs = [self._unit_cost(service, v) for v in range(len(service.variants))]
        columns = [self._model.column(cost, most, whole=True) for cost, most in zip(costs, service.useful, strict=True)]
        usable = tuple(self._steps(service, v, column) for v, column in enumerate(columns)) if service.queues else ()
        unserved = -1
        if self._goal in LEAVES_UNSERVED:
            first = self._goal is Goal.MOST_SERVED and service.priority == self._first
            cost = 1.0 / self._total_rps if first and self._total_rps > 0 else 0.0
            unserved = self._model.column(cost, math.fsum(service.rates))
        for row in service.rows:
            terms = [(column, weight) for column, weight in zip(columns, row.weights, strict=True) if weight]
            if row.lower is not None:
                self._minimum(service, terms, row.lower)
            if row.upper is not None:
                self._model.row(terms, upper=row.upper)
        for v, column in enumerate(columns):
            if self._goal in (Goal.CHEAPEST, Goal.CHEAPEST_OF_MOST_SERVED) and self._pays_to_grow(service, v):
                added = self._model.column(service.switching[v])
                self._model.row([(added, 1.0), (column, -1.0)], lower=-float(service.running[v]))
        return ServiceVariables(np.array(columns, dtype=np.int64), usable, unserved)

    @staticmethod
    def _pays_to_grow(service: ServiceProblem, v: int) -> bool:
        return service.running[v] > 0 and service.switching[v] > 0

    def _unit_cost(self, service: ServiceProblem, v: int) -> float:
        price = service.prices[v] + TIE_USD_PER_GPU_HOUR * service.gpus[v]
        match self._goal:
            case Goal.MOST_SERVED:
                return 0.0
            case Goal.FEWEST_REPLICAS:
                return 1.0
            case Goal.LEAST_EXTRA_STOCK:
                return 1e-6 * price
            case Goal.LEAST_BILL:
                return service.billed[v] + 1e-6 * price
            case _:
                return price if self._pays_to_grow(service, v) else price + service.switching[v]

    def _minimum(self, service: ServiceProblem, terms: list[Term], minimum: float) -> None:
        if self._goal is Goal.MOST_SERVED:
            return
        if self._goal is Goal.CHEAPEST_OF_MOST_SERVED:
            missing = self._model.column(10.0 * max(service.prices, default=0.0) + 10.0, minimum)
            terms = [*terms, (missing, 1.0)]
        self._model.row(terms, lower=minimum)

    def _steps(self, service: ServiceProblem, v: int, replicas: int) -> tuple[Term, ...]:
        """usable(n) in terms of the steps' columns, and the rows that tie them to n."""
        counted: list[Term] = [(replicas, -1.0)]
        usable: list[Term] = []
        chosen: list[Term] = []
        for step in service.steps(v):
            here = self._model.column(0.0, 1.0, whole=True)
            chosen.append((here, 1.0))
            counted.append((here, float(step.replicas)))
            usable.append((here, step.usable))
            if step.more:
                more = self._model.column(0.0, float(step.more))
                counted.append((more, 1.0))
                usable.append((more, step.slope))
                self._model.row([(more, 1.0), (here, -float(step.more))], upper=0.0)
        self._model.row(counted, upper=0.0)
        self._model.row(chosen, upper=1.0)
        return tuple(usable)

    def add_cuts(self, s: int, cuts: Sequence[Cut]) -> int:
        """Add cuts of a service; how many were added."""
        self._cuts += [(s, cut) for cut in cuts]
        return len(cuts)

    def _pass_cut(self, highs: highspy.Highs, s: int, cut: Cut) -> None:
        each = self.variables.services[s]
        scale = 1.0 / cut.least
        terms: dict[int, float] = {}
        for v, weight in enumerate((cut.weights * scale).tolist()):
            if weight > 0.0:
                for column, times in each.usable[v] if each.usable else ((int(each.replicas[v]), 1.0),):
                    terms[column] = terms.get(column, 0.0) + weight * times
        if each.unserved >= 0:
            terms[each.unserved] = scale
        columns = np.array(list(terms), dtype=np.int32)
        highs.addRow(1.0, _INFINITY, len(terms), columns, np.array(list(terms.values())))

    def forget_cuts(self, s: int, places: Collection[int]) -> None:
        """Take cuts of a service out, by their places in the order in which they were added."""
        own = [row for row, (owner, _) in enumerate(self._cuts) if owner == s]
        gone = {own[place] for place in places}
        passed = sorted(row for row in gone if row < self._passed)
        if self._solver is not None and passed:
            first = len(self._model.rows)
            self._solver.deleteRows(len(passed), np.array([first + row for row in passed], dtype=np.int32))
        self._passed -= len(passed)
        self._cuts = [cut for row, cut in enumerate(self._cuts) if row not in gone]

    def relax(self) -> Found:
        """Solve without asking for whole numbers."""
        highs = self._highs()
        highs.setOptionValue("solve_relaxation", True)
        return self._run(highs)

    def solve(self, time_limit_s: float, relative_gap: float, *, nodes: int | None = None) -> Found:
        """Solve the integer programme with the cuts so far, looking at so many nodes of its search tree at most."""
        highs = self._highs()
        highs.setOptionValue("mip_max_nodes", highspy.kHighsIInf if nodes is None else nodes)
        highs.setOptionValue("solve_relaxation", False)
        highs.setOptionValue("time_limit", max(time_limit_s, 0.01))
        highs.setOptionValue("mip_rel_gap", relative_gap)
        return self._run(highs)

    def _run(self, highs: highspy.Highs) -> Found:
        before = float(highs.getRunTime())
        highs.run()
        seconds = float(highs.getRunTime()) - before
        status = highs.getModelStatus()
        info = highs.getInfo()
        infeasible = status in (
            highspy.HighsModelStatus.kInfeasible,
            highspy.HighsModelStatus.kUnboundedOrInfeasible,
        )
        solution = highs.getSolution()
        feasible = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        return Found(
            infeasible=infeasible,
            values=np.array(solution.col_value) if feasible and not infeasible else None,
            objective=float(info.objective_function_value),
            bound=-math.inf
            if infeasible
            else float(info.mip_dual_bound if self._searches else info.objective_function_value),
            seconds=seconds,
        )

    def keeps(self, mixes: Sequence[Sequence[int]]) -> bool:
        """Whether mixes keep all rows that do not concern demand."""
        pairs = list(zip(self._problem.services, mixes, strict=True))
        if any(
            sum(limit.used_by(service, mix) for service, mix in pairs) > limit.most + LOAD_TOLERANCE
            for limit in self._problem.shared
        ):
            return False
        return all(service.keeps_rows(mix) for service, mix in pairs)

    def cost(self, mixes: Sequence[Sequence[int]]) -> float:
        """What mixes cost in the goal's terms."""
        total = 0.0
        for s, (service, mix) in enumerate(zip(self._problem.services, mixes, strict=True)):
            total += float(self.unit_costs(s) @ np.array(mix))
            if self._goal is Goal.CHEAPEST:
                total += math.fsum(
                    service.switching[v] * max(0, count - service.running[v])
                    for v, count in enumerate(mix)
                    if self._pays_to_grow(service, v)
                )
        return total
