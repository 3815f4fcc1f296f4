"""Many services under shared limits: prices of what is shared, one subproblem per service, one mix each from a master.

Let π[k] ≥ 0 be a price for every unit of shared limit k, w[k,v] what a replica of v uses of it, and

    z_s(π) = min { Σ_v (c[v] + Σ_k π[k]·w[k,v])·n[v] : n serves s and keeps its rows, n whole }

1. *Bound.* In any joint plan, Σ_s Σ w·n ≤ most. So its cost is at least its cost plus π·(Σ w·n − most), and that is at
   least L(π) = Σ_s z_s(π) − π·most. The solver's proven bounds of the z_s may stand in their place. This holds for
   every π, and since n stays whole in z_s, the best L(π) is far above the linear relaxation where services are small.
2. *Plan.* The mixes found on the way are the columns of a master programme (`master.py`) that takes one mix of each
   service within the limits. The dual prices of its relaxation are the next π to try, between them and the best so far.
3. *End.* When the master's plan is within the gap of the best bound; or when time or sweeps are over. The plan so far
   and the proven gap are returned in every case.

First come *light* sweeps, with mixes from rounding the relaxation and improving it, which cost little and bring prices
near to where they end; then sweeps with searches that prove bounds.

Prices are kept in the `Memo`: when a service changes, the others' subproblems at those prices are known, and only its
own has to be solved. Where what runs, with only those services changed that cannot stay, is still within the gap, it
stays.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from medley_planner.programme.dominance import undominated
from medley_planner.programme.goals import Ending, Limits, Solution
from medley_planner.programme.memo import Memo
from medley_planner.programme.problem import LOAD_TOLERANCE, FleetProblem, ServiceProblem, SharedLimit, StockLimit
from medley_planner.programme.sparse import Array
from medley_planner.sharing.columns import Columns, Known, Mix, Priced
from medley_planner.sharing.master import Master, Relaxed
from medley_planner.sharing.relaxed_prices import relaxed_prices

_SWEEPS = 6
_LIGHT_SWEEPS = 3
_NODES = (10, 100, 400)
"""Of a subproblem's search tree, in the first search and where most is left unproven."""

_TOWARDS_DUALS = 0.6
"""Next prices are so far from the best ones towards the master's dual prices."""

_HALFWAY, _FURTHEST = 0.5, 2.0
_AT_CEILING, _RAISED, _FIRST_RAISE, _MOST_RAISES = 0.1, 2.0, 0.002, 4
"""While no mixes are known that fit together, dual prices are ceilings: prices there are raised by and to so much."""

_SUBPROBLEM_GAP = 0.3
"""Of the gap that is allowed, subproblems may leave so much."""

_CEILING = 10.0
"""A unit of what is shared is never worth more than so many of the dearest replicas' price per unit."""

_WORTH_CHOOSING = 3.0
"""The integer master is asked when its relaxation is within so many times the gap of the bound."""

_CHOICE_GAP = 0.3
"""Of the gap that is allowed, the integer master may leave so much."""

_FEW_CHANGES = 0.25
"""Where more services than this share cannot stay as they are, all are planned anew."""

_KNOWN_BYTES = 2**16
"""About what is known of a service in the end: dozens of mixes, cuts and bounds."""

_AT_A_TIME = 4
"""Services that are searched longer before it is asked whether what is proven suffices."""

_THREADS = 2
"""Subproblems solved at a time; the solver works outside the interpreter's lock, and each on its own."""

Mixes = tuple[Mix, ...]


@dataclass(frozen=True)
class Decomposed:
    """What was found.

    Args:
        solution: Mixes, what they cost without switching, and the bound on that.
        prices: By shared limit: what one unit more is worth, USD per hour.
        alone: Proven bounds on what each service costs alone.
    """

    solution: Solution
    prices: tuple[tuple[SharedLimit, float], ...] = ()
    alone: tuple[float, ...] = ()


def decomposed(problem: FleetProblem, names: Sequence[str], limits: Limits, memo: Memo) -> Decomposed:
    """The cheapest mixes of many services within what they share; of those within the gap, one near to what runs.

    `INFEASIBLE` where a service cannot be served even alone, `NOTHING_FOUND` where no mixes found fit together.

    Args:
        problem: Services and what they share.
        names: Names of the services, to find in the memo what was noted of them.
        limits: Time, and the gap at which to stop.
        memo: Keeps what is known of each service, and prices.
    """
    return _Decomposition(problem, names, limits, memo).run()


def needed_limits(shared: Sequence[SharedLimit]) -> tuple[SharedLimit, ...]:
    """Shared limits without those of larger groups that hold where a smaller group's limit of the same pool does."""
    needed: list[SharedLimit] = []
    for limit in shared:
        if isinstance(limit, StockLimit) and any(
            isinstance(other, StockLimit)
            and other.pool == limit.pool
            and other.group < limit.group
            and other.gpus <= limit.gpus
            for other in needed
        ):
            continue
        needed.append(limit)
    return tuple(needed)


class _Decomposition:
    """One run: prices, bound and plan so far."""

    def __init__(self, problem: FleetProblem, names: Sequence[str], limits: Limits, memo: Memo) -> None:
        self._names = tuple(names)
        self._problem = problem
        self._limits = limits
        self._memo = memo
        self._shared = needed_limits(problem.shared)
        self._most = np.array([limit.most for limit in self._shared])
        self._ceilings = np.array([_ceiling(limit, problem.services) for limit in self._shared])
        pools = tuple(sorted({limit.pool for limit in problem.stock}))
        pruned = [
            memo.recall(("pruned", each, pools), functools.partial(_pruned, each, problem.stock))
            for each in problem.services
        ]
        self._kept = [kept for kept, _ in pruned]
        self._distinct: dict[ServiceProblem, Columns] = {}
        self._services = [self._columns(s, fresh) for s, (_, fresh) in enumerate(pruned)]
        self._master = Master(len(self._services), self._most, self._ceilings)
        self._added: list[dict[Mix, None]] = [{} for _ in self._services]
        self._moving: list[float] = []
        self._last: dict[Columns, Priced] = {}
        self._bound = -math.inf
        self._prices = np.zeros(len(self._shared))
        self._best: Mixes | None = None
        self._seconds = 0.0

    def _columns(self, s: int, fresh: ServiceProblem) -> Columns:
        if fresh not in self._distinct:
            known = self._memo.recall(("known mixes", fresh, self._shared), Known, taken_bytes=_KNOWN_BYTES)
            hints = cast("Sequence[Array]", self._memo.hint(("weights", self._names[s], fresh.variants)) or ())
            self._distinct[fresh] = Columns(fresh, self._shared, known, hints)
        return self._distinct[fresh]

    def run(self) -> Decomposed:
        prices, noted = self._first_prices()
        if not noted:
            prices = self._light_sweeps(prices)
        for sweep in range(_SWEEPS):
            for nodes in _NODES:
                for some in self._searched(nodes):
                    if not self._price(some, prices, nodes):
                        return Decomposed(Solution(Ending.INFEASIBLE, seconds=self._spent_s()))
                    if self._best is not None and self._within_gap(self._best):
                        return self._ended(self._least_changes())
                if sweep == 0 and nodes == _NODES[0] and self._keep():
                    return self._ended(self._best)
                relaxed = self._relaxed()
                if self._worth_choosing(relaxed) and self._choose():
                    return self._ended(self._least_changes())
                if self._spent_s() >= self._limits.time_limit_s:
                    return self._ended(self._least_changes())
            prices = self._prices + _TOWARDS_DUALS * (relaxed.prices - self._prices)
        return self._ended(self._least_changes())

    def _worth_choosing(self, relaxed: Relaxed) -> bool:
        allowed = _WORTH_CHOOSING * self._limits.relative_gap * abs(relaxed.value)
        return relaxed.within and relaxed.value - self._bound <= allowed

    def _light_sweeps(self, prices: Array) -> Array:
        """Good prices, as far as mixes that are found without any search tell.

        What the known mixes cost, less what there is at the prices, is an estimate of the bound from above, by little.
        Of all prices tried, those with the highest are kept; next ones are tried between them and the master's dual
        prices, which are too high as long as it knows few mixes.
        """
        best, tried = prices, [prices]
        for _ in range(_LIGHT_SWEEPS):
            if not self._price(list(self._distinct.values()), prices, 0):
                return prices
            best = tried[int(np.argmax(self._estimates(tried)))]
            relaxed = self._relaxed()
            if not relaxed.within:
                relaxed = self._widened(prices, relaxed)
            duals = np.minimum(relaxed.prices, _FURTHEST * best + _FIRST_RAISE * self._ceilings)
            prices = best + _HALFWAY * (duals - best)
            tried.append(prices)
        return best

    def _widened(self, prices: Array, relaxed: Relaxed) -> Relaxed:
        """The master with more mixes, until they fit together: those of every other service at higher prices of what is
        wanted too much."""
        services = list(self._distinct.values())
        for attempt in range(_MOST_RAISES):
            over = relaxed.prices >= _AT_CEILING * self._ceilings
            prices = np.where(over, np.maximum(_RAISED * prices, _FIRST_RAISE * self._ceilings), prices)
            self._find(services[attempt % 2 :: 2] or services, prices, 0)
            relaxed = self._relaxed()
            if relaxed.within:
                break
        return relaxed

    def _estimates(self, tried: Sequence[Array]) -> Array:
        """For each of these prices, an estimate of the bound: with the best known mix of each service."""
        self._gather()
        prices = np.array(tried)
        total = -prices @ self._most
        for each, mixes in zip(self._services, self._added, strict=True):
            if mixes:
                costs = np.array([each.cost(mix) for mix in mixes])
                used = np.array([each.used(mix) for mix in mixes])
                total += (costs + prices @ used.T).min(axis=1)
        return np.asarray(total)

    def _searched(self, nodes: int) -> list[list[Columns]]:
        """The services to search: first all of them; then, a few at a time, those of which most is left unproven."""
        if nodes == _NODES[0]:
            return [list(self._distinct.values())]
        again = self._least_proven()
        return [again[first : first + _AT_A_TIME] for first in range(0, len(again), _AT_A_TIME)]

    def _least_proven(self) -> list[Columns]:
        """Services of which longer searches could prove most of what is missing."""
        times = Counter(self._services)
        open_by = {each: times[each] * (priced.found - priced.bound) for each, priced in self._last.items()}
        left = math.fsum(open_by.values())
        allowed = _SUBPROBLEM_GAP * self._limits.relative_gap * abs(self._bound)
        again: list[Columns] = []
        for each in sorted(open_by, key=lambda each: -open_by[each]):
            if left <= allowed:
                break
            left -= open_by[each]
            again.append(each)
        return again

    def _relaxed(self) -> Relaxed:
        self._gather()
        relaxed = self._master.relax()
        self._seconds += relaxed.seconds
        return relaxed

    def _first_prices(self) -> tuple[Array, bool]:
        """Prices to start with, and whether they are those of an earlier plan."""
        noted = cast("Array | None", self._memo.hint(("prices", self._shared_names())))
        if noted is not None:
            return noted, True
        return relaxed_prices([each.service for each in self._services], self._shared, self._ceilings), False

    def _shared_names(self) -> tuple[object, ...]:
        return tuple((limit.pool, limit.group) if isinstance(limit, StockLimit) else "" for limit in self._shared)

    def _price(self, columns: Sequence[Columns], prices: Array, nodes: int) -> bool:
        """Price these services, and take the bound and the mixes that follow; False where one cannot be served."""
        found = self._find(columns, prices, nodes)
        if any(math.isinf(priced.bound) for priced in found):
            return False
        self._last.update(zip(columns, found, strict=True))
        bound = math.fsum(self._last[each].bound for each in self._services) - float(prices @ self._most)
        if bound > self._bound:
            self._bound, self._prices = bound, prices
        return True

    def _find(self, columns: Sequence[Columns], prices: Array, nodes: int) -> list[Priced]:
        """Search the mixes of these services at these prices."""
        limits = replace(self._sub_limits(), nodes=nodes)
        with ThreadPoolExecutor(_THREADS) as pool:
            searched = {
                each: pool.submit(each.price, prices, limits) for each in columns if not each.is_known(prices, limits)
            }
            return [searched[each].result() if each in searched else each.price(prices, limits) for each in columns]

    def _gather(self) -> None:
        """Take all known mixes into the master."""
        for s, each in enumerate(self._services):
            for mix in each.known.mixes:
                self._add(s, mix)

    def _add(self, s: int, mix: Mix) -> None:
        if mix not in self._added[s]:
            each = self._services[s]
            self._added[s][mix] = None
            self._master.add(s, each.cost(mix), each.used(mix))
            self._moving.append(each.cost(mix) + self._problem.services[s].switching_cost(self._whole(s, mix)))

    def _whole(self, s: int, mix: Mix) -> Mix:
        """The mix in terms of all variants."""
        counts = dict(zip(self._kept[s], mix, strict=True))
        return tuple(counts.get(v, 0) for v in range(len(self._problem.services[s].variants)))

    def _choose(self) -> bool:
        """The best mixes so far; whether they are within the gap."""
        left_s = max(0.5, self._limits.time_limit_s - self._spent_s())
        chosen = self._master.choose(left_s, _CHOICE_GAP * self._limits.relative_gap)
        self._seconds += chosen.seconds
        if chosen.mixes is None:
            return False
        mixes = tuple(list(self._added[s])[place] for s, place in enumerate(chosen.mixes))
        if self._best is None or self._cost(mixes) < self._cost(self._best):
            self._best = mixes
        return self._within_gap(self._best)

    def _cost(self, mixes: Mixes) -> float:
        return math.fsum(each.cost(mix) for each, mix in zip(self._services, mixes, strict=True))

    def _within_gap(self, mixes: Mixes) -> bool:
        cost = self._cost(mixes)
        return cost - self._bound <= self._limits.relative_gap * cost

    def _keep(self) -> bool:
        """Keep what runs (or was planned before), and change only the services that cannot; whether that is within the
        gap."""
        kept = [self._standing(s) for s in range(len(self._services))]
        changing = [s for s, mix in enumerate(kept) if mix is None]
        if len(changing) > _FEW_CHANGES * len(kept):
            return False
        for s in changing:
            used = [each.used(mix) for each, mix in zip(self._services, kept, strict=True) if mix is not None]
            left = self._most - np.sum(used, axis=0) if used else self._most
            service = self._problem.services[s].only(self._kept[s])
            kept[s] = self._services[s].beside(left, service, self._sub_limits())
            if kept[s] is None:
                return False
        mixes = tuple(mix for mix in kept if mix is not None)
        used = np.sum([each.used(mix) for each, mix in zip(self._services, mixes, strict=True)], axis=0)
        if np.any(used > self._most + LOAD_TOLERANCE) or not self._within_gap(mixes):
            return False
        self._best = mixes
        return True

    def _standing(self, s: int) -> Mix | None:
        """What runs of a service, or was planned for it before, where it still serves and keeps its rows."""
        service, variants = self._problem.services[s], self._services[s].service.variants
        mix = tuple(service.running[v] for v in self._kept[s])
        if not any(mix):
            mix = cast("Mix", self._memo.hint(("mix", self._names[s], variants)) or ())
        if not mix or not service.keeps_rows(self._whole(s, mix)):
            return None
        return mix if self._services[s].serves(mix) else None

    def _sub_limits(self) -> Limits:
        return Limits(self._limits.time_limit_s, self._limits.relative_gap * _SUBPROBLEM_GAP)

    def _least_changes(self) -> Mixes | None:
        """Of the mixes found, those that are best when loading what does not run is paid for, too."""
        if self._best is None or not any(any(service.running) for service in self._problem.services):
            return self._best
        left_s = max(0.5, self._limits.time_limit_s - self._spent_s())
        chosen = self._master.choose(left_s, _CHOICE_GAP * self._limits.relative_gap, self._moving)
        self._seconds += chosen.seconds
        if chosen.mixes is None:
            return self._best
        return tuple(list(self._added[s])[place] for s, place in enumerate(chosen.mixes))

    def _spent_s(self) -> float:
        return self._seconds + math.fsum(each.seconds for each in self._distinct.values()) / _THREADS

    def _ended(self, mixes: Mixes | None) -> Decomposed:
        self._remember(mixes)
        prices = tuple(zip(self._shared, self._prices.tolist(), strict=True))
        if mixes is None:
            return Decomposed(Solution(Ending.NOTHING_FOUND, bound=self._bound, seconds=self._spent_s()), prices)
        within = self._best is not None and self._within_gap(self._best)
        solution = Solution(
            ending=Ending.OPTIMAL if within else Ending.TIME_LIMIT,
            replicas=tuple(self._whole(s, mix) for s, mix in enumerate(mixes)),
            objective=self._cost(mixes),
            bound=min(self._bound, self._cost(mixes)),
            seconds=self._spent_s(),
        )
        return Decomposed(solution, prices, tuple(self._alone()))

    def _alone(self) -> list[float]:
        """Proven bounds on what each service costs alone: where nothing shared has a price, with the cuts there are."""
        limits = replace(self._sub_limits(), nodes=1)
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(lambda each: each.alone_bound(limits), self._distinct.values()))
        bounds = dict(zip(self._distinct.values(), found, strict=True))
        return [bounds[each] for each in self._services]

    def _remember(self, mixes: Mixes | None) -> None:
        self._memo.note(("prices", self._shared_names()), self._prices)
        for s, each in enumerate(self._services):
            its = (self._names[s], each.service.variants)
            self._memo.note(("weights", *its), each.known.weights)
            if mixes is not None:
                self._memo.note(("mix", *its), mixes[s])


def _pruned(service: ServiceProblem, stock: Sequence[StockLimit]) -> tuple[tuple[int, ...], ServiceProblem]:
    """Variants that an optimum may need, and the service with these as if nothing ran."""
    kept = undominated(service, stock)
    return kept, service.only(kept).fresh()


def _ceiling(limit: SharedLimit, services: Sequence[ServiceProblem]) -> float:
    dearest = 1.0
    for service in services:
        most = max(service.prices, default=0.0)
        dearest = max((most / weight for weight in limit.weights(service) if weight > 0), default=dearest)
    return _CEILING * dearest
