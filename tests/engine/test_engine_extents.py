"""Page runs in a pool: never twice, never lost."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley_engine.extents import Extent, ExtentAllocator, OutOfPagesError

PAGE = 4096


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=60), st.integers(1, 40))
def test_runs_never_overlap_and_freeing_all_restores_one_run(steps, pages):
    pool = ExtentAllocator(pages * PAGE, PAGE)
    held: list[Extent] = []
    for take, number in steps:
        if take or not held:
            try:
                held.append(pool.allocate(number * PAGE))
            except OutOfPagesError:
                assert all(run.size < number * PAGE for run in pool.free_runs)
        else:
            pool.free(held.pop(number % len(held)))
        ordered = sorted(held)
        assert all(a.end <= b.offset for a, b in pairwise(ordered))
        assert pool.taken_bytes + sum(run.size for run in pool.free_runs) == pages * PAGE
        assert all(a.end < b.offset for a, b in pairwise(pool.free_runs)), "unmerged"
    for extent in held:
        pool.free(extent)
    assert pool.free_runs == (Extent(0, pages * PAGE),)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.data())
def test_a_rebuilt_pool_goes_on_where_the_old_one_was(sizes, data):
    pool = ExtentAllocator(100 * PAGE, PAGE)
    held = [pool.allocate(size * PAGE) for size in sizes]
    for extent in data.draw(st.lists(st.sampled_from(held), unique=True)):
        pool.free(extent)
        held.remove(extent)
    again = ExtentAllocator(100 * PAGE, PAGE, held)
    assert again.free_runs == pool.free_runs
    assert again.allocate(PAGE) == pool.allocate(PAGE)


def test_misuse_is_refused():
    pool = ExtentAllocator(4 * PAGE, PAGE)
    extent = pool.allocate(2 * PAGE)
    pool.free(extent)
    with pytest.raises(ValueError, match="not handed out"):
        pool.free(extent)
    with pytest.raises(ValueError, match="not a multiple"):
        pool.allocate(PAGE + 1)
    with pytest.raises(ValueError, match="overlaps"):
        ExtentAllocator(4 * PAGE, PAGE, [Extent(0, 2 * PAGE), Extent(PAGE, PAGE)])
