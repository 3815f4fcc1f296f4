"""Tables as all answers show them, and amounts of money in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table


def columns(*names: str) -> Table:
    """An empty table; more columns can be added."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def rows_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table; the last column wraps."""
    table = columns(*names[:-1])
    table.add_column(names[-1])
    for row in rows:
        table.add_row(*row)
    return table


def money(amount: float) -> str:
    """An amount with as many digits as matter: `4.37`, `0.0805`."""
    return f"{amount:,.2f}" if amount == 0 or abs(amount) >= 0.1 else f"{amount:.4f}"
