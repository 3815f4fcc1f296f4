"""Which numbers of replicas can serve a service's demand, as linear cuts on those numbers.

Replicas that may take the loads U[v] serve all demand where shares x exist with Σ_v x[b,v] = 1 and
Σ_b ℓ[b,v]·x[b,v] ≤ U[v]. By duality of linear programmes, that is where for all prices y ≥ 0 of a replica's time

    Σ_v y[v]·U[v] ≥ φ(y),    φ(y) = Σ_b min_v y[v]·ℓ[b,v]

what the replicas' time is worth covers what the cheapest way to serve costs. Every y gives one valid *cut*, however
accurate the solver, since φ is evaluated here. Replicas that cannot serve break one, which a small linear programme
finds: minimise t such that the loads exceed U[v] by no more than t·w[v]; its dual prices are y. Before it is asked,
prices near what replicas cost are tried (`price_ascent.py`), which finds most of the cuts at a fraction of the time.

So a programme over replicas needs no shares: a few cuts stand for all of them. They hold at every price of replicas,
so they are kept while prices change.

- *Parts.* A bucket is served by one shared variant or by a prefill and a decode one, so that its price is the smaller
  of min_shared y·ℓ and min_prefill y·ℓ + min_decode y·ℓ.
- *Losses.* Where a share of the demand must be served without a lost pool, the same holds for that share and the
  variants that are left.
- *What stays unserved*, in requests per second, is θ = max_y Σ_b min(λ[b], min_v y[v]·ℓ[b,v]) − Σ y·U: the same with
  the price of a bucket bounded by its rate.
- *Alike buckets* are grouped for the linear programme, one split for all of a group: what can serve the groups can
  serve the buckets. Where it cannot, its prices give a cut of the buckets themselves; only if that one holds, the
  programme over all buckets is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import highspy
import numpy as np
import numpy.typing as npt

from medley_planner.fleet import Role
from medley_planner.programme.price_ascent import raised_prices
from medley_planner.programme.problem import ServiceProblem
from medley_planner.programme.sparse import Array, SolverFailedError, quiet_highs, set_matrix

TOLERANCE = 4e-7
"""Loads beyond what replicas may take, in replicas: below `LOAD_TOLERANCE`, which the split has to keep."""

_NEVER = 1e15
"""Stands for the load of a bucket on a variant that cannot serve it."""

_GROUPS = 16
"""Groups of alike buckets."""

_ROUNDING = 1e-9
_TWO = 2


@dataclass(frozen=True)
class Cut:
    """What every number of replicas that serves the demand keeps: Σ_v weights[v]·U[v] (+ θ unserved) ≥ least.

    Args:
        weights: y[v], not negative.
        least: φ(y).
    """

    weights: Array
    least: float

    def missing(self, usable: Array, unserved: float = 0.0) -> float:
        """By how much it is broken; not positive where it holds."""
        return self.least - float(self.weights @ usable) - unserved


class Serving:
    """The cuts of one service.

    Args:
        service: The service.
        partly: Whether demand may stay unserved; the cuts then bound how much.
    """

    def __init__(self, service: ServiceProblem, *, partly: bool = False) -> None:
        loads = np.array(service.loads, dtype=np.float64).reshape(len(service.loads), len(service.variants))
        roles = tuple(variant.role for variant in service.variants)
        rates = np.array(service.rates) if partly else None
        self._regions = [_Region(loads, roles, rates)]
        share = service.availability.survivable_share
        if share > 0.0 and not partly:
            for _, left in service.losses:
                stays = np.isin(np.arange(len(service.variants)), left)
                self._regions.append(_Region(np.where(stays, share * loads, np.inf), roles, None))

    @property
    def possible(self) -> bool:
        """Whether any number of replicas serves everything."""
        return all(region.possible for region in self._regions)

    def at_prices(self, prices: Array) -> list[Cut]:
        """The cuts of these prices of a replica's time, one for all demand and one for every loss."""
        return [cut for region in self._regions if (cut := region.cut(prices)).least > 0.0]

    def broken(
        self,
        usable: Array,
        unserved: float = 0.0,
        *,
        tolerance: float = TOLERANCE,
        near: Array | None = None,
        quick: bool = False,
    ) -> list[Cut]:
        """Cuts that these usable loads (and so much unserved) break; empty where they can serve.

        Args:
            usable: U[v], the load that the replicas of v may take.
            unserved: Requests per second that stay unserved.
            tolerance: What loads, or the unserved rate, may exceed.
            near: What replicas cost, all positive: cuts are first looked for near these prices.
            quick: Where that suffices, look for them nowhere else; then none found is proof of nothing.
        """
        found = (region.broken(usable, unserved, tolerance, near, quick=quick) for region in self._regions)
        return [cut for cut in found if cut is not None]


class _Region:
    """The demand of one case: all of it, or what must be served after a loss. Loads are kept by (variant, bucket)."""

    def __init__(self, loads: Array, roles: tuple[Role, ...], rates: Array | None) -> None:
        self._never = np.ascontiguousarray(~np.isfinite(loads.T))
        self._loads = np.where(self._never, _NEVER, loads.T)
        self._rates = rates
        self._shared = np.array([role is Role.SHARED for role in roles], dtype=bool)
        self._prefill = np.array([role is Role.PREFILL for role in roles], dtype=bool)
        self._decode = np.array([role is Role.DECODE for role in roles], dtype=bool)
        self._all_shared = bool(self._shared.all())
        self._split_roles = bool(self._prefill.any() and self._decode.any())
        totals = np.where(np.isfinite(loads), loads, 0.0).sum(axis=0)
        self._direction = np.maximum(totals / max(totals.max(initial=0.0), 1e-12), 1e-3)
        self._grouped: _Transport | None = None
        self._whole: _Transport | None = None

    @property
    def possible(self) -> bool:
        """Whether every bucket is served by some variant."""
        return bool(np.all(self._worth(np.ones(len(self._loads))) < _NEVER / 2))

    def _worth(self, prices: Array) -> Array:
        """What serving each bucket costs at least at these prices."""
        costs = self._loads * prices[:, None]
        costs[self._never] = _NEVER
        worth = (costs if self._all_shared else costs[self._shared]).min(axis=0, initial=_NEVER)
        if self._split_roles:
            pair = costs[self._prefill].min(axis=0) + costs[self._decode].min(axis=0)
            worth = np.minimum(worth, pair)
        return np.asarray(worth if self._rates is None else np.minimum(worth, self._rates))

    def cut(self, prices: Array) -> Cut:
        """The cut of these prices, made as tight as can be: no price is higher than its worth needs."""
        worth = self._worth(prices)
        weights = prices if self._split_roles else np.minimum(prices, (worth / self._loads).max(axis=1, initial=0))
        return Cut(weights, float(worth.sum()))

    def broken(
        self, usable: Array, unserved: float, tolerance: float, near: Array | None, *, quick: bool
    ) -> Cut | None:
        """A cut that is broken; None where the demand can be served."""
        if not self._loads.shape[1]:
            return None
        if near is not None and self._rates is None and not self._split_roles:
            cut = self._at_raised(usable, near, tolerance)
            if cut is not None or quick or self._served_by_two(usable, near):
                return cut
        return self._by_transport(usable, unserved, tolerance)

    def _at_raised(self, usable: Array, near: Array, tolerance: float) -> Cut | None:
        """A cut that is broken, at prices near these; None where there is none among those tried."""
        cut = self.cut(raised_prices(self._loads, usable, near))
        return cut if cut.missing(usable) > tolerance * float(self._direction @ cut.weights) else None

    def _served_by_two(self, usable: Array, near: Array) -> bool:
        """Whether at most two variants are usable, and they serve the demand.

        With two prices, of which only the relation matters, raising one of them finds the highest value there is.
        """
        used = np.flatnonzero(usable > 0.0)
        if not 0 < len(used) <= _TWO:
            return False
        loads = self._loads[used]
        if len(used) == 1:
            return bool(loads.sum() <= usable[used[0]])
        prices = raised_prices(loads, usable[used], near[used])
        return float((loads * prices[:, None]).min(axis=0).sum() - prices @ usable[used]) <= 0.0

    def _by_transport(self, usable: Array, unserved: float, tolerance: float) -> Cut | None:
        """A cut that is broken, found by linear programmes; None where the demand can be served."""
        if self._grouped is None:
            self._grouped = self._transport(_groups(self._loads.T))
        excess, prices = self._grouped.at(usable)
        if excess - unserved <= tolerance:
            return None
        cut = self.cut(prices)
        if cut.missing(usable, unserved) > 0.25 * (excess - unserved):
            return cut
        if self._whole is None:
            self._whole = self._transport(np.arange(self._loads.shape[1]))
        excess, prices = self._whole.at(usable)
        if excess - unserved <= tolerance:
            return None
        exact = self.cut(prices)
        return exact if exact.missing(usable, unserved) > _ROUNDING else None

    def _transport(self, group: npt.NDArray[np.int64]) -> _Transport:
        groups = int(group.max()) + 1
        loads = np.zeros((groups, len(self._loads)))
        np.add.at(loads, group, self._loads.T)
        rates: Array | None = None
        if self._rates is not None:
            rates = np.bincount(group, weights=self._rates, minlength=groups).astype(np.float64)
        pairs: Array | None = None
        if self._split_roles:
            pairs = self._prefill.astype(np.float64)
            pairs[self._decode] = -1.0
        return _Transport(loads, self._direction, rates, first=self._shared | self._prefill, pairs=pairs)


def _groups(loads: Array) -> npt.NDArray[np.int64]:
    """The group of each bucket: each next group starts at the bucket least like all before, and takes those nearest it.

    Buckets are alike where their loads on all variants are in proportion.
    """
    if len(loads) <= _GROUPS:
        return np.arange(len(loads))
    logs = np.log(np.maximum(loads, 1e-300))
    shapes = np.where(loads < _NEVER, logs - logs.min(axis=1, keepdims=True), 1e3)
    group = np.zeros(len(loads), dtype=np.int64)
    distance = np.abs(shapes - shapes[0]).max(axis=1)
    for number in range(1, _GROUPS):
        start = int(distance.argmax())
        if distance[start] <= _ROUNDING:
            break
        away = np.abs(shapes - shapes[start]).max(axis=1)
        group[away < distance] = number
        distance = np.minimum(distance, away)
    return np.unique(group, return_inverse=True)[1].astype(np.int64)


class _Transport:
    """The linear programme of how loads are shared out, kept warm from call to call.

    With `rates`, what stays unserved is minimised; else t, by which the direction is exceeded.
    """

    def __init__(
        self, loads: Array, direction: Array, rates: Array | None, *, first: npt.NDArray[np.bool_], pairs: Array | None
    ) -> None:
        buckets, variants = loads.shape
        self._demand_rows = buckets * (1 if pairs is None else 2)
        b, v = np.nonzero(loads < _NEVER / 2)
        shares = len(b)
        at, column, value = [b[first[v]]], [np.arange(shares)[first[v]]], [np.ones(int(first[v].sum()))]
        if pairs is not None:
            linked = pairs[v] != 0.0
            at.append(buckets + b[linked])
            column.append(np.arange(shares)[linked])
            value.append(pairs[v][linked])
        at.append(self._demand_rows + v)
        column.append(np.arange(shares))
        value.append(loads[b, v])
        if rates is None:
            at.append(self._demand_rows + np.arange(variants))
            column.append(np.full(variants, shares))
            value.append(-direction)
            extra_costs = np.ones(1)
        else:
            at.append(np.arange(buckets))
            column.append(shares + np.arange(buckets))
            value.append(np.ones(buckets))
            extra_costs = rates
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = shares + len(extra_costs), self._demand_rows + variants
        lp.col_cost_ = np.concatenate([np.zeros(shares), extra_costs])
        lower = np.zeros(lp.num_col_)
        if rates is None:
            lower[-1] = -highspy.kHighsInf
        lp.col_lower_, lp.col_upper_ = lower, np.full(lp.num_col_, highspy.kHighsInf)
        demand = np.concatenate([np.ones(buckets), np.zeros(self._demand_rows - buckets)])
        lp.row_lower_ = np.concatenate([demand, np.full(variants, -highspy.kHighsInf)])
        lp.row_upper_ = np.concatenate([demand, np.zeros(variants)])
        set_matrix(lp, np.concatenate(at), np.concatenate(column), np.concatenate(value))
        self._rows = np.arange(self._demand_rows, lp.num_row_, dtype=np.int32)
        self._unbounded = np.full(variants, -highspy.kHighsInf)
        self._highs = quiet_highs()
        self._highs.setOptionValue("presolve", "off")
        self._highs.passModel(lp)

    def at(self, usable: Array) -> tuple[float, Array]:
        """The optimum, and the prices of the replicas' time there."""
        self._highs.changeRowsBounds(len(self._rows), self._rows, self._unbounded, usable)
        self._highs.run()
        if self._highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            raise SolverFailedError(f"transport: {self._highs.getModelStatus()}")
        duals = np.array(self._highs.getSolution().row_dual[self._demand_rows :])
        return float(self._highs.getInfo().objective_function_value), np.maximum(-duals, 0.0)
