"""Who searches the mixes of which service: this process, and others where the caller lends some.

The search of a service stays where it began, with the cuts and mixes that it found. What is asked, and so what is
planned, does not depend on how many there are.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from medley_planner.programme.by_cuts import MixSearch
from medley_planner.programme.goals import Lent
from medley_planner.sharing.looking import Question, started

T = TypeVar("T")

Answer = Callable[[MixSearch, Question], T]

_THREADS = 2
"""Searches at a time where nobody helps; the solver works outside the interpreter's lock, and each on its own."""

_HERE = 0
"""This process; the others are numbered from 1."""

_MANY = 32
"""From so many searches on, asking others pays for itself."""

_NEIGHBOURS = 2
"""Services in a row that are searched by the same process: of every other service, each gets its part, too."""

_KEPT = 2_000
"""Searches that a process keeps for others."""

_RUNS = itertools.count()


@dataclass(frozen=True)
class Asked:
    """A question about one service.

    Args:
        who: The service, the same for all questions about it.
        search: Its search in this process.
        question: What is asked.
    """

    who: Hashable
    search: Callable[[], MixSearch]
    question: Question


class Helpers:
    """The processes of one decomposition.

    Args:
        lent: Lends others that help, each with one process of its own; None lends none.
    """

    def __init__(self, lent: Lent | None) -> None:
        self._lent = lent
        self._executors: tuple[Executor, ...] = ()
        self._run = next(_RUNS)
        self._places: dict[Hashable, int] = {}

    @property
    def count(self) -> int:
        """How many search at a time."""
        return 1 + len(self._executors) if self._executors else _THREADS

    def answers(self, answer: Answer[T], asked: Sequence[Asked]) -> list[T]:
        """What `answer` gives for each question, in their order."""
        if len(asked) >= _MANY:
            self._share_out(asked)
        parts: dict[int, list[int]] = {}
        for number, each in enumerate(asked):
            parts.setdefault(self._places.get(each.who, _HERE), []).append(number)
        here = parts.pop(_HERE, [])
        there = {
            place: self._submitted(place, answer, [asked[n].question for n in numbers])
            for place, numbers in parts.items()
        }
        found: dict[int, T] = {}
        with ThreadPoolExecutor(1 if self._executors else _THREADS) as pool:
            found |= zip(here, pool.map(lambda n: answer(asked[n].search(), asked[n].question), here), strict=True)
        for place, numbers in parts.items():
            try:
                answers = there[place].result()
            except BrokenExecutor:  # ended from outside, for want of memory say: its part is done here
                self._places |= {who: _HERE for who, at in self._places.items() if at == place}
                answers = [answer(asked[n].search(), asked[n].question) for n in numbers]
            found |= zip(numbers, answers, strict=True)
        return [found[number] for number in range(len(asked))]

    def _submitted(self, place: int, answer: Answer[T], questions: Sequence[Question]) -> Future[list[T]]:
        try:
            return self._executors[place - 1].submit(answered, self._run, answer, questions)
        except BrokenExecutor as error:
            broken: Future[list[T]] = Future()
            broken.set_exception(error)
            return broken

    def _share_out(self, asked: Sequence[Asked]) -> None:
        """Say once who searches which service."""
        if self._places:
            return
        self._executors = tuple(self._lent()) if self._lent is not None else ()
        for number, who in enumerate(dict.fromkeys(each.who for each in asked)):
            self._places[who] = number // _NEIGHBOURS % (len(self._executors) + 1)


def answered(run: int, answer: Answer[T], questions: Sequence[Question]) -> list[T]:
    """What `answer` gives for questions of another process.

    Args:
        run: Tells one decomposition from another, so that answers do not depend on what was asked before it.
        answer: What to do.
        questions: About one service each.
    """
    return [answer(_search(run, _First(each)), each) for each in questions]


class _First:
    """The first question about a service, which its search starts with."""

    def __init__(self, question: Question) -> None:
        self.question = question

    def __hash__(self) -> int:
        return hash(self.question.problem)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _First) and self.question.problem == other.question.problem


@functools.lru_cache(maxsize=_KEPT)
def _search(run: int, first: _First) -> MixSearch:
    del run
    return started(first.question.problem, first.question.known)
