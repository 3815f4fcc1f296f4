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

import numpy as np

from medley_planner.programme.memo import Memo
from medley_planner.programme.problem import LOAD_TOLERANCE, ServiceProblem
from medley_planner.programme.sparse import Array, Indices, least

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
    """The split of a share of every bucket over so many replicas by variant.

    The shares x[b,v] are numbered by bucket, then by variant: number i is that of bucket `_b[i]` and variant `_v[i]`.
    """

    def __init__(self, service: ServiceProblem, replicas: tuple[int, ...], share: float) -> None:
        self.service = service
        self.share = share
        self.usable = [service.usable(v, count) for v, count in enumerate(replicas)]
        loads = np.array(service.loads, dtype=np.float64).reshape(len(service.loads), len(replicas))
        able = np.isfinite(loads) & (np.array(replicas, dtype=np.int64) > 0)
        self._b, self._v = able.nonzero()
        self._load = loads[able]
        self._in_part = [np.isin(self._v, part) for part in service.parts]
        self._computed = np.array([able[:, list(part)].any(axis=1) for part in service.parts], dtype=bool).T
        """Whether something computes that part of a bucket, (buckets, parts)."""

    def best(self) -> Split:
        """The most even split if everything can be served, else the one that serves the most."""
        if self._computed.all():
            sole = np.bincount(self._b).max(initial=0) <= 1
            even = self._shares(np.full(len(self._b), self.share)) if sole else self._balanced()
            balanced = self._measured(even)
            if all(_within(load, room) for load, room in zip(balanced.loads, self.usable, strict=True)):
                return balanced
        return self._measured(self._most_served())

    def _balanced(self) -> Shares:
        """Column 0 is θ."""
        rows, columns, values = self._coefficients(first=1)
        used = np.unique(self._v)
        rows.append(self._computed.size + np.arange(len(used)))
        columns.append(np.zeros(len(used), dtype=np.int64))
        values.append(-np.array(self.usable)[used])
        demand = np.full(self._computed.size, self.share)
        solved = least(
            costs=np.append(1.0, np.zeros(len(self._b))),
            upper=np.full(len(self._b) + 1, np.inf),
            rows=(np.append(demand, np.full(len(used), -np.inf)), np.append(demand, np.zeros(len(used)))),
            entries=(np.concatenate(rows), np.concatenate(columns), np.concatenate(values)),
        )
        return self._exact(self._shares(solved[1:]))

    def _most_served(self) -> Shares:
        """The last columns are z, of buckets that can be served at all."""
        if not len(self._b):
            return {}
        rows, columns, values = self._coefficients(first=0)
        served = np.flatnonzero(self._computed.all(axis=1))
        parts = len(self._in_part)
        for part in range(parts):
            rows.append(served * parts + part)
            columns.append(len(self._b) + np.arange(len(served)))
            values.append(np.full(len(served), -1.0))
        rates = np.array(self.service.rates)
        used, demand = np.unique(self._v), np.zeros(self._computed.size)
        solved = least(
            costs=np.append(np.zeros(len(self._b)), -rates[served] / rates.max()),
            upper=np.append(np.full(len(self._b), np.inf), np.full(len(served), self.share)),
            rows=(
                np.append(demand, np.full(len(used), -np.inf)),
                np.append(demand, np.array(self.usable)[used]),
            ),
            entries=(np.concatenate(rows), np.concatenate(columns), np.concatenate(values)),
        )
        return self._shares(solved[: len(self._b)])

    def _coefficients(self, *, first: int) -> tuple[list[Indices], list[Indices], list[Array]]:
        """Those of the shares, which are columns from `first` on: a row for each part of each bucket, then one for each
        variant in use."""
        parts = len(self._in_part)
        rows = [self._b[inside] * parts + part for part, inside in enumerate(self._in_part)]
        columns = [first + np.flatnonzero(inside) for inside in self._in_part]
        values = [np.ones(len(each)) for each in rows]
        rows.append(self._computed.size + np.unique(self._v, return_inverse=True)[1])
        columns.append(first + np.arange(len(self._v)))
        values.append(self._load)
        return rows, columns, values

    def _shares(self, values: Array) -> Shares:
        """The solution without what is only the solver's noise."""
        kept = values > _NOISE
        keys = zip(self._b[kept].tolist(), self._v[kept].tolist(), strict=True)
        return dict(zip(keys, values[kept].tolist(), strict=True))

    def _exact(self, values: Shares) -> Shares:
        """The same shares, adding up to the whole in every part of every bucket, not only nearly so."""
        by_bucket: dict[int, dict[int, float]] = {}
        for (b, v), value in values.items():
            by_bucket.setdefault(b, {})[v] = value
        if len(self.service.parts) == 1:
            scales = {b: self.share / math.fsum(each.values()) for b, each in by_bucket.items()}
            return {(b, v): value * scales[b] for (b, v), value in values.items()}
        exact: Shares = {}
        for b, each in by_bucket.items():
            shared = [v for v in each if all(v in part for part in self.service.parts)]
            rest = [[v for v in each if v in part and v not in shared] for part in self.service.parts]
            whole = math.fsum(each[v] for v in shared)
            apart = [math.fsum(each[v] for v in variants) for variants in rest]
            scale = 1.0 if min(apart) > 0 else self.share / whole
            exact.update({(b, v): each[v] * scale for v in shared})
            left = self.share - whole * scale
            for variants, total in zip(rest, apart, strict=True):
                if left > 0 and total > 0:
                    exact.update({(b, v): each[v] * left / total for v in variants})
        return exact

    def _measured(self, shares: Shares) -> Split:
        """The split with what follows from it. A request in a billion is the solver's noise, not a shortage."""
        service = self.service
        taken: list[list[float]] = [[] for _ in service.variants]
        computed: list[list[list[float]]] = [[[] for _ in service.parts] for _ in service.loads]
        parts_of = [[p for p, part in enumerate(service.parts) if v in part] for v in range(len(service.variants))]
        for (b, v), share in shares.items():
            taken[v].append(service.loads[b][v] * share)
            for part in parts_of[v]:
                computed[b][part].append(share)
        served = [min(self.share, *map(math.fsum, parts)) for parts in computed]
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
