"""The elastic engine measured: scaling under load, ablations, kills, other engines, hostile clients.

    python benchmarks/engine.py [--parts scale,ablation,kills,compare,clients] [--out benchmarks/results/engine.json]

Prints ratios and writes every figure as JSON. Parts that were not run keep the figures of the last run that had them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

import engine_kills
import engine_parts
from engine_harness import LARGE, ROOT, Engine, Load, MemoryWatch, make_checkpoint, percentile

STEPS = ((2, 3), (3, 4), (4, 3), (3, 2))
TOKENS = 16
BEFORE_S = 20.0


def make_prompts(seed: int = 1, count: int = 8) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(300, 8192) for _ in range(rng.choice((16, 32, 48)))] for _ in range(count)]


def settings(size: int, **changes: Any) -> dict[str, Any]:
    return {"data_parallel": size, "max_data_parallel": 4, "blocks_per_rank": 256, "standbys": 2, **changes}


async def first_token_s(engine: Engine, prompts: list[list[int]]) -> float:
    """Seconds from the start of the process to the first token a client gets. Requests sent early wait in the
    engine.
    """
    while True:
        answer = await engine.stream(prompts, 0, 1)
        if answer.tokens_s:
            return answer.tokens_s[0] - engine.started_s
        await asyncio.sleep(0.02)


async def cold_restart(folder: Path, session: aiohttp.ClientSession, size: int, **changes: Any) -> dict[str, float]:
    """A fresh start at a size; the checkpoint lies in the page cache, which favours the restart."""
    engine = Engine(folder, session, **settings(size, standbys=0, keep_standbys=False, **changes))
    try:
        seconds = await first_token_s(engine, make_prompts())
        return {"first_token_s": seconds, "memory_bytes": float(engine.memory_bytes()["total"])}
    finally:
        await engine.stop()


async def capacity_rps(engine: Engine, prompts: list[list[int]], seconds: float = 12.0) -> tuple[float, float]:
    """Closed loop with eight clients: requests and tokens per second."""
    done, stop = [], time.monotonic() + seconds

    async def client(number: int) -> None:
        turn = number
        while time.monotonic() < stop:
            done.append(await engine.stream(prompts, turn % len(prompts), TOKENS))
            turn += 1

    start = time.monotonic()
    await asyncio.gather(*(client(n) for n in range(8)))
    took = time.monotonic() - start
    return len(done) / took, sum(len(a.tokens_s) for a in done) / took


async def step(engine: Engine, size: int, least_window_s: float) -> dict[str, Any]:
    """One change of size: what the engine tells, and memory seen from outside its processes."""
    start = time.monotonic()
    memory_before = engine.memory_bytes()
    async with MemoryWatch(engine) as watch:
        operation = await engine.scale(size)
        end = max(time.monotonic(), start + least_window_s)
        await asyncio.sleep(max(0.0, end - time.monotonic()))
    operation = await engine.get(f"/scale/operations/{operation['id']}")
    memory_after = engine.memory_bytes()
    details, seconds = operation["details"], operation["seconds"]
    pools = max(memory_before["pools"], memory_after["pools"])
    return {
        "result": operation["phase"],
        "first_token_s": details.get("first_token_s"),
        "whole_operation_s": sum(seconds.values()),
        "phases_s": seconds,
        "details": {
            k: details[k] for k in ("prepare", "plan", "attach", "warm", "handover", "standby", "armed") if k in details
        },
        "start_s": start,
        "end_s": end,
        "memory_bytes": {"before": memory_before, "peak": watch.peak_bytes, "after": memory_after},
        "peak_ratio": watch.peak_bytes / max(memory_before["total"], memory_after["total"]),
        "pages_peak_ratio": max(s["pools"] for s in watch.samples) / pools,
    }


def add_clients_view(figures: dict[str, Any], load: Load, before_s: float) -> None:
    """Throughput and time to first token inside the window against before, once all answers are in."""
    start, end = figures.pop("start_s"), figures.pop("end_s")
    before, inside = load.tokens_per_s(start - before_s, start), load.tokens_per_s(start, end)
    ttft = {
        "before": percentile(load.ttfts_s(start - before_s, start), 0.99),
        "inside": percentile(load.ttfts_s(start, end), 0.99),
    }
    figures |= {
        "window_s": end - start,
        "tokens_per_s": {"before": before, "inside": inside},
        "throughput_ratio": inside / before if before else None,
        "ttft_p99_s": ttft,
        "ttft_p99_ratio": ttft["inside"] / ttft["before"],
        "requests_in_window": len(load.ttfts_s(start, end)),
    }


async def scale_part(folder: Path, session: aiohttp.ClientSession, shared: bool) -> dict[str, Any]:
    """DP2→3→4→3→2 under an open loop at 60 % of the capacity of DP2."""
    prompts = make_prompts()
    cold = {size: await cold_restart(folder, session, size, shared_domain=shared) for size in (2, 3, 4)}
    engine = Engine(folder, session, **settings(2, shared_domain=shared))
    try:
        await engine.ready(3, armed=shared)
        expected = [(await engine.stream(prompts, i, TOKENS)).text for i in range(len(prompts))]
        rps, tokens_per_s = await capacity_rps(engine, prompts)
        steps: dict[str, Any] = {}
        with Load(engine, prompts, TOKENS, 0.6 * rps) as load:
            for old, new in STEPS:
                await engine.ready(new, armed=shared)
                await asyncio.sleep(BEFORE_S)
                figures = await step(engine, new, 8.0)
                figures["cold_restart_s"] = cold[new]["first_token_s"]
                if figures["first_token_s"] is not None:
                    figures["share_of_cold_restart"] = figures["first_token_s"] / cold[new]["first_token_s"]
                steps[f"{old}→{new}"] = figures
            await load.finish()
        for name, figures in steps.items():
            add_clients_view(figures, load, BEFORE_S)
            print(f"  {name} {'node' if shared else 'rank'} memory: {summary_line(figures)}", flush=True)
        broken = [a.error for a in load.answers if a.error]
        different = sum(not a.error and a.text != expected[a.prompt] for a in load.answers)
        return {
            "cold_restart": cold,
            "capacity_rps_dp2": rps,
            "capacity_tokens_per_s_dp2": tokens_per_s,
            "rate_rps": 0.6 * rps,
            "requests": len(load.answers),
            "broken": len(broken),
            "errors": broken[:5],
            "different_answers": different,
            "steps": steps,
        }
    finally:
        await engine.stop()


def summary_line(figures: dict[str, Any]) -> str:
    first, share = figures["first_token_s"], figures.get("share_of_cold_restart")
    return (
        f"first token {first if first is None else round(first, 3)} s = {share if share is None else round(share, 4)} "
        f"of cold, throughput {figures['throughput_ratio']:.2f}×, TTFT p99 {figures['ttft_p99_ratio']:.2f}×, "
        f"memory {figures['peak_ratio']:.3f}×"
    )


ABLATIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("full", {}),
    ("− page remap", {"page_remap": False}),
    ("− shared allocation", {"shared_pages": False}),
    ("− P2P", {"shared_pages": False, "peer_copy": False}),
    ("− standby", {"shared_pages": False, "peer_copy": False, "keep_standbys": False}),
    ("− zero-copy", {"shared_pages": False, "peer_copy": False, "keep_standbys": False, "zero_copy": False}),
)


async def ablation_part(folder: Path, session: aiohttp.ClientSession) -> dict[str, Any]:
    """DP3→DP4→DP3 with mechanisms taken away, cumulative but for page remap, each rank with a memory of its own."""
    rows: dict[str, Any] = {}
    for name, changes in ABLATIONS:
        engine = Engine(folder, session, **settings(3, shared_domain=False, blocks_per_rank=128, **changes))
        try:
            prompts = make_prompts()
            await (engine.ready(4) if changes.get("keep_standbys", True) else engine.ready())
            for index in range(3):
                await engine.stream(prompts, index, 4)
            row: dict[str, Any] = {}
            for direction, size in (("up", 4), ("down", 3)):
                if changes.get("keep_standbys", True):
                    await engine.ready(size)
                with Load(engine, prompts, 12, 0.7) as load:
                    await asyncio.sleep(4)
                    row[direction] = await step(engine, size, 4.0)
                    await load.finish()
                add_clients_view(row[direction], load, 4.0)
                row[direction]["broken"] = sum(bool(a.error) for a in load.answers)
            rows[name] = row
            up, down = row["up"], row["down"]
            print(
                f"  {name:<20} up {up['first_token_s']} s, down {down['first_token_s']} s, "
                f"peak {up['memory_bytes']['peak'] / 2**20:.0f} MiB",
                flush=True,
            )
        finally:
            await engine.stop()
    return rows


async def run(parts: list[str], out: Path, folder: Path, rounds: int) -> dict[str, Any]:
    results = json.loads(out.read_text()) if out.exists() else {}  # noqa: ASYNC240 - nothing else runs yet
    size = make_checkpoint(folder / "large", **LARGE)
    results["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average_at_start": os.getloadavg(),
        "niceness": os.nice(0),
        "checkpoint_bytes": size,
        "note": "CPU only; the CUDA path was not run",
    }
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        work = {
            "scale": lambda: scale_part(folder / "large", session, shared=True),
            "scale_separate_memories": lambda: scale_part(folder / "large", session, shared=False),
            "ablation": lambda: ablation_part(folder / "large", session),
            "kills": lambda: engine_kills.run(folder / "small", session, rounds=rounds),
            "compare": lambda: engine_parts.compare(folder / "large", session, make_prompts(), TOKENS),
            "clients": lambda: engine_parts.clients(folder / "tiny", session),
        }
        for part in parts:
            print(f"{part} (load average {os.getloadavg()[0]:.1f})", flush=True)
            started = time.monotonic()
            results[part] = await work[part]()
            results[part]["seconds"] = round(time.monotonic() - started, 1)
            results[part]["load_average"] = [round(v, 2) for v in os.getloadavg()]
            out.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(results, indent=1, ensure_ascii=False, default=str)
            out.write_text(text + "\n")  # noqa: ASYNC240
    return results


PARTS = ("scale", "scale_separate_memories", "ablation", "kills", "compare", "clients")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "engine.json")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "medley-engine-bench")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of kills; one is 31")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.parts.split(","), arguments.out, arguments.folder, arguments.rounds))


if __name__ == "__main__":
    main()
