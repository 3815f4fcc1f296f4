"""All services at prices of what they share: their subproblems, the bound that follows, and the mixes found.

One run of the decomposition (`decompose.py`) has one of these. It searches services' mixes at prices, takes them into
the master programme, and keeps the highest bound with its prices.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medley_planner.programme.goals import Limits
from medley_planner.programme.sparse import Array
from medley_planner.sharing.columns import Columns, Priced
from medley_planner.sharing.helpers import Helpers
from medley_planner.sharing.looking import Mix, bounded, looked, nearby
from medley_planner.sharing.master import Master, Relaxed

_SUBPROBLEM_GAP = 0.3
"""Of the gap that is allowed, subproblems may leave so much."""

_CHOICE_GAP = 0.3
"""Of the gap that is allowed, the integer master may leave so much."""

_PROVABLE = 0.5
"""Of what lies between the mixes that are known and the bounds, longer searches may prove so much."""

Mixes = tuple[Mix, ...]


class Pricing:
    """The services of one run.

    Args:
        services: The mixes of each; services that need the same are one object, several times.
        most: By shared limit: how much there is.
        ceilings: By shared limit: a unit is never worth more, USD per hour.
        limits: Time, and the gap at which the whole is to stop.
        helpers: Who searches.
    """

    def __init__(
        self, services: Sequence[Columns], most: Array, ceilings: Array, limits: Limits, helpers: Helpers
    ) -> None:
        self.services = tuple(services)
        self.distinct = tuple(dict.fromkeys(services))
        self.most = most
        self.ceilings = ceilings
        self.bound = -math.inf
        self.prices = np.zeros(len(most))
        self.taken: list[tuple[int, Mix]] = []
        """(service, mix) in the order in which the master has them."""
        self._limits = limits
        self._helpers = helpers
        self._master = Master(len(self.services), most, ceilings)
        self._mixes: list[dict[Mix, None]] = [{} for _ in self.services]
        self._last: dict[Columns, Priced] = {}
        self._seconds = 0.0

    @property
    def spent_s(self) -> float:
        """Seconds of the solver so far."""
        return self._seconds + math.fsum(each.seconds for each in self.distinct) / self._helpers.count

    @property
    def sub_limits(self) -> Limits:
        """Limits of one subproblem."""
        return Limits(self._limits.time_limit_s, self._limits.relative_gap * _SUBPROBLEM_GAP)

    def price(self, columns: Sequence[Columns], prices: Array, nodes: int) -> bool:
        """Price these services, and take the bound that follows; False where one cannot be served.

        All others must have been priced at the same prices before.
        """
        found = self.search(columns, prices, nodes)
        if any(math.isinf(priced.bound) for priced in found):
            return False
        self._last.update(zip(columns, found, strict=True))
        bound = math.fsum(self._last[each].bound for each in self.services) - float(prices @ self.most)
        if bound > self.bound:
            self.bound, self.prices = bound, prices
        return True

    def search(self, columns: Sequence[Columns], prices: Array, nodes: int) -> list[Priced]:
        """Search the mixes of these services at these prices, looking at so many nodes of each search tree."""
        limits = replace(self.sub_limits, nodes=nodes)
        unknown = [each for each in columns if not each.is_known(prices, limits)]
        asked = [each.asked(each.question(prices, limits)) for each in unknown]
        for each, answer in zip(unknown, self._helpers.answers(looked, asked), strict=True):
            each.take(prices, limits, answer)
        return [each.priced(prices, limits) for each in columns]

    def look_near(self, within: float) -> None:
        """Look for more mixes of each service that cost no more than so much above its best at the best prices."""
        limits = self.sub_limits
        asked = [each.asked(each.question(self.prices, limits)) for each in self.distinct]
        found = self._helpers.answers(functools.partial(nearby, within), asked)
        for each, answer in zip(self.distinct, found, strict=True):
            each.take_mixes(answer)

    def least_proven(self) -> list[Columns]:
        """Services of which longer searches could prove most of what is missing."""
        times = Counter(self.services)
        open_by = {each: times[each] * (priced.found - priced.bound) for each, priced in self._last.items()}
        left = math.fsum(open_by.values())
        allowed = _SUBPROBLEM_GAP * self._limits.relative_gap * abs(self.bound)
        again: list[Columns] = []
        for each in sorted(open_by, key=lambda each: -open_by[each]):
            if left <= allowed:
                break
            left -= open_by[each]
            again.append(each)
        return again

    def relaxed(self) -> Relaxed:
        """The relaxation of the master, with all mixes that are known."""
        self._gather()
        relaxed = self._master.relax()
        self._seconds += relaxed.seconds
        return relaxed

    def choose(self, costs: Sequence[float] | None = None) -> Mixes | None:
        """The best choice of one of the mixes taken per service; None where none fit together in time.

        Args:
            costs: What they cost instead, in the order of `taken`.
        """
        left_s = max(0.5, self._limits.time_limit_s - self.spent_s)
        chosen = self._master.choose(left_s, _CHOICE_GAP * self._limits.relative_gap, costs)
        self._seconds += chosen.seconds
        if chosen.mixes is None:
            return None
        return tuple(list(self._mixes[s])[place] for s, place in enumerate(chosen.mixes))

    def cost(self, mixes: Mixes) -> float:
        """What one mix per service costs together."""
        return math.fsum(each.cost(mix) for each, mix in zip(self.services, mixes, strict=True))

    def used(self, mixes: Sequence[Mix | None]) -> Array:
        """What they use of each shared limit together."""
        total = np.zeros(len(self.most))
        for each, mix in zip(self.services, mixes, strict=True):
            if mix is not None:
                total += each.used(mix)
        return total

    def within_gap(self, mixes: Mixes) -> bool:
        """Whether they cost no more above the bound than the gap allows."""
        cost = self.cost(mixes)
        return cost - self.bound <= self._limits.relative_gap * cost

    def may_be_within_gap(self, mixes: Mixes) -> bool:
        """Whether they would be if as much of what is open at the prices of the bound were proven as can be hoped."""
        times = Counter(self.services)
        left = math.fsum(times[each] * (priced.found - priced.bound) for each, priced in self._last.items())
        cost = self.cost(mixes)
        return cost - self.bound - _PROVABLE * left <= self._limits.relative_gap * cost

    def alone(self) -> list[float]:
        """Proven bounds on what each service costs alone: where nothing shared has a price."""
        unknown = [each for each in self.distinct if each.known.alone is None]
        asked = [each.asked(each.question_alone(self.sub_limits)) for each in unknown]
        for each, bound in zip(unknown, self._helpers.answers(bounded, asked), strict=True):
            each.known.alone = bound
        return [each.known.alone or 0.0 for each in self.services]

    def _gather(self) -> None:
        """Take all known mixes into the master."""
        for s, each in enumerate(self.services):
            for mix in each.known.mixes:
                if mix not in self._mixes[s]:
                    self._mixes[s][mix] = None
                    self.taken.append((s, mix))
                    self._master.add(s, each.cost(mix), each.used(mix))
