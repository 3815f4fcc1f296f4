"""Models handed to HiGHS as sparse matrices: no object for every coefficient, where many small models are solved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import highspy
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

Term = tuple[int, float]
"""A column and its coefficient."""

Option = tuple[str, bool | int | float | str]


class SolverFailedError(RuntimeError):
    """The solver failed on a linear programme that always has a solution."""


@dataclass
class SparseModel:
    """Columns, all at least 0, and rows of a model that is minimised."""

    costs: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    rows: list[tuple[Sequence[Term], float, float]] = field(default_factory=list)

    def column(self, cost: float, upper: float = math.inf, *, whole: bool = False) -> int:
        """Add a column; its number."""
        self.costs.append(cost)
        self.upper.append(upper)
        self.whole.append(whole)
        return len(self.costs) - 1

    def row(self, terms: Sequence[Term], lower: float = -math.inf, upper: float = math.inf) -> None:
        """Add a row; no column may occur in it twice."""
        self.rows.append((terms, lower, upper))

    def passed(self, options: Sequence[Option] = ()) -> highspy.Highs:
        """A solver that holds the model."""
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self.costs), len(self.rows)
        lp.col_cost_ = np.array(self.costs)
        lp.col_lower_, lp.col_upper_ = np.zeros(len(self.costs)), np.array(self.upper)
        lp.row_lower_ = np.array([lower for _, lower, _ in self.rows])
        lp.row_upper_ = np.array([upper for _, _, upper in self.rows])
        if any(self.whole):
            kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
            lp.integrality_ = [kinds[whole] for whole in self.whole]
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.cumsum([0, *(len(terms) for terms, _, _ in self.rows)]).astype(np.int32)
        lp.a_matrix_.index_ = np.array([column for terms, _, _ in self.rows for column, _ in terms], dtype=np.int32)
        lp.a_matrix_.value_ = np.array([value for terms, _, _ in self.rows for _, value in terms], dtype=np.float64)
        highs = quiet_highs()
        for option, setting in options:
            highs.setOptionValue(option, setting)
        highs.passModel(lp)
        return highs

    def solved(self) -> Array:
        """The values of an optimal solution.

        Raises:
            SolverFailedError: There is none, or the solver failed.
        """
        highs = self.passed()
        highs.run()
        if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            raise SolverFailedError(f"the solver ended with {highs.modelStatusToString(highs.getModelStatus())}")
        return np.array(highs.getSolution().col_value)


def quiet_highs() -> highspy.Highs:
    """A solver that prints nothing and gives the same answer every time."""
    highs = highspy.Highs()
    for option, value in (("output_flag", False), ("threads", 1), ("random_seed", 0)):
        highs.setOptionValue(option, value)
    return highs
