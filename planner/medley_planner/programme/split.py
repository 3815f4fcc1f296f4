"""How given replicas share the requests: the split that a router has to realise, and what stays unserved.

The integer programme only needs *some* split to exist.
The one used here keeps the busiest replica as little busy as possible, which is the kindest to latency:

    minimise θ   subject to   Σ_{v computes i} x[b,v] = 1 for all b, i,   Σ_b ℓ[b,v]·x[b,v] ≤ θ·usable(n[v]) for all v

The replicas serve everything just where θ ≤ 1. Otherwise the split that serves the most requests is used:

    maximise Σ_b λ[b]·z[b]   subject to   z[b] ≤ Σ_{v computes i} x[b,v] ≤ 1,   Σ_b ℓ[b,v]·x[b,v] ≤ usable(n[v])

After the loss of a spot pool, the rest does the same with q, the share that must survive, in the place of 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medley_planner.programme.memo import Memo
from medley_planner.programme.problem import LOAD_TOLERANCE, ServiceProblem
from medley_planner.programme.sparse import SparseModel, Term

_NOISE = 1e-9

Shares = dict[tuple[int, int], float]
"""x by (b, v)."""


@dataclass(frozen=True)
class Split:
    """How replicas share a service's requests.

    Args:
        shares: (b, v, share) of the problem's buckets and variants, positive, sorted.
        served_share: Share of the service's requests that are served.
        loads: Replicas of v that are busy, by v, headroom included; at most `usable` of them.
    """

    shares: tuple[tuple[int, int, float], ...]
    served_share: float
    loads: tuple[float, ...]

    @property
    def serves_all(self) -> bool:
        """Whether no request stays unserved."""
        return self.served_share >= 1.0


def split(service: ServiceProblem, replicas: Sequence[int], memo: Memo) -> Split:
    """The split of a service's requests over so many replicas by variant."""
    counts = tuple(replicas)
    demand = service.fresh()
    return memo.recall(("split", demand, counts), lambda: _Splitting(demand, counts, 1.0).best())


def split_after_loss(service: ServiceProblem, replicas: Sequence[int], pool: str, memo: Memo) -> Split:
    """How the replicas outside of a pool serve the share of every bucket that must survive its loss, or the most of it
    that they can."""
    left = tuple(
        0 if variant.pool == pool else count for variant, count in zip(service.variants, replicas, strict=True)
    )
    demand = service.fresh()
    share = service.availability.survivable_share
    return memo.recall(("split after loss", demand, left), lambda: _Splitting(demand, left, share).best())


def serves_all(service: ServiceProblem, replicas: Sequence[int], memo: Memo) -> bool:
    """Whether so many replicas serve all requests, and after the loss of any one spot pool what must survive."""
    return split(service, replicas, memo).serves_all and survives(service, replicas, memo)


def survives(service: ServiceProblem, replicas: Sequence[int], memo: Memo) -> bool:
    """Whether after the loss of any one spot pool the rest serves what must survive."""
    share = service.availability.survivable_share
    return all(
        split_after_loss(service, replicas, pool, memo).served_share >= share
        for pool, _ in service.losses
        if any(count for variant, count in zip(service.variants, replicas, strict=True) if variant.pool == pool)
    )


class _Splitting:
    """The split of a share of every bucket over so many replicas by variant."""

    def __init__(self, service: ServiceProblem, replicas: tuple[int, ...], share: float) -> None:
        self.service = service
        self.share = share
        self.usable = [service.usable(v, count) for v, count in enumerate(replicas)]
        present = [v for v, count in enumerate(replicas) if count > 0]
        self.able = [[v for v in present if load[v] < math.inf] for load in service.loads]
        self.computing = [[[v for v in able if v in part] for part in service.parts] for able in self.able]

    def best(self) -> Split:
        """The most even split if everything can be served, else the one that serves the most."""
        if all(all(variants) for variants in self.computing):
            sole = max((len(able) for able in self.able), default=0) <= 1
            even = {(b, able[0]): self.share for b, able in enumerate(self.able)} if sole else self._balanced()
            balanced = self._measured(even)
            if all(_within(load, room) for load, room in zip(balanced.loads, self.usable, strict=True)):
                return balanced
        return self._measured(self._most_served())

    def _balanced(self) -> Shares:
        model = SparseModel()
        busiest = model.column(1.0)
        x = self._columns(model)
        for b, parts in enumerate(self.computing):
            for variants in parts:
                model.row([(x[b, v], 1.0) for v in variants], self.share, self.share)
        self._add_capacity(model, x, busiest)
        return self._exact(_solved(model, x))

    def _most_served(self) -> Shares:
        model = SparseModel()
        x = self._columns(model)
        if not x:
            return {}
        rates = self.service.rates
        served = {
            b: model.column(-rates[b] / max(rates), self.share) for b, parts in enumerate(self.computing) if all(parts)
        }
        for b, parts in enumerate(self.computing):
            for variants in parts:
                terms = [(x[b, v], 1.0) for v in variants] + ([(served[b], -1.0)] if b in served else [])
                if terms:
                    model.row(terms, 0.0, 0.0)
        self._add_capacity(model, x, None)
        return _solved(model, x)

    def _columns(self, model: SparseModel) -> dict[tuple[int, int], int]:
        return {(b, v): model.column(0.0) for b, able in enumerate(self.able) for v in able}

    def _add_capacity(self, model: SparseModel, x: dict[tuple[int, int], int], busiest: int | None) -> None:
        of_variant: dict[int, list[Term]] = {}
        for (b, v), column in x.items():
            of_variant.setdefault(v, []).append((column, self.service.loads[b][v]))
        for v, room in enumerate(self.usable):
            terms = of_variant.get(v, [])
            if terms and busiest is not None:
                model.row([*terms, (busiest, -room)], upper=0.0)
            elif terms:
                model.row(terms, upper=room)

    def _exact(self, values: Shares) -> Shares:
        """The same shares, adding up to the whole in every part of every bucket, not only nearly so."""
        exact: Shares = {}
        if len(self.service.parts) == 1:
            whole_of: dict[int, list[float]] = {}
            for (b, _), value in values.items():
                whole_of.setdefault(b, []).append(value)
            scales = {b: self.share / math.fsum(each) for b, each in whole_of.items()}
            return {(b, v): value * scales[b] for (b, v), value in values.items()}
        for b, parts in enumerate(self.computing):
            shared = [v for v in self.able[b] if all(v in variants for variants in parts)]
            rest = [[v for v in variants if v not in shared] for variants in parts]
            whole = math.fsum(values.get((b, v), 0.0) for v in shared)
            apart = [math.fsum(values.get((b, v), 0.0) for v in variants) for variants in rest]
            scale = 1.0 if min(apart) > 0 else self.share / whole
            exact.update({(b, v): values[b, v] * scale for v in shared if (b, v) in values})
            left = self.share - whole * scale
            for variants, total in zip(rest, apart, strict=True):
                if left > 0 and total > 0:
                    exact.update({(b, v): values[b, v] * left / total for v in variants if (b, v) in values})
        return exact

    def _measured(self, shares: Shares) -> Split:
        """The split with what follows from it. A request in a billion is the solver's noise, not a shortage."""
        service = self.service
        taken: list[list[float]] = [[] for _ in service.variants]
        for (b, v), share in shares.items():
            taken[v].append(service.loads[b][v] * share)
        served = [
            min(self.share, *(math.fsum(shares.get((b, v), 0.0) for v in variants) for variants in parts))
            for b, parts in enumerate(self.computing)
        ]
        demand_rps = math.fsum(service.rates)
        served_rps = math.fsum(rate * share for rate, share in zip(service.rates, served, strict=True))
        share = served_rps / demand_rps if demand_rps > 0 else self.share
        return Split(
            shares=tuple((b, v, share) for (b, v), share in sorted(shares.items())),
            served_share=self.share if share >= self.share - _NOISE else share,
            loads=tuple(math.fsum(each) for each in taken),
        )


def _within(load: float, room: float) -> bool:
    """Whether replicas can take a load. The most even split takes a little more of every replica for a little too much
    load on one, so what is allowed grows with their number."""
    return load <= room + LOAD_TOLERANCE * max(1.0, room)


def _solved(model: SparseModel, x: dict[tuple[int, int], int]) -> Shares:
    """The solution without what is only the solver's noise."""
    values = model.solved().tolist()
    return {key: values[column] for key, column in x.items() if values[column] > _NOISE}
