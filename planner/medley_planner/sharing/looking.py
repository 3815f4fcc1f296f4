"""The search of one service's mixes as a question and its answer, to be asked here or in another process.

A question holds all that the answer depends on. Whoever answers keeps the search, with the cuts and mixes that it
found, for the next question about the same problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medley_planner.programme.by_cuts import MixSearch
from medley_planner.programme.goals import Ending, Goal, Limits
from medley_planner.programme.problem import FleetProblem
from medley_planner.programme.sparse import Array

Mix = tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """What are the cheapest mixes where replicas cost so much more?

    Args:
        problem: One service and what limits it.
        known: Prices of replicas' time whose cuts mattered before.
        surcharges: USD per hour on top, by variant.
        limits: Time, gap and nodes.
    """

    problem: FleetProblem
    known: tuple[Array, ...]
    surcharges: Array
    limits: Limits


@dataclass(frozen=True)
class Looked:
    """What a search found.

    Args:
        mixes: All mixes found so far, in the order in which they were found.
        weights: Prices of replicas' time whose cuts matter.
        bound: Proven, surcharges included.
        ending: How it ended.
        seconds: Time of the solver.
    """

    mixes: tuple[Mix, ...]
    weights: tuple[Array, ...]
    bound: float
    ending: Ending
    seconds: float


def started(problem: FleetProblem, known: Sequence[Array]) -> MixSearch:
    """A search that found nothing yet."""
    return MixSearch(problem, Goal.CHEAPEST, known=(tuple(known),))


def looked(search: MixSearch, question: Question) -> Looked:
    """The answer of a search of the question's problem."""
    solution = search.solve(question.limits, [question.surcharges])
    mixes = tuple(mix for (mix,) in search.mixes)
    return Looked(mixes, search.known[0], solution.bound, solution.ending, solution.seconds)


def bounded(search: MixSearch, question: Question) -> float:
    """A proven bound on what the service costs, with little work."""
    return search.bound(question.limits, [question.surcharges])


def nearby(within: float, search: MixSearch, question: Question) -> Looked:
    """More mixes that cost no more than so much above the best one known; proves nothing."""
    search.look_near([question.surcharges], within)
    mixes = tuple(mix for (mix,) in search.mixes)
    return Looked(mixes, search.known[0], 0.0, Ending.NOTHING_FOUND, 0.0)
