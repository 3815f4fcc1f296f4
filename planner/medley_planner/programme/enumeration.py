"""The cheapest mix of one service by looking at all mixes that could be: no search tree, no solver.

Mixes that cost less than some price and keep the known cuts of `serving.py` are listed in one array (`lattice.py`):

1. ask whether the cheapest on the list can serve. If so, it is the optimum: all cheaper ones are proven not to;
2. else that gives a cut, which drops it and others; again, until none are left;
3. then nothing costs less than that price: a higher one is tried, by a larger step the shorter the list was.

Whatever it ends with, all mixes that cost less than the bound are proven not to serve. Where a list grows too long, or
too many mixes have to be asked for, it ends with the bound so far, and the programme is solved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from medley_planner.programme.goals import Ending, Solution
from medley_planner.programme.lattice import Below, Lattice, Mixes
from medley_planner.programme.problem import TIE_USD_PER_GPU_HOUR, FleetProblem
from medley_planner.programme.serving import Cut, Serving
from medley_planner.programme.sparse import Array

_ROWS = 40_000
"""A longer list of mixes, of some variants or all, is left to the solver."""

_NEAR_ROWS, _MOST_NEAR, _MOST_HALVINGS = 2_000, 6, 8
"""Of more mixes near the cheapest: the longest list, and of how many it is asked whether they serve."""

_MOST_ASKED = 200
_MOST_LISTS = 60
_EQUAL, _DIGITS = 1e-9, 9
_FIRST_STEP, _STEPS = 1.02, ((200, 1.5), (2_000, 1.25), (math.inf, 1.05))
"""The next price is so many times the last, by how long the last list grew."""

Mix = tuple[int, ...]


@dataclass
class Searched:
    """What looking at mixes gave.

    Args:
        bound: No mix that serves costs less.
        mix: A mix that serves and costs that; None where none was found.
        mixes: More mixes that serve.
        cuts: Cuts that were found on the way.
        asked: Of how many mixes it was asked whether they serve.
    """

    bound: float
    mix: Mix | None = None
    mixes: list[Mix] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    asked: int = 0


class Enumeration:
    """The mixes of one service, to be searched at different prices.

    Args:
        problem: One service, and what limits it.
        serving: Its cuts.
        loading: Whether it costs something to load what does not run.
    """

    def __init__(self, problem: FleetProblem, serving: Serving, *, loading: bool) -> None:
        self._lattice = Lattice(problem, loading=loading)
        self._serving = serving

    def search(self, unit_costs: Array, cuts: Sequence[Cut], most: float, *, rows: int = _ROWS) -> Searched:
        """The cheapest mix that serves and costs less than `most`.

        Args:
            unit_costs: What a replica costs, by variant.
            cuts: Cuts that are known.
            most: What a mix that is known costs; infinite where none is.
            rows: The longest list.
        """
        near = np.maximum(unit_costs, _EQUAL)
        known = [cut.weights / cut.least for cut in cuts]
        found = Searched(_least(_rows(known, len(near)), unit_costs))
        price = max(found.bound, min((cost for cost in unit_costs.tolist() if cost > 0.0), default=_EQUAL))
        step = _FIRST_STEP
        for _ in range(_MOST_LISTS):
            if found.bound >= most - _EQUAL:
                found.bound = most
                break
            price = min(price * step, most)
            listed = self._lattice.below(unit_costs, _rows(known, len(near)), price, rows=rows)
            if listed is None or self._ask(listed, most, near, known, found):
                break
            found.bound = max(found.bound, price)
            step = next(step for longest, step in _STEPS if listed.looked_at <= longest)
        return found

    def near(
        self, unit_costs: Array, cuts: Sequence[Cut], known: Sequence[Mix], *, least: float, within: float
    ) -> Searched:
        """More mixes that serve, the cheapest first; in `mixes`, those that are found.

        A mix that has all the replicas of another is left out: it is never the better choice.

        Args:
            unit_costs: What a replica costs, by variant.
            cuts: Cuts that are known.
            known: Mixes that are known to serve.
            least: What the cheapest of those costs.
            within: How much more others may cost; less where there are too many.
        """
        near = np.maximum(unit_costs, _EQUAL)
        found = Searched(0.0)
        weights = _rows([cut.weights / cut.least for cut in cuts], len(near))
        for _ in range(_MOST_HALVINGS):
            listed = self._lattice.below(unit_costs, weights, least + within, rows=_NEAR_ROWS)
            if listed is not None:
                break
            within /= 2.0
        else:
            return found
        mixes, _ = _cheapest_first(listed.mixes, listed.prices)
        for mix in known:
            mixes = mixes[(mixes < np.array(mix)).any(axis=1)]
        while len(mixes) and found.asked < _MOST_NEAR:
            found.asked += 1
            mix, usable = mixes[0], self._lattice.usable(mixes)
            broken = self._serving.broken(usable[0], near=near)
            found.cuts += broken
            if not broken:
                found.mixes.append(tuple(int(count) for count in mix))
            kept = (mixes < mix).any(axis=1) if not broken else np.arange(len(mixes)) > 0
            for cut in broken:
                kept &= usable @ (cut.weights / cut.least) >= 1.0 - _EQUAL
            mixes = mixes[kept]
        return found

    def _ask(self, listed: Below, most: float, near: Array, known: list[Array], found: Searched) -> bool:
        """Look for a mix on the list that serves, the cheapest first; False where none on it does.

        True where one does, which `found` has then, or where too many had to be asked for.

        Args:
            listed: The mixes.
            most: What a mix that is known costs.
            near: Prices near which cuts are looked for.
            known: Weights of the cuts; added to.
            found: Takes what is found.
        """
        mixes, prices = _cheapest_first(listed.mixes, listed.prices)
        cheaper = prices < most - _EQUAL
        mixes, prices = mixes[cheaper], prices[cheaper]
        usable = self._lattice.usable(mixes)
        while len(mixes) and found.asked < _MOST_ASKED:
            found.bound = max(found.bound, float(prices[0]))
            found.asked += 1
            broken = self._serving.broken(usable[0], near=near)
            if not broken:
                found.mix = tuple(int(count) for count in mixes[0])
                return True
            kept = np.arange(len(mixes)) > 0
            for cut in broken:
                known.append(cut.weights / cut.least)
                kept &= usable @ known[-1] >= 1.0 - _EQUAL
            found.cuts += broken
            mixes, prices, usable = mixes[kept], prices[kept], usable[kept]
        return len(mixes) > 0


def _rows(cuts: Sequence[Array], variants: int) -> Array:
    """Weights of cuts as one array, (cuts, variants)."""
    return np.array(cuts, dtype=np.float64).reshape(-1, variants)


def _least(cuts: Array, unit_costs: Array) -> float:
    """What keeping the dearest of these cuts costs at least."""
    per_unit = np.full(cuts.shape, np.inf)
    np.divide(unit_costs, cuts, out=per_unit, where=cuts > 0.0)
    least = per_unit.min(axis=1, initial=np.inf)
    return float(least[np.isfinite(least)].max(initial=0.0))


def _cheapest_first(mixes: Mixes, prices: Array) -> tuple[Mixes, Array]:
    """The cheapest first; of equals those of the fewest variants, of one variant in their order, else those with the
    fewest replicas."""
    kinds = (mixes > 0).sum(axis=1)
    simplest = np.where(kinds == 1, mixes.argmax(axis=1), mixes.sum(axis=1))
    order = np.lexsort((*mixes.T[::-1], simplest, kinds, np.round(prices, _DIGITS)))
    return mixes[order], prices[order]


def enumerated(problem: FleetProblem) -> Solution | None:
    """The cheapest mix of the only service, change included; None where there are too many to look at.

    Args:
        problem: One service, and what limits it.
    """
    (service,) = problem.services
    serving = Serving(service)
    if not serving.possible:
        return None
    loading = [0.0 if runs else each for runs, each in zip(service.running, service.switching, strict=True)]
    unit_costs = np.array(service.prices) + TIE_USD_PER_GPU_HOUR * np.array(service.gpus) + np.array(loading)
    cuts = serving.at_prices(np.maximum(unit_costs, _EQUAL))
    found = Enumeration(problem, serving, loading=True).search(unit_costs, cuts, math.inf)
    if found.mix is None:
        return None
    return Solution(Ending.OPTIMAL, (found.mix,), objective=found.bound, bound=found.bound)
