"""Replicas that do the same part of the work: they appear, get requests, drain, are lost.

Between a moment at which a request arrives or a replica appears or goes away, nothing in a stage depends on anything
outside of a single replica, so each is computed on its own and only as far as somebody looks at it.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from medley_planner.fleet import Role, Variant
from medley_planner.simulator.book import Book, Fate
from medley_planner.simulator.engine import EngineLimits, StepTimes
from medley_planner.simulator.gauges import Gauges
from medley_planner.simulator.replica import Replica
from medley_planner.simulator.routing import Balancing, Routes

LAST_MOMENT_S = math.nextafter(math.inf, 0.0)
"""Later than everything that ends."""


@dataclass(frozen=True)
class ReplicaKind:
    """What every replica of a variant is.

    Args:
        variant: The variant.
        steps: How long its steps take.
        limits: What it holds.
        units: Engines of a replica, each with such steps and limits: its data parallel ranks times pipeline stages.
            They are taken not to wait for each other.
        price_usd_per_hour: What one costs.
        load_time_s: From asking for one until it serves.
    """

    variant: Variant
    steps: StepTimes
    limits: EngineLimits
    units: int = 1
    price_usd_per_hour: float = 0.0
    load_time_s: float = 0.0

    def can_ever_hold(self, inputs: int, outputs: int) -> bool:
        """Whether a replica could compute such a request with nothing else in its cache."""
        held = inputs if self.variant.role is Role.PREFILL else inputs + outputs - 1
        return held <= self.limits.blocks * self.limits.block_tokens


@dataclass
class Instance:
    """A replica and its life; it costs from `asked_s` until `gone_s`.

    Args:
        number: Its number in the service.
        units: Its engines: one, or as many as it has data parallel ranks times pipeline stages.
        kind: What it is.
        asked_s: When it was asked for.
        ready_s: When it begins to get requests.
        drained_s: When it stops getting requests; infinite while it does not.
        gone_s: When it is gone; infinite while it is not.
    """

    number: int
    units: tuple[Replica, ...]
    kind: ReplicaKind
    asked_s: float
    ready_s: float
    drained_s: float = math.inf
    gone_s: float = math.inf

    def paid_s(self, until_s: float) -> float:
        """Time that it is paid for, from the beginning until this moment."""
        return max(0.0, min(self.gone_s, until_s) - max(self.asked_s, 0.0))


class _Happening(enum.IntEnum):
    """What happens to a replica; at one moment in this order."""

    READY = 0
    DRAIN = 1
    LOSE = 2


class Stage:
    """Replicas of variants of the same stage, and the requests that wait for any of them to appear.

    Args:
        book: The service's requests.
        routes: Which variant each should go to.
        balancing: Which replica of it.
        overflow: Whether a request whose variant is at its capacity goes to another one that can serve it and has room.
        kinds: What the replicas of each variant are.
        rng: Draws replicas, where that is asked for.
        bin_s: Interval of the replicas' readings.
        retry_lost: Whether requests on a replica that goes away begin anew elsewhere; else they are lost.
        keeps_order: Whether replicas keep the order in which they serve.
    """

    def __init__(
        self,
        book: Book,
        routes: Routes,
        kinds: Mapping[Variant, ReplicaKind],
        *,
        balancing: Balancing,
        overflow: bool,
        rng: np.random.Generator,
        bin_s: float = math.inf,
        retry_lost: bool = True,
        keeps_order: bool = False,
    ) -> None:
        self.instances: dict[int, Instance] = {}
        self._book = book
        self.kinds = kinds
        self._variants = routes.variants
        self._variant_of: list[int] = routes.variant.tolist()
        self._load: list[list[float]] = routes.load.tolist()
        self._overflow = overflow and routes.in_replicas
        self._place = {variant: index for index, variant in enumerate(routes.variants)}
        self._balancing = balancing
        self._rng = rng
        self._bin_s = bin_s
        self._retry_lost = retry_lost
        self._keeps_order = keeps_order
        self._up: dict[Variant, list[Replica]] = {variant: [] for variant in sorted({*kinds, *routes.variants})}
        self._turn: dict[Variant, int] = dict.fromkeys(self._up, 0)
        self._held: deque[int] = deque()
        self._happenings: list[tuple[float, _Happening, int]] = []

    @property
    def held(self) -> int:
        """Requests that wait for a replica to appear."""
        return len(self._held)

    def add(self, number: int, variant: Variant, *, asked_s: float, ready_s: float) -> None:
        """Ask for a replica that will be ready at `ready_s`."""
        kind = self.kinds[variant]
        units = tuple(
            Replica(
                number,
                kind.steps,
                kind.limits,
                self._book,
                Gauges(self._bin_s, self._keeps_order),
                role=variant.role,
            )
            for _ in range(kind.units)
        )
        self.instances[number] = Instance(number, units, kind, asked_s, ready_s)
        heappush(self._happenings, (ready_s, _Happening.READY, number))

    def drain(self, number: int, at_s: float) -> None:
        """From this moment on the replica gets no requests; it goes when it has served what it has."""
        heappush(self._happenings, (at_s, _Happening.DRAIN, number))

    def lose(self, number: int, at_s: float) -> None:
        """At this moment the replica goes away with all that it has."""
        heappush(self._happenings, (at_s, _Happening.LOSE, number))

    def arrive(self, request: int, now_s: float) -> None:
        """A request arrives at the stage; moments never go back."""
        if self._happenings and self._happenings[0][0] <= now_s:
            self.happen(now_s)
        self._dispatch(request, now_s)

    def happen(self, until_s: float) -> None:
        """Let replicas appear and go until this moment."""
        while self._happenings and self._happenings[0][0] <= until_s:
            at_s, what, number = heappop(self._happenings)
            instance = self.instances[number]
            if what is _Happening.READY:
                self._appear(instance, at_s)
            elif what is _Happening.DRAIN:
                self._drain(instance, at_s)
            else:
                self._lose(instance, at_s)

    def advance(self, until_s: float) -> None:
        """Compute everything until this moment."""
        self.happen(until_s)
        for instance in self.instances.values():
            for unit in instance.units:
                unit.advance(until_s)
            self._note_gone(instance)

    # Where a request goes

    def _dispatch(self, request: int, now_s: float) -> None:
        book = self._book
        index = self._variant_of[request]
        variant = self._variants[index]
        up = self._up[variant]
        if up and self.kinds[variant].can_ever_hold(book.inputs[request], book.outputs[request]):
            replica = self._choose(variant, up, now_s)
            load = self._load[index][request]
            if self._overflow and replica.load + load > 1.0:
                replica, load = self._overflowed(request, index, now_s) or (replica, load)
            book.load[request] = load if load < math.inf else 1.0
            if replica.offer(request, now_s):
                return
        self._dispatch_elsewhere(request, variant, now_s)

    def _overflowed(self, request: int, wanted: int, now_s: float) -> tuple[Replica, float] | None:
        """Of the other variants that can serve a request, the replica that is least loaded with it, if it has room.

        Where none has, the request stays with its variant: to share an overload out would make everybody miss.
        """
        book = self._book
        best: tuple[Replica, float] | None = None
        least = 1.0
        for index, variant in enumerate(self._variants):
            load = self._load[index][request]
            if index == wanted or load > least or not self._up[variant]:
                continue
            if not self.kinds[variant].can_ever_hold(book.inputs[request], book.outputs[request]):
                continue
            other = self._of_least_load(self._up[variant], now_s)
            if other.load + load <= least:
                best, least = (other, load), other.load + load
        return best

    def _choose(self, variant: Variant, up: list[Replica], now_s: float) -> Replica:
        """One of the variant's replicas, computed until now."""
        if self._balancing is Balancing.LEAST_LOAD:
            return self._of_least_load(up, now_s)
        if self._balancing is Balancing.ROUND_ROBIN:
            self._turn[variant] += 1
            chosen = up[self._turn[variant] % len(up)]
        else:
            chosen = up[int(self._rng.integers(len(up)))]
        chosen.advance(now_s)
        return chosen

    def _of_least_load(self, up: list[Replica], now_s: float) -> Replica:
        chosen, least = up[0], math.inf
        for replica in up:
            if replica.next_s <= now_s:
                replica.advance(now_s)
            if replica.load < least:
                chosen, least = replica, replica.load
        return chosen

    def _dispatch_elsewhere(self, request: int, wanted: Variant, now_s: float) -> None:
        """To the replica with the least load of all that can hold it and do not refuse; the wanted variant first."""
        book = self._book
        inputs, outputs = book.inputs[request], book.outputs[request]
        able = [variant for variant in self._up if self.kinds[variant].can_ever_hold(inputs, outputs)]
        places: list[tuple[bool, float, int, Variant, Replica]] = []
        for variant in able:
            for replica in self._up[variant]:
                replica.advance(now_s)
                places.append((variant != wanted, replica.load, len(places), variant, replica))
        for *_, variant, replica in sorted(places, key=lambda place: place[:3]):
            book.load[request] = self._load_of(request, variant)
            if replica.offer(request, now_s):
                return
        if able and not places:
            self._held.append(request)
        else:
            book.fate[request] = Fate.REJECTED

    def _load_of(self, request: int, variant: Variant) -> float:
        load = self._load[self._place[variant]][request] if variant in self._place else math.inf
        return load if load < math.inf else 1.0

    # Replicas come and go

    def _appear(self, instance: Instance, now_s: float) -> None:
        if instance.drained_s <= now_s or instance.gone_s <= now_s:
            return
        self._up[instance.kind.variant].extend(instance.units)
        held = list(self._held)
        self._held.clear()
        for request in held:
            self._dispatch(request, now_s)

    def _drain(self, instance: Instance, now_s: float) -> None:
        if instance.drained_s <= now_s:
            return
        instance.drained_s = now_s
        self._withdraw(instance)
        for unit in instance.units:
            unit.advance(now_s)
        self._note_gone(instance)

    def _note_gone(self, instance: Instance) -> None:
        """A drained replica is gone once it is idle."""
        if instance.gone_s == math.inf and instance.drained_s < math.inf and all(unit.idle for unit in instance.units):
            instance.gone_s = max(instance.drained_s, *(unit.now_s for unit in instance.units))

    def _lose(self, instance: Instance, now_s: float) -> None:
        if instance.gone_s <= now_s:
            return
        for unit in instance.units:
            unit.advance(now_s)
        self._note_gone(instance)
        if instance.gone_s <= now_s:
            return
        instance.gone_s = instance.drained_s = now_s
        self._withdraw(instance)
        for request in sorted(request for unit in instance.units for request in unit.abandon()):
            if self._retry_lost:
                self._book.forget_progress(request)
                self._dispatch(request, now_s)
            else:
                self._book.fate[request] = Fate.LOST

    def _withdraw(self, instance: Instance) -> None:
        up = self._up[instance.kind.variant]
        self._up[instance.kind.variant] = [unit for unit in up if unit not in instance.units]
