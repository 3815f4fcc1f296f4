"""The fleet's integer programme over replicas alone: the fast way to solve what `milp.py` states.

The shares x of `milp.py` are only there so that the replicas can serve. Here they are left out, and the replicas keep
the cuts of `serving.py` instead, which are added as they are broken:

1. of a single service, the mixes are looked at first (`enumeration.py`), which mostly is the end;
2. the linear relaxation is solved a few times, each time with the cuts that its replicas break;
3. then the integer programme: where its replicas can serve, they are optimal within the gap; where not, they break
   cuts, and replicas are added to them until they can serve, which gives a mix to compare with.

What remains has a column for every variant, some for queues and for what runs, and a few dozen rows, where the model
with shares has thousands of columns. Its bound is proven, since every cut holds for every mix that serves.

All goals, constraints and names are those of `milp.py`; a test compares the two on every kind of fleet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medley_planner.programme.enumeration import Enumeration
from medley_planner.programme.goals import LEAVES_UNSERVED, Ending, Goal, Limits, Solution, Unserved
from medley_planner.programme.problem import FleetProblem, ServiceProblem
from medley_planner.programme.replica_rows import Found, Programme
from medley_planner.programme.serving import Cut, Serving
from medley_planner.programme.sparse import Array

ABSOLUTE_GAP = 1e-7

_RELAXED_ROUNDS, _QUICK_ROUNDS = 3, 8
_RELAXED_TOLERANCE = 1e-3
_FEW_ROWS, _MANY_ROWS = 2_000, 20_000
_MOST_ROUNDS = 400
_FEW_ROUNDS = 4
_MOST_CUTS, _KEPT_CUTS, _NEAREST_MIXES = 40, 24, 6
_MOST_REPAIRS = 40
_MASTER_GAP = 0.5
"""Of the gap that is allowed, a run of the solver may leave so much: the cuts that are found after it take the rest."""
_ROUNDED_UP = 0.5
_INTEGER_TOLERANCE = 1e-4
_LEAST_PRICE = 1e-6

Mixes = tuple[tuple[int, ...], ...]

KnownPrices = Sequence[Sequence[Array]]
"""For each service, prices of replicas' time by variant."""


def solve_by_cuts(
    problem: FleetProblem, goal: Goal, limits: Limits, *, unserved: Unserved = (), known: KnownPrices = ()
) -> Solution:
    """Solve one integer programme.

    Args:
        problem: Services and what they share.
        goal: What to look for.
        limits: Time and gap.
        unserved: How much may stay unserved; priorities that are left out are free, of which `MOST_SERVED` serves the
            highest.
        known: For each service, prices of replicas' time whose cuts mattered before; only makes it faster.
    """
    return MixSearch(problem, goal, unserved=unserved, known=known).solve(limits)


class MixSearch:
    """A programme that may be solved several times at different prices of replicas; its cuts and mixes are kept.

    Args:
        problem: Services and what they share.
        goal: What to look for.
        unserved: How much may stay unserved; priorities that are left out are free, of which `MOST_SERVED` serves the
            highest.
        known: For each service, prices of replicas' time whose cuts mattered before.
    """

    def __init__(self, problem: FleetProblem, goal: Goal, *, unserved: Unserved = (), known: KnownPrices = ()) -> None:
        partly = goal in LEAVES_UNSERVED
        self._problem = problem
        self._servings = [Serving(service, partly=partly) for service in problem.services]
        self._possible = partly or all(serving.possible for serving in self._servings)
        self._programme = Programme(problem, goal, unserved)
        self._variables = self._programme.variables
        self._repairs = goal not in (*LEAVES_UNSERVED, Goal.LEAST_EXTRA_STOCK)
        self._enumeration: Enumeration | None = None
        if self._repairs and len(problem.services) == 1 and self._possible:
            self._enumeration = Enumeration(problem, self._servings[0], loading=goal is Goal.CHEAPEST)
        self._cuts: list[list[Cut]] = [[] for _ in problem.services]
        self._found: dict[Mixes, None] = {}
        self._best: Solution | None = None
        self._bound = -math.inf
        self._seconds = 0.0
        self._limits = Limits(0.0, 0.0)
        for s, prices in enumerate(known):
            for each in prices:
                self._add(s, self._servings[s].at_prices(each))

    @property
    def mixes(self) -> tuple[Mixes, ...]:
        """All mixes found so far that serve and keep every row, in the order in which they were found."""
        return tuple(self._found)

    @property
    def known(self) -> tuple[tuple[Array, ...], ...]:
        """For each service, the prices of replicas' time whose cuts were added."""
        return tuple(tuple(cut.weights for cut in cuts) for cuts in self._cuts)

    def solve(self, limits: Limits, surcharges: Sequence[Array] | None = None) -> Solution:
        """The best mixes where replicas cost so much more.

        Args:
            limits: Time and gap.
            surcharges: For each service, USD per hour on top by variant; `objective` and `bound` include them.
        """
        self._limits, self._seconds, self._best, self._bound = limits, 0.0, None, -math.inf
        if not self._possible:
            return Solution(Ending.INFEASIBLE)
        if surcharges is not None:
            self._programme.charge(surcharges)
            self._forget_cuts()
        if self._repairs:
            for mixes in self._found:
                self._offer(mixes, self._programme.cost(mixes), None)
        for s, serving in enumerate(self._servings):
            self._add(s, serving.at_prices(self._unit_costs(s)))
        return self._run()

    def _forget_cuts(self) -> None:
        """Keep those cuts that the best mixes at these prices come nearest to: the search grows with their number."""
        for s, cuts in enumerate(self._cuts):
            if len(cuts) <= _MOST_CUTS or not self._found:
                continue
            service = self._problem.services[s]
            cheapest = sorted(self._found, key=self._programme.cost)[:_NEAREST_MIXES]
            usable = np.array([stepped(service, mixes[s]) for mixes in cheapest])
            weights = np.array([cut.weights / cut.least for cut in cuts])
            slack = (usable @ weights.T).min(axis=0)
            kept = sorted(np.argsort(slack, kind="stable")[:_KEPT_CUTS].tolist())
            self._cuts[s] = [cuts[each] for each in kept]
            self._programme.forget_cuts(s, set(range(len(cuts))) - set(kept))

    def bound(self, limits: Limits, surcharges: Sequence[Array]) -> float:
        """A proven bound where replicas cost so much more, from the cuts that there are and few more."""
        self._limits, self._seconds, self._best, self._bound = limits, 0.0, None, 0.0
        self._programme.charge(surcharges)
        for s, serving in enumerate(self._servings):
            self._add(s, serving.at_prices(self._unit_costs(s)))
        if not self._enumerate(_FEW_ROWS):
            self._bound = max(self._bound, self._programme.relax().objective)
        return self._bound

    def look_near(self, surcharges: Sequence[Array], within: float) -> None:
        """Look for more mixes of a single service that cost no more than so much above the best one known."""
        if self._enumeration is None or not self._found:
            return
        self._programme.charge(surcharges)
        least = min(self._programme.cost(mixes) for mixes in self._found)
        known = [mix for (mix,) in self._found]
        costs = self._programme.unit_costs(0)
        found = self._enumeration.near(costs, self._cuts[0], known, least=least, within=within)
        self._add(0, found.cuts)
        for mix in found.mixes:
            self._found.setdefault((mix,))

    def _unit_costs(self, s: int) -> Array:
        return np.maximum(self._programme.unit_costs(s), _LEAST_PRICE)

    def _broken(self, s: int, counts: Sequence[int]) -> list[Cut]:
        """Cuts that so many replicas of a service break."""
        if len(self._servings) == 1 and (tuple(counts),) in self._found:
            return []
        return self._servings[s].broken(stepped(self._problem.services[s], counts), near=self._unit_costs(s))

    def _add(self, s: int, cuts: Sequence[Cut]) -> int:
        self._cuts[s] += cuts
        return self._programme.add_cuts(s, cuts)

    def _run(self) -> Solution:
        if self._enumerate(_FEW_ROWS):
            return self._ended()
        relaxed = self._relax()
        if relaxed.infeasible:
            return Solution(Ending.INFEASIBLE, seconds=self._seconds)
        if self._enumerate(_MANY_ROWS):
            return self._ended()
        if self._repairs and relaxed.values is not None:
            self._round(relaxed.values)
        if self._close() or self._limits.nodes == 0:
            return self._ended()
        for _ in range(_MOST_ROUNDS if self._limits.nodes is None else _FEW_ROUNDS):
            if self._time_left_s() <= 0.0:
                break
            gap = self._limits.relative_gap * _MASTER_GAP
            found = self._programme.solve(self._time_left_s(), gap, nodes=self._limits.nodes)
            self._seconds += found.seconds
            if found.infeasible:
                return Solution(Ending.INFEASIBLE, seconds=self._seconds)
            self._bound = max(self._bound, found.bound)
            if found.values is None or self._close():
                break
            progress = self._take(found.values, found.objective)
            if not progress or self._close():
                break
        return self._ended()

    def _enumerate(self, rows: int) -> bool:
        """Look at all mixes of a single service that cost less than the best; whether it is within the gap then."""
        if self._enumeration is None:
            return False
        most = math.inf if self._best is None else self._best.objective
        looked = self._enumeration.search(self._programme.unit_costs(0), self._cuts[0], most, rows=rows)
        self._add(0, looked.cuts)
        self._bound = max(self._bound, looked.bound)
        if looked.mix is not None:
            self._offer((looked.mix,), self._programme.cost([looked.mix]), None)
        return self._close()

    def _relax(self) -> Found:
        """The linear relaxation, with cuts that it breaks."""
        quick = self._enumeration is not None
        for _ in range(_QUICK_ROUNDS if quick else _RELAXED_ROUNDS):
            found = self._programme.relax()
            self._seconds += found.seconds
            if found.values is None:
                break
            self._bound = max(self._bound, found.objective)
            if not self._add_broken(found.values, quick=quick):
                break
        return found

    def _round(self, values: Array) -> None:
        """Offer what rounding the relaxation and mending it gives."""
        mixes = tuple(
            tuple(int(count) for count in np.floor(values[each.replicas] + _ROUNDED_UP))
            for each in self._variables.services
        )
        self._repair(mixes, [self._broken(s, mix) for s, mix in enumerate(mixes)])

    def _add_broken(self, values: Array, *, quick: bool) -> int:
        """Add the cuts that the relaxation breaks; how many they are."""
        added = 0
        for s, serving in enumerate(self._servings):
            usable, unserved = self._variables.usable(s, values), self._variables.unserved(s, values)
            near = self._unit_costs(s)
            added += self._add(
                s, serving.broken(usable, unserved, tolerance=_RELAXED_TOLERANCE, near=near, quick=quick)
            )
        return added

    def _take(self, values: Array, objective: float) -> bool:
        """Keep a solution if it can serve, else what can be made of it; False where no progress is possible."""
        rounded = [np.round(values[each.replicas]) for each in self._variables.services]
        whole = all(
            np.all(np.abs(near - values[each.replicas]) <= _INTEGER_TOLERANCE)
            for near, each in zip(rounded, self._variables.services, strict=True)
        )
        if not whole:
            return False
        mixes = tuple(tuple(int(count) for count in near) for near in rounded)
        broken = [
            serving.broken(
                self._variables.usable(s, values), self._variables.unserved(s, values), near=self._unit_costs(s)
            )
            for s, serving in enumerate(self._servings)
        ]
        if not any(broken):
            self._offer(mixes, objective, values)
            return True
        progress = False
        for s, cuts in enumerate(broken):
            progress = bool(self._add(s, cuts)) or progress
        if self._repairs:
            self._repair(mixes, broken)
        return progress

    def _repair(self, mixes: Mixes, broken: Sequence[list[Cut]]) -> None:
        """Offer the mixes with replicas added until they can serve, if they keep all rows then."""
        repaired = []
        for s, (mix, cuts) in enumerate(zip(mixes, broken, strict=True)):
            enough = self._enough(s, mix, cuts)
            if enough is None:
                return
            repaired.append(enough)
        if self._programme.keeps(repaired):
            self._offer(tuple(repaired), self._programme.cost(repaired), None)

    def _enough(self, s: int, mix: tuple[int, ...], cuts: list[Cut]) -> tuple[int, ...] | None:
        service, counts = self._problem.services[s], list(mix)
        costs = self._unit_costs(s)
        for _ in range(_MOST_REPAIRS):
            if not cuts:
                return tuple(counts)
            self._add(s, cuts)
            cut = max(cuts, key=lambda each: each.missing(stepped(service, counts)))
            v, more = _cheapest_addition(service, counts, cut, costs)
            if v < 0:
                return None
            counts[v] += more
            if self._best is not None and float(costs @ counts) > self._best.objective:
                return None
            cuts = self._broken(s, counts)
        return None

    def _offer(self, mixes: Mixes, objective: float, values: Array | None) -> None:
        self._found.setdefault(mixes)
        if self._best is None or objective < self._best.objective - 1e-12:
            extra = () if values is None else self._variables.extra_gpus(values)
            self._best = Solution(Ending.OPTIMAL, mixes, objective, extra_gpus=extra)

    def _close(self) -> bool:
        if self._best is None:
            return False
        allowed = max(self._limits.relative_gap * abs(self._best.objective), ABSOLUTE_GAP)
        return self._best.objective - self._bound <= allowed

    def _time_left_s(self) -> float:
        return self._limits.time_limit_s - self._seconds

    def _ended(self) -> Solution:
        if self._best is None:
            return Solution(Ending.NOTHING_FOUND, bound=self._bound, seconds=self._seconds)
        return Solution(
            ending=Ending.OPTIMAL if self._close() else Ending.TIME_LIMIT,
            replicas=self._best.replicas,
            objective=self._best.objective,
            bound=min(self._bound, self._best.objective),
            extra_gpus=self._best.extra_gpus,
            seconds=self._seconds,
        )


def stepped(service: ServiceProblem, counts: Sequence[int]) -> Array:
    """What replicas can be loaded with by the steps of the programme, which never promise more than `usable`."""
    if not service.queues:
        return np.array(counts, dtype=np.float64)
    tables = service.usable_by_steps
    return np.array([table[min(int(count), len(table) - 1)] for table, count in zip(tables, counts, strict=True)])


def _cheapest_addition(service: ServiceProblem, counts: Sequence[int], cut: Cut, costs: Array) -> tuple[int, int]:
    """The variant whose additional replicas mend the cut at the least cost, and how many; (−1, 0) where none does."""
    usable = stepped(service, counts)
    missing = cut.missing(usable)
    best: tuple[float, int, int] | None = None
    for v, weight in enumerate(cut.weights.tolist()):
        room = service.useful[v] - counts[v]
        if weight <= 0.0 or room <= 0:
            continue
        more = min(max(1, math.ceil(missing / weight - 1e-9)), room)
        mended = min(weight * more, missing)
        rank = costs[v] * more / mended
        if best is None or rank < best[0] - 1e-12:
            best = (rank, v, more)
    return (-1, 0) if best is None else best[1:]
