"""The elastic engine measured: scaling under load, ablations, kills, other engines, hostile clients.

    python benchmarks/engine.py [--parts scale,kills] [--cycles 3]   measure, write benchmarks/results/engine.json
    python benchmarks/engine.py --tables                             print the tables of the last results
    python benchmarks/engine.py --write                              write them into docs/engine/benchmarks.md

Parts that were not run keep the figures of the last run that had them, with the machine that those were measured on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp

import engine_kills
import engine_parts
import engine_report
import engine_scale
from engine_harness import LARGE, LARGER, ROOT, make_checkpoint
from medley_bench.report import Report, machine

PARTS = ("scale", "scale_separate_memories", "scale_larger", "ablation", "kills", "compare", "clients")


async def run(parts: list[str], out: Path, arguments: argparse.Namespace) -> None:
    """Measure parts one after the other; results are written after each."""
    folder: Path = arguments.folder
    results = load(out)
    size = make_checkpoint(folder / "large", **LARGE)
    large, larger = folder / "large", folder / "larger"
    sizes = {"scale_larger": make_checkpoint(larger, **LARGER)} if "scale_larger" in parts else {}
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        work = {
            "scale": lambda: engine_scale.measure(large, session, True, arguments.cycles),
            "scale_separate_memories": lambda: engine_scale.measure(large, session, False, arguments.cycles),
            "scale_larger": lambda: engine_scale.measure(larger, session, True, max(1, arguments.cycles - 1)),
            "ablation": lambda: engine_scale.ablation(large, session),
            "kills": lambda: engine_kills.run(folder / "small", session, rounds=arguments.rounds),
            "compare": lambda: engine_parts.compare(large, session, engine_scale.make_prompts((16, 32, 48)), 16),
            "clients": lambda: engine_parts.clients(folder / "tiny", session),
        }
        for part in parts:
            before = os.getloadavg()[0]
            print(f"{part} (load average {before:.1f})", flush=True)
            started = time.monotonic()
            figures = await work[part]()
            figures |= {
                "seconds": round(time.monotonic() - started, 1),
                "machine": machine(),
                "load_average": [round(value, 2) for value in os.getloadavg()],
                "load_average_before": round(before, 2),
                "checkpoint_bytes": sizes.get(part, size),
            }
            results["parts"][part] = figures
            write(out, results["parts"])


def load(out: Path) -> dict[str, Any]:
    """The last results, or none."""
    return dict(json.loads(out.read_text())) if out.exists() else {"parts": {}}


def write(out: Path, parts: dict[str, Any]) -> None:
    """The machine, a row for every figure with a goal, and what they were computed from."""
    body = {"machine": machine(), "rows": [asdict(row) for row in engine_report.rows(parts)], "parts": parts}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "engine.json")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "medley-engine-bench")
    parser.add_argument("--cycles", type=int, default=3, help="how often each step of scaling is measured")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of kills; one is 31 or 32")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--tables", action="store_true", help="print the tables of the last results, measure nothing")
    what.add_argument("--write", action="store_true", help="write them into docs/engine/benchmarks.md")
    what.add_argument("--check", action="store_true", help="fail where that page does not show the last results")
    arguments = parser.parse_args()
    if not (arguments.tables or arguments.write or arguments.check):
        asyncio.run(run(arguments.parts.split(","), arguments.out, arguments))
        Report("engine", engine_report.rows(load(arguments.out)["parts"])).show()
        return 0
    made = engine_report.tables(load(arguments.out)["parts"])
    if arguments.tables:
        print("\n\n".join(f"{name}\n\n{text}" for name, text in made.items()))
        return 0
    page = engine_report.PAGE.read_text(encoding="utf-8")
    filled = engine_report.fill(page, made)
    if arguments.write:
        engine_report.PAGE.write_text(filled, encoding="utf-8")
    elif filled != page:
        print("docs/engine/benchmarks.md is out of date: python benchmarks/engine.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
