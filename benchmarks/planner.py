"""The planner against its goals: speed at fleet scale, price against others, truth of estimates, attainment, fuzz.

python benchmarks/planner.py                      all parts, written to benchmarks/results/planner.json
python benchmarks/planner.py --parts scale fuzz   only these; the figures of the others are kept
python benchmarks/planner.py --quick              small versions, nothing written

Each part is a module `benchmarks/planner_<part>.py`, which says what it measures, on what, and how long it takes.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from rich.console import Console

from medley_bench.report import Report, Row

PARTS = ("melange", "scale", "table3", "workloads", "estimates", "simulator", "fuzz")
"""In this order: the first ones time themselves and want a machine that is warm but idle."""

NOTE = "Simulated attainment and estimated capacities are called so in their rows; no GPU was used."


def main() -> int:
    """Run the parts asked for; 1 where a goal was not met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="small versions; nothing is written")
    asked = parser.parse_args()
    console = Console()
    rows: list[Row] = []
    for part in asked.parts:
        console.rule(f"[bold]{part}")
        started = time.perf_counter()
        rows += importlib.import_module(f"planner_{part}").rows(quick=asked.quick)
        console.print(f"[dim]{part}: {time.perf_counter() - started:.0f} s")
    report = Report("planner", tuple(rows), NOTE)
    if not asked.quick:
        report = report.over_earlier()
        report.write()
    report.show(console)
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
