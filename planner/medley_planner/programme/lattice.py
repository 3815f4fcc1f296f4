"""All mixes of one service that cost less than so much and keep the cuts that are known, in one array.

The array is built variant by variant, the dearest first. A row is a mix of the variants so far; every next variant adds
each number of its replicas to each row. A row is dropped as soon as nothing can come of it:

- what it costs, and what the rest of some cut costs at least with the variants that are left, is too much: where
  Σ y[v]·U[v] ≥ 1 is covered up to a, the rest costs at least (1 − a)·min_v c[v] / (y[v]·u[v]), with u[v] the most that
  a replica of v is usable to;
- it goes beyond an upper bound whose weights are not negative.

This is branch and bound in breadth instead of depth: what a search tree does node by node is a few operations on arrays
here. For the programmes of single services, dozens of rows are looked at where a solver takes longer to be set up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medley_planner.programme.problem import LOAD_TOLERANCE, FleetProblem
from medley_planner.programme.sparse import Array

_ROUNDING = 1e-9
_NEVER = 1e30

Mixes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Below:
    """Mixes that cost less than some price and keep all rows, and what each costs.

    Args:
        mixes: n, (mixes, variants), in no order.
        prices: (mixes,).
        looked_at: The most rows that were looked at for one variant.
    """

    mixes: Mixes
    prices: Array
    looked_at: int


class Lattice:
    """The mixes of one service.

    Args:
        problem: One service, and what limits it from outside.
        loading: Whether it costs something to load what does not run.
    """

    def __init__(self, problem: FleetProblem, *, loading: bool) -> None:
        (service,) = problem.services
        self._useful = service.useful
        self._running = np.array(service.running)
        self._loading = np.where(self._running > 0, np.array(service.switching), 0.0) * loading
        self._usable = service.usable_by_steps
        shares = [table[1:] / np.arange(1, len(table)) for table in self._usable]
        self._best_usable = np.array([each.max(initial=0.0) for each in shares])
        upper = [(limit.weights(service), limit.most) for limit in problem.shared]
        upper += [(row.weights, row.upper) for row in service.rows if row.upper is not None]
        lower = [(row.weights, row.lower) for row in service.rows if row.lower is not None]
        width = len(service.variants)
        self._upper = np.array([weights for weights, _ in upper], dtype=np.float64).reshape(len(upper), width)
        self._most = np.array([most for _, most in upper], dtype=np.float64) + LOAD_TOLERANCE
        self._lower = np.array([weights for weights, _ in lower], dtype=np.float64).reshape(len(lower), width)
        self._least = np.array([least for _, least in lower], dtype=np.float64) - LOAD_TOLERANCE
        self._bounding = np.flatnonzero((self._upper >= 0.0).all(axis=1))

    def usable(self, mixes: Mixes) -> Array:
        """What the replicas of each mix can be loaded with, (mixes, variants)."""
        columns = [table[mixes[:, v]] for v, table in enumerate(self._usable)]
        return np.stack(columns, axis=1) if columns else np.zeros((len(mixes), 0))

    def allowed(self, mixes: Mixes) -> npt.NDArray[np.bool_]:
        """Which mixes keep the rows of the service and what limits it from outside."""
        below = (mixes @ self._upper.T <= self._most).all(axis=1)
        return np.asarray(below & (mixes @ self._lower.T >= self._least).all(axis=1))

    def below(self, unit_costs: Array, cuts: Array, most: float, *, rows: int) -> Below | None:
        """The mixes that cost less than `most` and keep the cuts; None where more rows would have to be looked at.

        Args:
            unit_costs: What a replica costs, not negative, (variants,).
            cuts: y of each cut Σ y[v]·U[v] ≥ 1, (cuts, variants).
            most: What mixes cost less than.
            rows: The most rows of the array.
        """
        order, rest = self._order(unit_costs, cuts, most)
        mixes = np.zeros((1, len(unit_costs)), dtype=np.int64)
        prices, covered = np.zeros(1), np.zeros((1, len(cuts)))
        used = np.zeros((1, len(self._bounding)))
        limits, looked_at = self._most[self._bounding], 1
        for v, after in zip(order, rest, strict=True):
            table = self._table(v, unit_costs[v], self._loading[v], most)
            if len(prices) * len(table) > rows:
                return None
            costs = (prices[:, None] + table).ravel()
            here = (costs < most).nonzero()[0]
            looked_at = max(looked_at, len(here))
            row, count = np.divmod(here, len(table))
            costs, reached = costs[here], covered[row] + self._usable[v][count][:, None] * cuts[:, v]
            missing = np.maximum(1.0 - _ROUNDING - reached, 0.0)
            kept = costs + (missing * after).max(axis=1, initial=0.0) < most
            if len(limits):
                taken = used[row] + count[:, None] * self._upper[self._bounding, v]
                kept &= (taken <= limits).all(axis=1)
                used = taken[kept]
            mixes = mixes[row[kept]]
            mixes[:, v] = count[kept]
            prices, covered = costs[kept], reached[kept]
        whole = (prices < most) & (covered >= 1.0 - _ROUNDING).all(axis=1) & self.allowed(mixes)
        return Below(mixes[whole], prices[whole], looked_at)

    def _order(self, unit_costs: Array, cuts: Array, most: float) -> tuple[list[int], Array]:
        """Variants that a mix below `most` may have, the dearest first; and for each, what a unit of each cut costs at
        least with those after it, (variants, cuts).

        Where one replica of v and the rest of a cut with the best of all cost too much, so do more replicas.
        """
        served = cuts * self._best_usable
        each = np.full(served.shape, _NEVER)
        np.divide(unit_costs, served, out=each, where=served > 0.0)
        rest = np.maximum(1.0 - _ROUNDING - served, 0.0) * each.min(axis=1, initial=_NEVER, keepdims=True)
        possible = np.flatnonzero(unit_costs + rest.max(axis=0, initial=0.0) < most)
        order = possible[np.argsort(-unit_costs[possible], kind="stable")]
        after = np.full((len(order), len(cuts)), _NEVER)
        if len(order) > 1:
            after[:-1] = np.minimum.accumulate(each[:, order[:0:-1]], axis=1).T[::-1]
        return order.tolist(), after

    def _table(self, v: int, unit_cost: float, loading: float, most: float) -> Array:
        """What n = 0, 1, … replicas of v cost, as far as that is less than `most`."""
        last = self._useful[v] if unit_cost <= 0.0 else min(self._useful[v], int(most / unit_cost))
        counts = np.arange(last + 1)
        table = np.asarray(counts * unit_cost, dtype=np.float64)
        if loading:
            table += loading * np.maximum(counts - self._running[v], 0)
        return table[table < most] if loading else table
