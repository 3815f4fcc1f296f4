"""Models handed to HiGHS as sparse matrices: no object for every coefficient, where many small models are solved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import highspy
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

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


def quiet_highs() -> highspy.Highs:
    """A solver that prints nothing and gives the same answer every time."""
    highs = highspy.Highs()
    for option, value in (("output_flag", False), ("threads", 1), ("random_seed", 0)):
        highs.setOptionValue(option, value)
    return highs


def set_matrix(lp: highspy.HighsLp, rows: Indices, columns: Indices, values: Array) -> None:
    """Give a model its coefficients, each (row, column) at most once."""
    order = np.lexsort((columns, rows))
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.searchsorted(rows[order], np.arange(lp.num_row_ + 1)).astype(np.int32)
    lp.a_matrix_.index_ = columns[order].astype(np.int32)
    lp.a_matrix_.value_ = values[order]


def least(costs: Array, upper: Array, rows: tuple[Array, Array], entries: tuple[Indices, Indices, Array]) -> Array:
    """The values of an optimal solution of a linear programme whose columns are at least 0.

    Args:
        costs: What is minimised, (columns,).
        upper: Upper bounds, (columns,).
        rows: Lower and upper bounds of the rows.
        entries: Row, column and value of the coefficients, each (row, column) at most once.

    Raises:
        SolverFailedError: There is none, or the solver failed.
    """
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(costs), len(rows[0])
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = costs, np.zeros(len(costs)), upper
    lp.row_lower_, lp.row_upper_ = rows
    set_matrix(lp, *entries)
    highs = quiet_highs()
    highs.passModel(lp)
    highs.run()
    if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise SolverFailedError(f"the solver ended with {highs.modelStatusToString(highs.getModelStatus())}")
    return np.array(highs.getSolution().col_value)
