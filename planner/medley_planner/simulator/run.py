"""One service in simulated time: its requests, its router, and replicas that may come and go.

    requests → router → shared replicas                      → answers
                      → prefill replicas → decode replicas   → answers

Services share nothing but stock, which a plan has shared out already, so each is simulated on its own. Decode replicas
do not hold up prefill replicas, so the two stages are computed one after the other up to any moment that a caller
asks for. An autoscaler runs a service until its next decision, looks at it, and adds and drains replicas.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from medley_planner.fleet import Role, Variant
from medley_planner.result import BucketShare
from medley_planner.simulator.book import Book, Fate
from medley_planner.simulator.requests import Requests
from medley_planner.simulator.routing import AtOnce, Balancing, Knowledge, routes
from medley_planner.simulator.stage import LAST_MOMENT_S, Instance, ReplicaKind, Stage
from medley_planner.workload.sizes import SizeHistogram

FIRST_STAGE = (Role.SHARED, Role.PREFILL)
SECOND_STAGE = (Role.DECODE,)


@dataclass(frozen=True)
class HandOver:
    """How long a request's cache takes from a prefill replica to a decode replica."""

    fixed_s: float = 0.0
    per_token_s: float = 0.0


class StepBudget(enum.StrEnum):
    """How many tokens a step of a planned replica computes at most."""

    DEFAULT = "default"
    """What capacities are computed with."""
    ADVISED = "advised"
    """What keeps single pauses between output tokens within the objective (`step_budget_tokens`), where it is less."""


@dataclass(frozen=True)
class RunOptions:
    """How a service is simulated.

    Args:
        knowledge: What the router knows of outputs.
        balancing: Which replica of a variant gets a request.
        overflow: Whether a request whose variant is at its capacity goes to another one that can serve it and has room.
        step_budget: How many tokens a step of planned replicas computes at most.
        retry_lost: Whether requests on a replica that goes away begin anew elsewhere.
        seed: Of everything that is drawn.
        bin_s: Interval of the timeline; infinite for none.
        keeps_order: Whether replicas keep the order in which they serve, for tests.
    """

    knowledge: Knowledge = Knowledge.MEAN
    balancing: Balancing = Balancing.LEAST_LOAD
    overflow: bool = True
    step_budget: StepBudget = StepBudget.DEFAULT
    retry_lost: bool = True
    seed: int = 0
    bin_s: float = math.inf
    keeps_order: bool = False


class ServiceRun:
    """A service in simulated time.

    Args:
        requests: What arrives.
        sizes: The planned workload, from which the router estimates outputs.
        shares: The plan's split.
        kinds: What the replicas of each variant are.
        options: How it is simulated.
        hand_over: From prefill to decode replicas.
        at_once: Requests of each planned size that a unit of each variant has at once at its capacity; None where that
            is not known, so that no request goes to another variant than its own while that has replicas.

    Raises:
        ValueError: The split gives nothing to anybody.
    """

    def __init__(
        self,
        requests: Requests,
        sizes: SizeHistogram,
        shares: Sequence[BucketShare],
        kinds: Mapping[Variant, ReplicaKind],
        *,
        options: RunOptions = RunOptions(),
        hand_over: HandOver = HandOver(),
        at_once: AtOnce | None = None,
    ) -> None:
        self.book = Book.of(requests)
        self.now_s = 0.0
        self._hand_over = hand_over
        self._next_arrival = 0
        self._next_number = 0
        self._on_the_way: list[tuple[float, int]] = []
        self._stages: list[Stage] = []
        for number, roles in enumerate((FIRST_STAGE, SECOND_STAGE)):
            if number and not any(share.variant.role in roles for share in shares):
                break
            rng = np.random.default_rng((options.seed, number))
            stage_routes = routes(requests, sizes, shares, roles, knowledge=options.knowledge, rng=rng, at_once=at_once)
            stage = Stage(
                self.book,
                stage_routes,
                {variant: kind for variant, kind in kinds.items() if variant.role in roles},
                balancing=options.balancing,
                overflow=options.overflow,
                rng=rng,
                bin_s=options.bin_s,
                retry_lost=options.retry_lost,
                keeps_order=options.keeps_order,
            )
            self._stages.append(stage)

    @property
    def instances(self) -> tuple[Instance, ...]:
        """All replicas there ever were, by number."""
        every = {number: each for stage in self._stages for number, each in stage.instances.items()}
        return tuple(every[number] for number in sorted(every))

    @property
    def held(self) -> int:
        """Requests that wait for any replica to appear."""
        return sum(stage.held for stage in self._stages)

    def add(self, variant: Variant, *, asked_s: float = 0.0, ready_s: float | None = None) -> int:
        """Ask for a replica; its number.

        Args:
            variant: Its variant.
            asked_s: When; not in the past.
            ready_s: When it begins to serve; None is after its load time.
        """
        stage = self._stage_of(variant)
        number = self._next_number
        self._next_number += 1
        ready_s = asked_s + stage.kinds[variant].load_time_s if ready_s is None else ready_s
        stage.add(number, variant, asked_s=asked_s, ready_s=ready_s)
        return number

    def start(self, mix: Mapping[Variant, int]) -> None:
        """Replicas that are there from the beginning, ready."""
        for variant, count in sorted(mix.items()):
            for _ in range(count):
                self.add(variant, asked_s=0.0, ready_s=0.0)

    def drain(self, number: int, at_s: float) -> None:
        """From this moment on a replica gets no requests, and goes when it has served what it has."""
        self._holding(number).drain(number, at_s)

    def lose(self, number: int, at_s: float) -> None:
        """A replica goes away at this moment, with all that it has."""
        self._holding(number).lose(number, at_s)

    def run_until(self, until_s: float) -> None:
        """Compute everything that happens until this moment; moments never go back."""
        first = self._stages[0]
        arrivals, next_arrival = self.book.arrived_s, self._next_arrival
        while next_arrival < len(arrivals) and arrivals[next_arrival] <= until_s:
            first.arrive(next_arrival, arrivals[next_arrival])
            next_arrival += 1
        self._next_arrival = next_arrival
        first.advance(until_s)
        if len(self._stages) > 1:
            self._collect_handed_over()
            while self._on_the_way and self._on_the_way[0][0] <= until_s:
                at_s, request = heappop(self._on_the_way)
                self._stages[1].arrive(request, at_s)
            self._stages[1].advance(until_s)
        self.now_s = until_s

    def finish(self) -> None:
        """Compute until every request has ended; those that still wait for a replica that never comes are rejected."""
        self.run_until(LAST_MOMENT_S)
        fate = self.book.fate
        for request, ending in enumerate(fate):
            if ending is Fate.OPEN:
                fate[request] = Fate.REJECTED

    def _collect_handed_over(self) -> None:
        for instance in self._stages[0].instances.values():
            for unit in instance.units:
                for at_s, request in unit.handed_over:
                    delay_s = self._hand_over.fixed_s + self._hand_over.per_token_s * self.book.inputs[request]
                    heappush(self._on_the_way, (at_s + delay_s, request))
                unit.handed_over.clear()

    def _stage_of(self, variant: Variant) -> Stage:
        for stage in self._stages:
            if variant in stage.kinds:
                return stage
        raise KeyError(variant)

    def _holding(self, number: int) -> Stage:
        for stage in self._stages:
            if number in stage.instances:
                return stage
        raise KeyError(number)
