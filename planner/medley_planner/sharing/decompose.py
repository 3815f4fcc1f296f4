"""Many services under shared limits: prices of what is shared, one subproblem per service, one mix each from a master.

Let π[k] ≥ 0 be a price for every unit of shared limit k, w[k,v] what a replica of v uses of it, and

    z_s(π) = min { Σ_v (c[v] + Σ_k π[k]·w[k,v])·n[v] : n serves s and keeps its rows, n whole }

1. *Bound.* In any joint plan, Σ_s Σ w·n ≤ most. So its cost is at least its cost plus π·(Σ w·n − most), and that is at
   least L(π) = Σ_s z_s(π) − π·most. The solver's proven bounds of the z_s may stand in their place. This holds for
   every π, and since n stays whole in z_s, the best L(π) is far above the linear relaxation where services are small.
2. *Plan.* The mixes found on the way are the columns of a master programme (`master.py`) that takes one mix of each
   service within the limits. The dual prices of its relaxation are the next π to try, between them and the best so far.
3. *More mixes.* Where the master's relaxation is much below its whole plan, prices have no more to say: what is missing
   are mixes to choose from. Then those near each service's best are looked for, further away every time.
4. *End.* When the master's plan is within the gap of the best bound; or when time or sweeps are over. The plan so far
   and the proven gap are returned in every case.

`pricing.py` is what a sweep works on, `price_steps.py` says where the next one goes. A sweep proves most of what can be
proven by looking at mixes (`programme/enumeration.py`). Where mixes that were found are near to the bound, and what is
left unproven at its prices is all that is missing, services are searched longer, a few at a time.

Prices are kept in the `Memo`: when a service changes, the others' subproblems at those prices are known, and only its
own has to be solved. Where what runs, with only those services changed that cannot stay, is still within the gap, it
stays.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from medley_planner.programme.dominance import undominated
from medley_planner.programme.goals import Ending, Limits, Solution
from medley_planner.programme.memo import Memo
from medley_planner.programme.problem import LOAD_TOLERANCE, FleetProblem, ServiceProblem, SharedLimit, StockLimit
from medley_planner.programme.sparse import Array
from medley_planner.sharing.columns import Columns, Known
from medley_planner.sharing.helpers import Helpers
from medley_planner.sharing.looking import Mix
from medley_planner.sharing.master import Relaxed
from medley_planner.sharing.price_steps import step
from medley_planner.sharing.pricing import Mixes, Pricing
from medley_planner.sharing.relaxed_prices import relaxed_prices

_SWEEPS = 20
_NODES = (10, 100, 400)
"""Of the search trees of subproblems where most is left unproven."""

_AT_A_TIME = 4
"""Services that are searched longer before it is asked whether what is proven suffices."""

_CEILING = 10.0
"""A unit of what is shared is never worth more than so many of the dearest replicas' price per unit."""

_WORTH_CHOOSING = 3.0
"""The integer master is asked when its relaxation is within so many times the gap of the bound."""

_FRACTIONAL = 0.3
"""Where whole mixes cost so much of the gap more than shares of mixes do, more mixes of each service are looked for."""

_NEAR = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""Each time, mixes that cost so much of the gap more than the service's best."""

_FEW_CHANGES = 0.25
"""Where more services than this share cannot stay as they are, all are planned anew."""

_KNOWN_BYTES = 2**16
"""About what is known of a service in the end: dozens of mixes, cuts and bounds."""


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
    """One run: the sweeps, and the plan so far."""

    def __init__(self, problem: FleetProblem, names: Sequence[str], limits: Limits, memo: Memo) -> None:
        self._names = tuple(names)
        self._problem = problem
        self._limits = limits
        self._memo = memo
        self._shared = needed_limits(problem.shared)
        pools = tuple(sorted({limit.pool for limit in problem.stock}))
        pruned = [
            memo.recall(("pruned", each, pools), functools.partial(_pruned, each, problem.stock))
            for each in problem.services
        ]
        self._kept = [kept for kept, _ in pruned]
        self._pricing = Pricing(
            self._columns([fresh for _, fresh in pruned]),
            np.array([limit.most for limit in self._shared]),
            np.array([_ceiling(limit, problem.services) for limit in self._shared]),
            limits,
            Helpers(limits.helpers),
        )
        self._best: Mixes | None = None

    def _columns(self, services: Sequence[ServiceProblem]) -> list[Columns]:
        """What is known of each service; the same object for services that need the same."""
        distinct: dict[ServiceProblem, Columns] = {}
        for name, fresh in zip(self._names, services, strict=True):
            if fresh not in distinct:
                known = self._memo.recall(("known mixes", fresh, self._shared), Known, taken_bytes=_KNOWN_BYTES)
                hints = cast("Sequence[Array]", self._memo.hint(("weights", name, fresh.variants)) or ())
                distinct[fresh] = Columns(fresh, self._shared, known, hints)
        return [distinct[fresh] for fresh in services]

    def run(self) -> Decomposed:
        pricing = self._pricing
        prices = cast("Array | None", self._memo.hint(("prices", self._shared_names())))
        if prices is None:
            prices = relaxed_prices([each.service for each in pricing.services], self._shared, pricing.ceilings)
        further = iter(_NEAR)
        for sweep in range(_SWEEPS):
            if not pricing.price(pricing.distinct, prices, 0):
                return Decomposed(Solution(Ending.INFEASIBLE, seconds=pricing.spent_s))
            if sweep == 0:
                kept = self._keep()
                if kept is not None and self._proven(kept):
                    self._best = kept
                    return self._ended(kept)
            relaxed, prices = step(pricing, prices)
            if self._worth_choosing(relaxed):
                self._choose()
            if self._best is not None:
                if self._proven(self._best):
                    break
                if pricing.cost(self._best) - relaxed.value > _FRACTIONAL * self._allowed(relaxed):
                    within = next(further, None)
                    if within is None:
                        break
                    pricing.look_near(within * self._allowed(relaxed))
            if pricing.spent_s >= self._limits.time_limit_s:
                break
        return self._ended(self._least_changes())

    def _proven(self, mixes: Mixes) -> bool:
        """Whether these mixes are within the gap, with longer searches where those can prove it."""
        pricing = self._pricing
        if pricing.within_gap(mixes):
            return True
        pricing.price(pricing.distinct, pricing.prices, 0)
        for nodes in _NODES:
            if not pricing.may_be_within_gap(mixes):
                return False
            again = pricing.least_proven()
            for first in range(0, len(again), _AT_A_TIME):
                pricing.price(again[first : first + _AT_A_TIME], pricing.prices, nodes)
                if pricing.within_gap(mixes):
                    return True
                if pricing.spent_s >= self._limits.time_limit_s:
                    return False
        return False

    def _worth_choosing(self, relaxed: Relaxed) -> bool:
        return relaxed.within and relaxed.value - self._pricing.bound <= _WORTH_CHOOSING * self._allowed(relaxed)

    def _allowed(self, relaxed: Relaxed) -> float:
        """What the gap allows, in USD per hour."""
        return self._limits.relative_gap * abs(relaxed.value)

    def _choose(self) -> None:
        """Look for the best mixes so far."""
        mixes = self._pricing.choose()
        if mixes is not None and (self._best is None or self._pricing.cost(mixes) < self._pricing.cost(self._best)):
            self._best = mixes

    def _least_changes(self) -> Mixes | None:
        """Of the mixes found, those that are best when loading what does not run is paid for, too."""
        services = self._problem.services
        if self._best is None or not any(any(service.running) for service in services):
            return self._best
        moving = [
            self._pricing.services[s].cost(mix) + services[s].switching_cost(self._whole(s, mix))
            for s, mix in self._pricing.taken
        ]
        return self._pricing.choose(moving) or self._best

    def _keep(self) -> Mixes | None:
        """What runs (or was planned before), with only the services changed that cannot stay; None where too many
        cannot, or they do not fit."""
        pricing = self._pricing
        kept = [self._standing(s) for s in range(len(pricing.services))]
        changing = [s for s, mix in enumerate(kept) if mix is None]
        if len(changing) > _FEW_CHANGES * len(kept):
            return None
        for s in changing:
            service = self._problem.services[s].only(self._kept[s])
            kept[s] = pricing.services[s].beside(pricing.most - pricing.used(kept), service, pricing.sub_limits)
        mixes = tuple(mix for mix in kept if mix is not None)
        if len(mixes) < len(kept) or np.any(pricing.used(mixes) > pricing.most + LOAD_TOLERANCE):
            return None
        return mixes

    def _standing(self, s: int) -> Mix | None:
        """What runs of a service, or was planned for it before, where it still serves and keeps its rows."""
        service, columns = self._problem.services[s], self._pricing.services[s]
        mix = tuple(service.running[v] for v in self._kept[s])
        if not any(mix):
            mix = cast("Mix", self._memo.hint(("mix", self._names[s], columns.service.variants)) or ())
        if not mix or not service.keeps_rows(self._whole(s, mix)):
            return None
        return mix if columns.serves(mix) else None

    def _whole(self, s: int, mix: Mix) -> Mix:
        """The mix in terms of all variants."""
        counts = dict(zip(self._kept[s], mix, strict=True))
        return tuple(counts.get(v, 0) for v in range(len(self._problem.services[s].variants)))

    def _ended(self, mixes: Mixes | None) -> Decomposed:
        self._remember(mixes)
        pricing = self._pricing
        prices = tuple(zip(self._shared, pricing.prices.tolist(), strict=True))
        if mixes is None:
            return Decomposed(Solution(Ending.NOTHING_FOUND, bound=pricing.bound, seconds=pricing.spent_s), prices)
        within = self._best is not None and pricing.within_gap(self._best)
        solution = Solution(
            ending=Ending.OPTIMAL if within else Ending.TIME_LIMIT,
            replicas=tuple(self._whole(s, mix) for s, mix in enumerate(mixes)),
            objective=pricing.cost(mixes),
            bound=min(pricing.bound, pricing.cost(mixes)),
            seconds=pricing.spent_s,
        )
        return Decomposed(solution, prices, tuple(pricing.alone()))

    def _remember(self, mixes: Mixes | None) -> None:
        self._memo.note(("prices", self._shared_names()), self._pricing.prices)
        for s, each in enumerate(self._pricing.services):
            its = (self._names[s], each.service.variants)
            self._memo.note(("weights", *its), each.known.weights)
            if mixes is not None:
                self._memo.note(("mix", *its), mixes[s])

    def _shared_names(self) -> tuple[object, ...]:
        return tuple((limit.pool, limit.group) if isinstance(limit, StockLimit) else "" for limit in self._shared)


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
