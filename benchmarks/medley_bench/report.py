"""The end of every benchmark: a table for people, and `benchmarks/results/NAME.json` for machines."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True)
class Row:
    """One figure; `met` is None where there is no goal."""

    name: str
    value: float | str
    unit: str
    goal: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Report:
    """The figures of one run of one benchmark."""

    name: str
    rows: tuple[Row, ...]
    note: str = ""

    def over_earlier(self) -> Report:
        """These figures, and in their places those of the last run that this run did not measure."""
        path = RESULTS / f"{self.name}.json"
        earlier = [Row(**row) for row in json.loads(path.read_text())["rows"]] if path.exists() else []
        now = {row.name: row for row in self.rows}
        kept = [now.pop(row.name, row) for row in earlier]
        return Report(self.name, (*kept, *now.values()), self.note)

    def show(self, console: Console | None = None) -> None:
        """Print the table."""
        console = console or Console()
        table = Table(title=f"{self.name}: {machine()}", title_justify="left", caption=self.note or None)
        table.add_column("what")
        table.add_column("value", justify="right")
        table.add_column("unit")
        table.add_column("goal")
        table.add_column("met")
        words = {None: "", True: "[green]yes", False: "[red]no"}
        for row in self.rows:
            value = row.value if isinstance(row.value, str) else f"{row.value:.4g}"
            table.add_row(row.name, value, row.unit, row.goal, words[row.met])
        console.print(table)

    def write(self) -> Path:
        """Write the JSON; its path."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        body = {"machine": machine(), "rows": [asdict(row) for row in self.rows]}
        path.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n")
        return path


def machine() -> str:
    """What this was measured on, in a line."""
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{cores} cores ({platform.machine()}, {_processor()}), {memory_gib:.0f} GiB, "
        f"{platform.system()} {platform.release().partition('-')[0]}, Python {platform.python_version()}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"
