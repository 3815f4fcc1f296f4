"""One mix per service within what all share: the master programme of the decomposition.

Variables: λ[s,j] ∈ {0, 1}, mix j of service s is chosen; e[k] ≥ 0, what is taken beyond limit k, at a ceiling price
P[k].

    minimise     Σ cost[s,j]·λ[s,j] + Σ P[k]·e[k]
    convexity    Σ_j λ[s,j] = 1                                for all s
    shared       Σ used[k,s,j]·λ[s,j] − e[k] ≤ most[k]         for all k

Its linear relaxation has at most as many services with more than one mix as there are limits that bind, so that
rounding it costs little where services are many; its dual prices say what a unit more of what is shared is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np

from medley_planner.programme.sparse import Array, quiet_highs

_BEYOND = 1e-6
_CHOSEN = 0.5


@dataclass(frozen=True)
class Relaxed:
    """The linear relaxation: its value, the prices of what is shared, and whether it stays within the limits."""

    value: float
    prices: Array
    within: bool
    seconds: float


@dataclass(frozen=True)
class Chosen:
    """Mixes by place in the order in which each service's were added; None where none fit together."""

    mixes: tuple[int, ...] | None
    cost: float
    bound: float
    seconds: float


class Master:
    """The restricted master programme; mixes are added as they are found.

    Args:
        services: How many.
        most: Right-hand sides of what is shared.
        ceilings: P[k].
    """

    def __init__(self, services: int, most: Array, ceilings: Array) -> None:
        self._services = services
        self._limits = len(most)
        self._owners: list[int] = []
        self._costs: list[float] = []
        self._uses: list[Array] = []
        self._most = most
        self._ceilings = ceilings
        self._highs = self._empty()

    def _empty(self) -> highspy.Highs:
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = self._limits, self._limits + self._services
        lp.col_cost_ = self._ceilings
        lp.col_lower_, lp.col_upper_ = np.zeros(self._limits), np.full(self._limits, highspy.kHighsInf)
        lp.row_lower_ = np.concatenate([np.full(self._limits, -highspy.kHighsInf), np.ones(self._services)])
        lp.row_upper_ = np.concatenate([self._most, np.ones(self._services)])
        lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_ = np.arange(self._limits + 1, dtype=np.int32)
        lp.a_matrix_.index_ = np.arange(self._limits, dtype=np.int32)
        lp.a_matrix_.value_ = np.full(self._limits, -1.0)
        highs = quiet_highs()
        highs.passModel(lp)
        return highs

    def add(self, s: int, cost: float, used: Array) -> None:
        """Add a mix of a service, with what it costs and uses of each limit."""
        self._owners.append(s)
        self._costs.append(cost)
        self._uses.append(used)
        rows = np.flatnonzero(used)
        at = np.append(rows, self._limits + s).astype(np.int32)
        self._highs.addCol(cost, 0.0, highspy.kHighsInf, len(at), at, np.append(used[rows], 1.0))

    def relax(self) -> Relaxed:
        """Solve the linear relaxation."""
        before = float(self._highs.getRunTime())
        self._highs.run()
        solution = self._highs.getSolution()
        beyond = np.array(solution.col_value[: self._limits])
        return Relaxed(
            value=float(self._highs.getInfo().objective_function_value),
            prices=np.maximum(-np.array(solution.row_dual[: self._limits]), 0.0),
            within=bool(np.all(beyond <= _BEYOND)),
            seconds=float(self._highs.getRunTime()) - before,
        )

    def choose(self, time_limit_s: float, relative_gap: float, costs: Sequence[float] | None = None) -> Chosen:
        """The best choice of one mix per service.

        Args:
            time_limit_s: Time.
            relative_gap: Gap.
            costs: What the mixes cost instead, in the order in which they were added.
        """
        lp = self._highs.getLp()
        mixes = len(self._costs)
        lp.integrality_ = [highspy.HighsVarType.kContinuous] * self._limits + [highspy.HighsVarType.kInteger] * mixes
        lp.col_upper_ = np.append(np.zeros(self._limits), np.ones(mixes))
        if costs is not None:
            lp.col_cost_ = np.append(self._ceilings, costs)
        highs = quiet_highs()
        for option, setting in (("time_limit", max(time_limit_s, 0.01)), ("mip_rel_gap", relative_gap)):
            highs.setOptionValue(option, setting)
        highs.setOptionValue("mip_detect_symmetry", False)
        highs.passModel(lp)
        highs.run()
        info, seconds = highs.getInfo(), float(highs.getRunTime())
        if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
            return Chosen(None, np.inf, -np.inf, seconds)
        values = np.array(highs.getSolution().col_value[self._limits :])
        chosen = [-1] * self._services
        places = [0] * self._services
        for owner, value in zip(self._owners, values.tolist(), strict=True):
            if value > _CHOSEN:
                chosen[owner] = places[owner]
            places[owner] += 1
        return Chosen(tuple(chosen), float(info.objective_function_value), float(info.mip_dual_bound), seconds)
