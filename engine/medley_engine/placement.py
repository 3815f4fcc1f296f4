"""Which rank holds which expert, layer by layer, with spare copies for hot experts.

A placement is valid when every expert has at least one copy, no rank holds two copies of one expert, and every rank
holds the same number of slots give or take one. Changing a placement costs pages to move, so :func:`rebalance` keeps
what is where it is unless moving it pays.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

LayerSlots = tuple[tuple[int, ...], ...]
"""For each rank, the experts it holds, ascending."""


@dataclass(frozen=True, slots=True)
class Placement:
    """For each MoE layer, for each rank, the experts it holds in slot order."""

    layers: tuple[LayerSlots, ...]

    @property
    def ranks(self) -> int:
        """Number of ranks it is made for (0 for a model without experts)."""
        return len(self.layers[0]) if self.layers else 0

    def copies(self, layer: int, experts: int) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each expert, its (rank, slot) copies in rank order."""
        found: list[list[tuple[int, int]]] = [[] for _ in range(experts)]
        for rank, held in enumerate(self.layers[layer]):
            for slot, expert in enumerate(held):
                found[expert].append((rank, slot))
        return tuple(tuple(copies) for copies in found)


def check(placement: Placement, experts: int) -> None:
    """Verify a placement independently of how it was made.

    Raises:
        ValueError: naming the layer and what is wrong with it.
    """
    for layer, slots in enumerate(placement.layers):
        held = [expert for rank in slots for expert in rank]
        if set(held) != set(range(experts)):
            raise ValueError(f"layer {layer}: experts {sorted(set(range(experts)) ^ set(held))} are missing or unknown")
        if any(len(set(rank)) != len(rank) for rank in slots):
            raise ValueError(f"layer {layer}: a rank holds two copies of one expert")
        sizes = [len(rank) for rank in slots]
        if max(sizes) - min(sizes) > 1:
            raise ValueError(f"layer {layer}: slots per rank differ by more than one: {sizes}")


def initial(layers: int, experts: int, ranks: int) -> Placement:
    """Contiguous, even placement for a cold start; the first ranks get the remainder."""
    if ranks > experts:
        raise ValueError(f"{ranks} ranks for {experts} experts: a rank would hold none")
    bounds = [experts * rank // ranks for rank in range(ranks + 1)]
    slots = tuple(tuple(range(a, b)) for a, b in pairwise(bounds))
    return Placement(tuple(slots for _ in range(layers)))


def rebalance(
    old: Placement | None, loads: Sequence[Sequence[float]], ranks: int, spare_slots: int = 0, tolerance: float = 0.05
) -> Placement:
    """Place experts on ``ranks`` ranks for the measured ``loads``, moving as little as balance allows.

    Args:
        old: the placement in force, on any number of ranks (None: nothing is anywhere).
        loads: tokens routed to each expert, per MoE layer; only ratios matter, zeros are fine.
        ranks: ranks of the new placement.
        spare_slots: extra copies per layer, given to the experts with the highest load per copy.
        tolerance: swaps stop once the busiest rank is within this share of the mean.

    Copies are counted first (greedy on load per copy, which minimises the largest load per copy), then kept where
    they are up to each rank's quota, the surplus going to the rank with the least load, heaviest first (longest
    processing time), then pairs are swapped while the busiest rank gets better by more than ``tolerance``.
    """
    layers = [
        _rebalance_layer(old.layers[i] if old else (), tuple(load), ranks, spare_slots, tolerance)
        for i, load in enumerate(loads)
    ]
    return Placement(tuple(layers))


def copy_counts(load: Sequence[float], ranks: int, spare_slots: int) -> tuple[int, ...]:
    """Copies per expert: one each, the spare ones where load per copy is highest, never more than one per rank."""
    counts = [1] * len(load)
    queue = [(-value, expert) for expert, value in enumerate(load) if ranks > 1 and value > 0]
    heapq.heapify(queue)
    for _ in range(spare_slots):
        if not queue:
            break
        _, expert = heapq.heappop(queue)
        counts[expert] += 1
        if counts[expert] < ranks:
            heapq.heappush(queue, (-load[expert] / counts[expert], expert))
    return tuple(counts)


def _rebalance_layer(old: LayerSlots, load: tuple[float, ...], ranks: int, spare: int, tolerance: float) -> LayerSlots:
    counts = copy_counts(load, ranks, spare)
    total = sum(counts)
    if ranks > len(load):
        raise ValueError(f"{ranks} ranks for {len(load)} experts: a rank would hold none")
    share = [load[expert] / counts[expert] for expert in range(len(load))]
    low, extra = divmod(total, ranks)
    held: list[set[int]] = [set() for _ in range(ranks)]
    left = list(counts)
    # Ranks that hold most today get the larger quotas: fewer pages move.
    by_size = sorted(range(ranks), key=lambda r: (-len(old[r]) if r < len(old) else 0, r))
    quota = {rank: low + (1 if position < extra else 0) for position, rank in enumerate(by_size)}
    for rank in range(min(ranks, len(old))):
        for expert in sorted(old[rank], key=lambda e: (-share[e], e)):
            if left[expert] and len(held[rank]) < quota[rank]:
                held[rank].add(expert)
                left[expert] -= 1
    waiting = sorted((e for e in range(len(load)) for _ in range(left[e])), key=lambda e: (-counts[e], -share[e], e))
    for expert in waiting:
        _place(held, quota, share, expert)
    _swap(held, share, tolerance)
    return tuple(tuple(sorted(rank)) for rank in held)


def _place(held: list[set[int]], quota: dict[int, int], share: Sequence[float], expert: int) -> None:
    def busy(rank: int) -> tuple[float, int, int]:
        return sum(share[e] for e in held[rank]), len(held[rank]), rank

    free = [r for r in range(len(held)) if len(held[r]) < quota[r]]
    fitting = [r for r in free if expert not in held[r]]
    if fitting:
        held[min(fitting, key=busy)].add(expert)
        return
    # Every free rank already has a copy: trade with a full rank that lacks this expert for one that the free rank
    # lacks.
    target = min(free, key=busy)
    for rank in sorted((r for r in range(len(held)) if expert not in held[r]), key=busy):
        for other in sorted(held[rank] - held[target], key=lambda e: (share[e], e)):
            held[rank].remove(other)
            held[rank].add(expert)
            held[target].add(other)
            return
    raise ValueError(f"no rank can take a copy of expert {expert}")


def _swap(held: list[set[int]], share: Sequence[float], tolerance: float) -> None:
    ranks = len(held)
    mean = sum(sum(share[e] for e in rank) for rank in held) / ranks
    for _ in range(len(share)):
        load = [sum(share[e] for e in sorted(rank)) for rank in held]
        busiest = max(range(ranks), key=lambda r: (load[r], -r))
        if load[busiest] <= mean * (1 + tolerance):
            return
        best: tuple[float, int, int, int] | None = None
        for rank in range(ranks):
            if rank == busiest:
                continue
            for out in sorted(held[busiest] - held[rank]):
                for back in sorted(held[rank] - held[busiest]):
                    gain = share[out] - share[back]
                    if gain <= 0:
                        continue
                    top = max(load[busiest] - gain, load[rank] + gain)
                    if top < load[busiest] - mean * tolerance / 2 and (best is None or (top, rank, out, back) < best):
                        best = (top, rank, out, back)
        if best is None:
            return
        _, rank, out, back = best
        held[busiest].remove(out)
        held[busiest].add(back)
        held[rank].remove(back)
        held[rank].add(out)
