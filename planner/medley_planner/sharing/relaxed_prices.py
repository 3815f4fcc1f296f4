"""Prices of what services share, from the linear relaxation of their programmes: where to start looking.

Without whole replicas, a service pays Σ_b min_v (c[v] + π·w[v])·ℓ[b,v] when every unit of what is shared costs π.
The prices π ≥ 0 that make Σ_s of that, less π·most, as large as can be are those at which the relaxed services together
want what there is. That function is concave, and an evaluation is one pass over an array of all loads; its maximum is
found by cutting planes within a box around the best prices so far, which grows where it helps and shrinks where not.
"""

from __future__ import annotations

from collections.abc import Sequence

import highspy
import numpy as np
import numpy.typing as npt

from medley_planner.fleet import Role
from medley_planner.programme.problem import TIE_USD_PER_GPU_HOUR, ServiceProblem, SharedLimit, StockLimit
from medley_planner.programme.sparse import Array, quiet_highs

_STEPS = 60
_ENOUGH = 1e-3
_FIRST_BOX = 0.5
_SMALLEST_BOX = 1e-3


def relaxed_prices(services: Sequence[ServiceProblem], shared: Sequence[SharedLimit], ceilings: Array) -> Array:
    """π by shared limit, USD per hour and unit.

    Args:
        services: The services that share.
        shared: What they share.
        ceilings: Highest prices that make sense.
    """
    if not shared:
        return np.zeros(0)
    relaxed = _Relaxed(services, shared)
    center = np.zeros(len(shared))
    best, slope = relaxed.at(center)
    planes = [(best, slope, center)]
    box = _FIRST_BOX
    for _ in range(_STEPS):
        prices, promised = _highest(planes, np.maximum(center - box * ceilings, 0.0), center + box * ceilings, ceilings)
        if promised - best <= _ENOUGH * abs(best):
            if box >= 1.0:
                break
            box = min(1.0, box * 2.0)
            continue
        value, slope = relaxed.at(prices)
        planes.append((value, slope, prices))
        if value > best:
            best, center = value, prices
            box = min(1.0, box * 1.5)
        else:
            box = box / 2.0
            if box < _SMALLEST_BOX:
                break
    return center


def wanted_beyond(services: Sequence[ServiceProblem], shared: Sequence[StockLimit]) -> tuple[StockLimit, ...]:
    """Limits beyond which the relaxed services go if nothing keeps them."""
    if not shared:
        return ()
    _, beyond = _Relaxed(services, shared).at(np.zeros(len(shared)))
    return tuple(limit for limit, more in zip(shared, beyond.tolist(), strict=True) if more > 0.0)


class _Relaxed:
    """Loads of all services in one array, a row for every bucket."""

    def __init__(self, services: Sequence[ServiceProblem], shared: Sequence[SharedLimit]) -> None:
        width = max((len(service.variants) for service in services), default=0)
        self._costs = np.full((len(services), width), np.inf)
        self._weights = np.zeros((len(shared), len(services), width))
        rows: list[Array] = []
        owners: list[npt.NDArray[np.int64]] = []
        for s, service in enumerate(services):
            count = len(service.variants)
            whole = np.array([variant.role is Role.SHARED for variant in service.variants], dtype=bool)
            costs = np.array(service.prices) + TIE_USD_PER_GPU_HOUR * np.array(service.gpus)
            self._costs[s, :count] = np.where(whole, costs, np.inf)
            for k, limit in enumerate(shared):
                self._weights[k, s, :count] = limit.weights(service)
            loads = np.full((len(service.loads), width), np.inf)
            loads[:, :count] = np.array(service.loads).reshape(len(service.loads), count)
            rows.append(loads)
            owners.append(np.full(len(loads), s))
        self._loads = np.concatenate(rows)
        self._owners = np.concatenate(owners)
        self._most = np.array([limit.most for limit in shared])

    def at(self, prices: Array) -> tuple[float, Array]:
        """The value at these prices, and its slope: what is wanted more than there is."""
        dear = self._costs + np.einsum("k,ksv->sv", prices, self._weights)
        costs = dear[self._owners] * self._loads
        chosen = costs.argmin(axis=1)
        everywhere = np.arange(len(chosen))
        least = costs[everywhere, chosen]
        served = np.isfinite(least)
        rows, owners, columns = everywhere[served], self._owners[served], chosen[served]
        used = self._weights[:, owners, columns] @ self._loads[rows, columns]
        return float(least[served].sum() - prices @ self._most), used - self._most


def _highest(
    planes: Sequence[tuple[float, Array, Array]], lower: Array, upper: Array, ceilings: Array
) -> tuple[Array, float]:
    """Where the lowest of the planes is highest within the box, and how high."""
    count = len(lower)
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = count + 1, len(planes)
    lp.sense_ = highspy.ObjSense.kMaximize
    lp.col_cost_ = np.append(np.zeros(count), 1.0)
    lp.col_lower_ = np.append(lower, -highspy.kHighsInf)
    lp.col_upper_ = np.append(np.minimum(upper, ceilings), highspy.kHighsInf)
    lp.row_lower_ = np.full(len(planes), -highspy.kHighsInf)
    lp.row_upper_ = np.array([value - slope @ prices for value, slope, prices in planes])
    matrix = np.array([np.append(-slope, 1.0) for _, slope, _ in planes])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = (np.arange(len(planes) + 1) * (count + 1)).astype(np.int32)
    lp.a_matrix_.index_ = np.tile(np.arange(count + 1), len(planes)).astype(np.int32)
    lp.a_matrix_.value_ = matrix.ravel()
    highs = quiet_highs()
    highs.passModel(lp)
    highs.run()
    values = np.array(highs.getSolution().col_value)
    return np.maximum(values[:count], 0.0), float(values[count])
