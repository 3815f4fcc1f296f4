"""Expert placement: valid, balanced, and moving no more than it must."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley_engine.placement import Placement, check, copy_counts, initial, rebalance

LOADS = st.lists(st.floats(0, 1000, allow_nan=False), min_size=1, max_size=12)


@given(LOADS, st.integers(1, 6), st.integers(1, 6), st.integers(0, 6))
def test_any_placement_is_valid(load, old_ranks, ranks, spare):
    experts = len(load)
    if max(old_ranks, ranks) > experts:
        with pytest.raises(ValueError, match="would hold none"):
            rebalance(None, [load], experts + 1)
        return
    placement = rebalance(initial(1, experts, old_ranks), [load], ranks, spare)
    assert placement.ranks == ranks
    check(placement, experts)
    held = sum(len(rank) for rank in placement.layers[0])
    assert held == sum(copy_counts(load, ranks, spare))


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 8))
def test_even_loads_move_only_the_surplus(experts, old_ranks, ranks):
    """With equal loads, growing moves exactly what the new ranks get, shrinking exactly what the gone ones held."""
    if max(old_ranks, ranks) > experts:
        return
    old = initial(1, experts, old_ranks)
    new = rebalance(old, [[1.0] * experts], ranks)
    moved = sum(
        len(set(rank) - set(old.layers[0][index] if index < old_ranks else ()))
        for index, rank in enumerate(new.layers[0])
    )
    low, extra = divmod(experts, ranks)
    quotas = [low + 1] * extra + [low] * (ranks - extra)
    sizes = sorted((len(rank) for rank in old.layers[0][:ranks]), reverse=True) + [0] * max(0, ranks - old_ranks)
    assert moved == sum(max(0, quota - size) for quota, size in zip(quotas, sizes, strict=True))


@given(st.lists(st.integers(0, 50), min_size=4, max_size=8), st.integers(0, 4))
def test_spare_copies_minimise_the_largest_load_per_copy(load, spare):
    ranks = 3
    counts = copy_counts([float(v) for v in load], ranks, spare)
    used = sum(counts) - len(load)
    best = min(
        max(v / (1 + e) for v, e in zip(load, extra, strict=True))
        for extra in itertools.product(range(ranks), repeat=len(load))
        if sum(extra) <= used
    )
    assert max(v / c for v, c in zip(load, counts, strict=True)) == pytest.approx(best)


def test_a_hot_expert_is_copied_and_the_busiest_rank_gets_relief():
    load = [100.0, 1, 1, 1, 1, 1, 1, 1]
    old = initial(1, 8, 2)
    new = rebalance(old, [load], 2, spare_slots=2)

    def busiest(placement: Placement, counts: list[int]) -> float:
        return max(sum(load[e] / counts[e] for e in rank) for rank in placement.layers[0])

    counts = [len(copies) for copies in new.copies(0, 8)]
    assert counts[0] == 2
    assert busiest(new, counts) < 0.6 * busiest(old, [1] * 8)


@given(LOADS, st.integers(1, 4))
def test_rebalancing_again_changes_nothing(load, ranks):
    if ranks > len(load):
        return
    once = rebalance(None, [load], ranks)
    assert rebalance(once, [load], ranks) == once


@pytest.mark.parametrize(
    ("slots", "message"),
    [(((0, 1), (2,)), "missing"), (((0, 0), (1, 2)), "two copies"), (((0, 1, 2), (3,)), "differ by more")],
)
def test_invalid_placements_are_named(slots, message):
    with pytest.raises(ValueError, match=message):
        check(Placement((slots,)), 3 if "two" in message else 4)
