"""Capacities in columns give back what was put in, corrected and in part as the capacities themselves would be."""

import pytest

from medley_planner.capacities.capacity import OBJECTIVE_NOT_MET, Capacity
from medley_planner.capacities.latency import Latency
from medley_planner.capacities.table import CapacityTable

ROWS = (
    Capacity(3.25, "", "", "roofline", 12.5, Latency(0.025, 0.375)),
    Capacity(0.0, OBJECTIVE_NOT_MET, "time to first token is 3 s, the objective is 1 s", "roofline"),
    Capacity(1.5, "", "", "measured", 0.0, Latency(0.0, 0.0)),
)


def test_every_row_comes_back_as_it_was() -> None:
    table = CapacityTable.of(ROWS)
    assert tuple(table) == ROWS
    assert [table[place] for place in range(len(table))] == list(ROWS)
    assert table[-1] == ROWS[-1]
    with pytest.raises(IndexError):
        table[len(ROWS)]


def test_a_correction_is_that_of_every_row() -> None:
    table = CapacityTable.of(ROWS)
    assert tuple(table.corrected(0.8)) == tuple(row.corrected(0.8) for row in ROWS)
    assert table.corrected(1.0) is table


def test_some_rows_in_another_order() -> None:
    table = CapacityTable.of(ROWS)
    assert tuple(table.at([2, 0])) == (ROWS[2], ROWS[0])
    assert tuple(table[1:]) == ROWS[1:]


def test_it_serves_any_size_where_one_has_a_rate() -> None:
    assert CapacityTable.of(ROWS).serves_any
    assert not CapacityTable.of(ROWS[1:2]).serves_any
    assert not CapacityTable.of(()).serves_any


def test_tables_of_the_same_rows_are_equal() -> None:
    assert CapacityTable.of(ROWS) == CapacityTable.of(list(ROWS))
    assert CapacityTable.of(ROWS) != CapacityTable.of(ROWS[:2])
