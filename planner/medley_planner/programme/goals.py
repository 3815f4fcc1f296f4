"""What a programme looks for, within which limits, and what it found: the same for every way to solve one."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from medley_planner.fleet import Method


class Goal(enum.Enum):
    """What the programme looks for."""

    CHEAPEST = "cheapest"
    """The cheapest mixes that serve everything."""
    LEAST_BILL = "least bill"
    """Mixes that serve everything and add as little as possible to the bill, whatever interruptions cost."""
    MOST_SERVED = "most served"
    """Mixes that leave the least demand unserved, in requests per second, of the highest priority of which it is not
    known yet how much; lower bounds on replicas do not count, nor what must survive a loss."""
    CHEAPEST_OF_MOST_SERVED = "cheapest of most served"
    """Of those that leave no more unserved than that, of any priority: lower bounds kept as stock allows, then the
    cheapest."""
    LEAST_EXTRA_STOCK = "least extra stock"
    """Mixes that serve everything with GPUs beyond the stock, as few dollars' worth as possible."""
    FEWEST_REPLICAS = "fewest replicas"
    """Mixes that serve everything with as few replicas as possible."""


LEAVES_UNSERVED = (Goal.MOST_SERVED, Goal.CHEAPEST_OF_MOST_SERVED)
"""The goals for which not everything needs to be served."""


Unserved = tuple[tuple[int, float], ...]
"""By priority, the highest first: the share of all requests that may stay unserved."""


class Ending(enum.Enum):
    """How a solve ended."""

    OPTIMAL = "optimal"
    TIME_LIMIT = "time limit"
    """Feasible; how far from the optimum, `bound` says."""
    INFEASIBLE = "infeasible"
    NOTHING_FOUND = "nothing found"
    """The time ended first, or the solver failed: nothing is known."""


Lent = Callable[[], Sequence[Executor]]
"""Executors of one process each, asked for when there is much to search."""


@dataclass(frozen=True)
class Limits:
    """How long and how exactly to solve.

    Args:
        time_limit_s: Seconds of the solver.
        relative_gap: Proven distance from the optimum at which to stop.
        nodes: Nodes of a search tree that are looked at, in a programme over replicas; None is no limit. Where they do
            not suffice, the bound is what they proved.
        shared_gap: The distance at which to stop where many services share what does not suffice.
        method: How programmes are solved.
        helpers: Lends others that search beside this process; they change no plan. None lends none.
    """

    time_limit_s: float
    relative_gap: float
    nodes: int | None = None
    shared_gap: float = 0.005
    method: Method = Method.FAST
    helpers: Lent | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Solution:
    """What a solve found.

    Args:
        ending: How it ended.
        replicas: n[s][v], integers; empty where there is no solution.
        objective: Value of the goal's objective.
        bound: Proven bound on it.
        extra_gpus: With `LEAST_EXTRA_STOCK`: GPUs wanted beyond the stock, by pool.
        seconds: Time the solver took.
    """

    ending: Ending
    replicas: tuple[tuple[int, ...], ...] = ()
    objective: float = math.inf
    bound: float = -math.inf
    extra_gpus: tuple[tuple[str, int], ...] = ()
    seconds: float = 0.0

    @property
    def found(self) -> bool:
        """Whether there are mixes."""
        return self.ending in (Ending.OPTIMAL, Ending.TIME_LIMIT)
