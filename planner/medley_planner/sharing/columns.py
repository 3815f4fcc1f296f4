"""Mixes of one service at given prices of what services share, with a proven bound: a subproblem of the decomposition.

A mix that serves the service serves it at every price. So mixes and cuts, once found, are kept, within a plan and, in a
`Memo`, from plan to plan; and a bound that was proven for some prices holds for the same prices ever after.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medley_planner.programme.by_cuts import MixSearch, stepped
from medley_planner.programme.goals import Ending, Goal, Limits
from medley_planner.programme.problem import (
    LOAD_TOLERANCE,
    TIE_USD_PER_GPU_HOUR,
    CostLimit,
    FleetProblem,
    ServiceProblem,
    SharedLimit,
    StockLimit,
)
from medley_planner.programme.serving import Serving
from medley_planner.programme.sparse import Array
from medley_planner.sharing.helpers import Asked
from medley_planner.sharing.looking import Looked, Mix, Question, started


@dataclass(frozen=True)
class Proven:
    """A proven bound, how its search ended, and how many nodes it was given."""

    bound: float
    ending: Ending
    nodes: int | None

    @property
    def open(self) -> bool:
        """Whether a longer search could prove more."""
        return self.ending not in (Ending.OPTIMAL, Ending.INFEASIBLE)


@dataclass(frozen=True)
class Priced:
    """What a service costs at some prices: at least `bound`, as is proven, and `found` with the best mix that is known.

    Both are infinite where it cannot be served.
    """

    bound: float
    found: float


def _key(surcharges: Array, limits: Limits) -> tuple[float, ...]:
    return (*surcharges.tolist(), limits.relative_gap)


def _worth_more(before: Proven, limits: Limits) -> bool:
    """Whether the search may look at more nodes than the last one, and that could prove more."""
    return before.open and before.nodes is not None and (limits.nodes is None or limits.nodes > before.nodes)


@dataclass
class Known:
    """What is known of a service's problem whatever the prices: kept from plan to plan.

    Args:
        mixes: Mixes of the undominated variants that serve everything, in the order in which they were found.
        weights: Prices of replicas' time whose cuts mattered.
        bounds: By surcharges and gap: what was proven.
        alone: A proven bound where nothing shared has a price; None where none was looked for.
    """

    mixes: dict[Mix, None] = field(default_factory=dict)
    weights: tuple[Array, ...] = ()
    bounds: dict[tuple[float, ...], Proven] = field(default_factory=dict)
    alone: float | None = None


_MOST_BOUNDS = 64
"""Of so many prices the bounds are kept."""


class Columns:
    """The mixes of one service of a decomposition.

    Args:
        service: The service as if nothing ran, of which only variants that an optimum may need are left.
        shared: What it shares with others.
        known: What is known of the same problem; added to.
        hints: Prices of replicas' time that mattered for a similar problem.
    """

    def __init__(
        self, service: ServiceProblem, shared: Sequence[SharedLimit], known: Known, hints: Sequence[Array] = ()
    ) -> None:
        self.service = service
        self.known = known
        self._weights = np.array([limit.weights(service) for limit in shared]).reshape(
            len(shared), len(service.variants)
        )
        self._unit_costs = np.array(service.prices)
        self._ties = TIE_USD_PER_GPU_HOUR * np.array(service.gpus)
        self._hints = (*(each for each in hints if len(each) == len(service.variants)), *known.weights)
        own = tuple(limit for limit in shared if limit.used_by(service, service.useful) > limit.most)
        money = next((limit for limit in own if isinstance(limit, CostLimit)), None)
        self._alone = FleetProblem((service,), tuple(limit for limit in own if isinstance(limit, StockLimit)), money)
        self._shared = tuple(shared)
        self.seconds = 0.0

    def asked(self, question: Question) -> Asked:
        """A question about this service."""
        return Asked(self, lambda: self._search, question)

    def question(self, prices: Array, limits: Limits) -> Question:
        """What to look for where what is shared has these prices."""
        return Question(self._alone, self._hints, prices @ self._weights - self._ties, limits)

    def question_alone(self, limits: Limits) -> Question:
        """The same where nothing shared has a price."""
        return Question(self._alone, self._hints, -self._ties, limits)

    def priced(self, prices: Array, limits: Limits) -> Priced:
        """The least that the service costs where what is shared has these prices, of what is known."""
        surcharges = prices @ self._weights
        proven = self.known.bounds[_key(surcharges, limits)]
        if proven.ending is Ending.INFEASIBLE:
            return Priced(math.inf, math.inf)
        found = math.inf
        if self.known.mixes:
            found = float((np.array(list(self.known.mixes)) @ (self._unit_costs + surcharges)).min())
        return Priced(min(proven.bound, found), found)

    def take(self, prices: Array, limits: Limits, answer: Looked) -> None:
        """Note what was found, and proven at these prices."""
        surcharges = prices @ self._weights
        before = self._proven(surcharges, limits)
        self.seconds += answer.seconds
        self.take_mixes(answer)
        bound = max(answer.bound, 0.0 if before is None else before.bound)
        self.known.bounds[_key(surcharges, limits)] = Proven(bound, answer.ending, limits.nodes)
        if len(self.known.bounds) > _MOST_BOUNDS:
            self.known.bounds.pop(next(iter(self.known.bounds)))

    def take_mixes(self, answer: Looked) -> None:
        """Note the mixes that were found."""
        for mix in answer.mixes:
            self.known.mixes.setdefault(mix)
        self.known.weights = answer.weights

    def is_known(self, prices: Array, limits: Limits) -> bool:
        """Whether nothing is left to ask."""
        before = self._proven(prices @ self._weights, limits)
        return before is not None and not _worth_more(before, limits)

    def _proven(self, surcharges: Array, limits: Limits) -> Proven | None:
        return self.known.bounds.get(_key(surcharges, limits))

    @functools.cached_property
    def _search(self) -> MixSearch:
        return started(self._alone, self._hints)

    def cost(self, mix: Mix) -> float:
        """What a mix costs."""
        return float(self._unit_costs @ np.array(mix, dtype=np.float64))

    def used(self, mix: Mix) -> Array:
        """What it uses of each shared limit."""
        return np.asarray(self._weights @ np.array(mix, dtype=np.float64))

    def serves(self, mix: Mix) -> bool:
        """Whether a mix serves everything."""
        if mix in self.known.mixes:
            return True
        return not Serving(self.service).broken(stepped(self.service, mix))

    def beside(self, left: Array, service: ServiceProblem, limits: Limits) -> Mix | None:
        """The cheapest mix, change included, with what the others leave of what is shared; None where there is none.

        Args:
            left: By shared limit.
            service: The same service with what runs of it.
            limits: Time and gap.
        """
        narrowed = [_narrowed(limit, most) for limit, most in zip(self._shared, left.tolist(), strict=True)]
        stock = tuple(limit for limit in narrowed if isinstance(limit, StockLimit))
        money = next((limit for limit in narrowed if isinstance(limit, CostLimit)), None)
        problem = FleetProblem((service,), stock, money)
        search = MixSearch(problem, Goal.CHEAPEST, known=(self.known.weights,))
        solution = search.solve(limits)
        self.seconds += solution.seconds
        return solution.replicas[0] if solution.found else None


def _narrowed(limit: SharedLimit, most: float) -> SharedLimit:
    if isinstance(limit, StockLimit):
        return replace(limit, gpus=max(0, math.floor(most + LOAD_TOLERANCE)))
    return CostLimit(max(0.0, most))
