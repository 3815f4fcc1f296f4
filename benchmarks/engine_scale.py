"""Scaling under load: the same steps in several cycles, so that a figure is more than one draw of the noise.

For every step three windows of the same length are compared: *inside* begins with the request to scale, *before* ends
with it, and *control* lies before that. Nothing happens between control and before, so their ratio shows how much of
the ratio of inside to before is noise. Requests arrive at the same rate throughout, whatever becomes of them. A step
begins as some client gets a first token, so that a stream runs, else the time to the first token of the new
configuration would be the time until somebody asks for one.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from pathlib import Path
from typing import Any

import aiohttp

from engine_harness import Engine, Load, MemoryWatch, percentile

STEPS = ((2, 3), (3, 4), (4, 3), (3, 2))
SIZES = (2, 3, 4)
TOKENS = 4
WINDOW_S = 8.0
SHARE_OF_CAPACITY = 0.6
_CAPACITY_S = 6.0
_COLD_STARTS = 3
_CLIENTS = 8


def make_prompts(lengths: tuple[int, ...], seed: int = 1, count: int = 8) -> list[list[int]]:
    """Random prompts, each as long as one of these."""
    rng = random.Random(seed)
    return [[rng.randrange(300, 8192) for _ in range(rng.choice(lengths))] for _ in range(count)]


def settings(size: int, **changes: Any) -> dict[str, Any]:
    """Flags of an engine of this size."""
    return {"data_parallel": size, "max_data_parallel": 4, "blocks_per_rank": 256, "standbys": 2, **changes}


async def cold_start_s(folder: Path, session: aiohttp.ClientSession, size: int, **changes: Any) -> float:
    """Seconds from the start of the process to the first token that a client gets; the checkpoint lies in the page
    cache, which favours the cold start. A request sent early waits in the engine.
    """
    engine = Engine(folder, session, **settings(size, standbys=0, keep_standbys=False, **changes))
    try:
        while True:
            answer = await engine.stream([[5, 6, 7, 8]], 0, 1)
            if answer.tokens_s:
                return answer.tokens_s[0] - engine.started_s
            await asyncio.sleep(0.02)
    finally:
        await engine.stop()


async def capacity_rps(engine: Engine, prompts: list[list[int]]) -> float:
    """Requests per second that clients get through which send the next when the last is answered."""
    done, stop = 0, time.monotonic() + _CAPACITY_S

    async def client(number: int) -> None:
        nonlocal done
        turn = number
        while time.monotonic() < stop:
            await engine.stream(prompts, turn % len(prompts), TOKENS)
            done, turn = done + 1, turn + 1

    start = time.monotonic()
    await asyncio.gather(*(client(number) for number in range(_CLIENTS)))
    return done / (time.monotonic() - start)


async def step(engine: Engine, watch: MemoryWatch, size: int, least_window_s: float) -> dict[str, Any]:
    """One change of size: what the engine tells, and memory seen from outside its processes."""
    start = time.monotonic()
    before = engine.memory_bytes()
    operation = await engine.scale(size)
    await asyncio.sleep(max(0.0, start + least_window_s - time.monotonic()))
    end = time.monotonic()
    after = engine.memory_bytes()
    # Its first token may have come after its end.
    operation = await engine.get(f"/scale/operations/{operation['id']}")
    details, seconds = operation["details"], operation["seconds"]
    shown = ("plan", "prepare", "attach", "warm", "handover", "armed", "home")
    return {
        "result": operation["phase"],
        "first_token_s": details.get("first_token_s"),
        "whole_operation_s": sum(seconds.values()),
        "phases_s": seconds,
        "details": {name: details[name] for name in shown if name in details},
        "start_s": start,
        "end_s": end,
        "peak_ratio": watch.peak_bytes("total", start, end) / max(before["total"], after["total"]),
        "pages_peak_ratio": watch.peak_bytes("pools", start, end) / max(before["pools"], after["pools"]),
        "memory_bytes": {"before": before["total"], "after": after["total"]},
    }


def pooled(turns: list[dict[str, Any]], load: Load) -> dict[str, Any]:
    """What clients saw in the windows of one step, over all cycles, once all answers are in."""
    spans: dict[str, list[tuple[float, float]]] = {"control": [], "before": [], "inside": []}
    for turn in turns:
        start, end = turn.pop("start_s"), turn.pop("end_s")
        long = end - start
        spans["control"].append((start - long - WINDOW_S, start - long))
        spans["before"].append((start - long, start))
        spans["inside"].append((start, end))
    tokens = {name: [load.tokens(*span) for span in of] for name, of in spans.items()}
    seconds = {name: sum(end - start for start, end in of) for name, of in spans.items()}
    rates = {name: sum(of) / seconds[name] for name, of in tokens.items()}
    ttfts = {name: [ttft for span in of for ttft in load.ttfts_s(*span)] for name, of in spans.items()}
    p99 = {name: percentile(of, 0.99) for name, of in ttfts.items()}
    firsts = [turn["first_token_s"] for turn in turns if turn["first_token_s"] is not None]
    return {
        "cycles": len(turns),
        "all_succeeded": all(turn["result"] == "succeeded" for turn in turns),
        "first_token_s": {"median": statistics.median(firsts), "worst": max(firsts)} if firsts else None,
        "window_s": seconds["inside"] / len(turns),
        "requests": {name: len(of) for name, of in ttfts.items()},
        "tokens_per_s": rates,
        "throughput_ratio": rates["inside"] / rates["before"],
        "throughput_ratio_by_cycle": [i / b for i, b in zip(tokens["inside"], tokens["before"], strict=True)],
        "throughput_ratio_of_control": rates["before"] / rates["control"],
        "ttft_p50_s": {name: percentile(of, 0.5) for name, of in ttfts.items()},
        "ttft_p99_s": p99,
        "ttft_p99_ratio": p99["inside"] / p99["before"],
        "ttft_p99_ratio_of_control": p99["before"] / p99["control"],
        "longest_pause_s": {name: max(load.longest_pause_s(*span) for span in of) for name, of in spans.items()},
        "peak_ratio": max(turn["peak_ratio"] for turn in turns),
        "pages_peak_ratio": max(turn["pages_peak_ratio"] for turn in turns),
        "whole_operation_s": statistics.median(turn["whole_operation_s"] for turn in turns),
        "each": turns,
    }


async def _capacities(engine: Engine, prompts: list[list[int]]) -> dict[int, float]:
    """Capacity at every size, and the first cycle, which is not counted."""
    found = {2: await capacity_rps(engine, prompts)}
    for _, size in STEPS:
        await engine.ready(size)
        await engine.scale(size)
        if size not in found:
            found[size] = await capacity_rps(engine, prompts)
    return found


async def measure(folder: Path, session: aiohttp.ClientSession, shared: bool, cycles: int) -> dict[str, Any]:
    """DP2→3→4→3→2 again and again, under an open loop at 60 % of the least capacity among these sizes."""
    prompts = make_prompts((4, 6, 8))
    flags = {"shared_domain": shared}
    cold: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(_COLD_STARTS):
        for size in SIZES:
            cold[size].append(await cold_start_s(folder, session, size, **flags))
    engine = Engine(folder, session, **settings(2, **flags))
    try:
        await engine.ready(3, armed=True)
        expected = [(await engine.stream(prompts, i, TOKENS)).text for i in range(len(prompts))]
        capacities = await _capacities(engine, prompts)
        rate_rps = SHARE_OF_CAPACITY * min(capacities.values())
        turns: dict[tuple[int, int], list[dict[str, Any]]] = {pair: [] for pair in STEPS}
        with Load(engine, prompts, TOKENS, rate_rps) as load:
            async with MemoryWatch(engine) as watch:
                for _ in range(cycles):
                    for pair in STEPS:
                        await engine.ready(pair[1], armed=True)
                        await asyncio.sleep(2 * WINDOW_S)
                        await load.a_stream_has_begun()
                        turns[pair].append(await step(engine, watch, pair[1], WINDOW_S))
                await load.finish()
    finally:
        await engine.stop()
    steps: dict[str, Any] = {}
    for (old, new), of in turns.items():
        figures = steps[f"{old}→{new}"] = pooled(of, load)
        figures["cold_start_s"] = statistics.median(cold[new])
        if figures["first_token_s"] is not None:
            figures["share_of_cold_start"] = figures["first_token_s"]["median"] / figures["cold_start_s"]
            figures["share_of_cold_start_worst"] = figures["first_token_s"]["worst"] / min(cold[new])
        print(f"  {old}→{new} {'node' if shared else 'rank'} memory: {_line(figures)}", flush=True)
    return {
        "cold_start_s": cold,
        "capacity_rps": capacities,
        "rate_rps": rate_rps,
        "prompt_tokens": sorted(map(len, prompts)),
        "tokens_each": TOKENS,
        "requests": len(load.answers),
        "errors": [a.error for a in load.answers if a.error],
        "different_answers": sum(not a.error and a.text != expected[a.prompt] for a in load.answers),
        "steps": steps,
    }


def _line(figures: dict[str, Any]) -> str:
    first = figures["first_token_s"]
    told = f"{first['median']:.3f} s = {figures['share_of_cold_start']:.4f} of cold" if first else "none"
    return (
        f"first token {told}, throughput {figures['throughput_ratio']:.2f}× (control "
        f"{figures['throughput_ratio_of_control']:.2f}×), TTFT p99 {figures['ttft_p99_ratio']:.2f}× (control "
        f"{figures['ttft_p99_ratio_of_control']:.2f}×), memory {figures['peak_ratio']:.3f}×, "
        f"{figures['requests']['inside']} requests"
    )


ABLATIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("full", {}),
    ("copies before the switch (alone)", {"copy_after_switch": False}),
    ("− page remap (alone)", {"page_remap": False}),
    ("− shared allocation", {"shared_pages": False}),
    ("− P2P", {"shared_pages": False, "peer_copy": False}),
    ("− standby", {"shared_pages": False, "peer_copy": False, "keep_standbys": False}),
    ("− zero-copy", {"shared_pages": False, "peer_copy": False, "keep_standbys": False, "zero_copy": False}),
)


async def ablation(folder: Path, session: aiohttp.ClientSession) -> dict[str, Any]:
    """DP3→DP4→DP3 with mechanisms taken away, cumulative but for two, each rank with a memory of its own."""
    rows: dict[str, Any] = {}
    prompts = make_prompts((4, 6, 8))
    for name, changes in ABLATIONS:
        engine = Engine(folder, session, **settings(3, shared_domain=False, blocks_per_rank=128, **changes))
        try:
            keeps = changes.get("keep_standbys", True)
            for index in range(3):
                await engine.stream(prompts, index, 4)
            row: dict[str, Any] = {}
            for direction, size in (("up", 4), ("down", 3)):
                await (engine.ready(size, armed=not changes) if keeps else engine.ready())
                with Load(engine, prompts, 12, 2.0) as load:
                    async with MemoryWatch(engine) as watch:
                        await asyncio.sleep(2.0)
                        figures = row[direction] = await step(engine, watch, size, 4.0)
                        figures["peak_bytes"] = watch.peak_bytes("total", figures.pop("start_s"), figures.pop("end_s"))
                    await load.finish()
                figures["broken"] = sum(bool(a.error) for a in load.answers)
            rows[name] = row
            up, down = row["up"], row["down"]
            print(f"  {name:<34} up {up['first_token_s']} s, down {down['first_token_s']} s", flush=True)
        finally:
            await engine.stop()
    return {"rows": rows}
