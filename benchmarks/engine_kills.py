"""SIGKILL of every part in every phase of a scaling operation: what serves afterwards, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp

from engine_harness import Engine, Load, make_checkpoint, percentile

VICTIMS = ("hmm", "standby", "active", "coordinator")
PHASES = ("idle", "planning", "preparing", "attaching", "warming", "switching", "draining", "releasing")
_TOKENS = 24
_STRETCH_S = 0.2
"""Each phase takes at least this long, so that it can be hit."""


def _victim(who: str, status: dict[str, Any], seed: random.Random) -> int | None:
    """A process of the part to be killed; None where there is none of it just now."""
    named = status["processes"]
    if who in ("hmm", "coordinator"):
        return named.get(who)
    serves = f"rank-{status['active']}-"
    fitting = [
        pid
        for name, pid in sorted(named.items())
        if pid and name.startswith("rank-") and name.startswith(serves) == (who == "active")
    ]
    return seed.choice(fitting) if fitting else None


async def _reach(engine: Engine, operation: dict[str, Any], phase: str) -> dict[str, Any]:
    """Poll until the operation is in a phase, or past it."""
    while operation["phase"] != phase and not operation["finished"]:
        operation = await engine.get(f"/scale/operations/{operation['id']}")
    return operation


def _leaks(engine: Engine, status: dict[str, Any]) -> list[str]:
    """What is there and should not be, once nothing runs."""
    found = []
    sizes = [status["dataParallel"], *status["standbys"]]
    ranks = [name for name in status["processes"] if name.startswith("rank-")]
    strays = set(engine.children()) - set(status["processes"].values()) - {engine.process.pid}
    if strays:
        found.append(f"processes {sorted(strays)} that the supervisor does not know")
    if len(ranks) != sum(sizes):
        found.append(f"{len(ranks)} rank processes for instances of {sizes}")
    memory = status["memory"]
    if len(memory["holders"]) != status["dataParallel"] + sum(status["armed"]):
        found.append(f"holders {sorted(memory['holders'])}")
    if len(memory["configs"]) != 1 + len(status["armed"]):
        found.append(f"configurations {sorted(memory['configs'])}")
    pages = sum(size for name, size in memory["pools"].items() if name.startswith("weights/"))
    if pages != memory["weightBytes"]:
        found.append(f"{pages} bytes of pages for {memory['weightBytes']} bytes of weights")
    sockets = list(Path(engine.run_dir / "run").glob("rank-*.sock"))
    if len(sockets) != len(ranks):
        found.append(f"{len(sockets)} sockets of {len(ranks)} ranks")
    return found


async def _settled(engine: Engine, ask: tuple[int, ...], armed: bool, gone: int | None = None) -> dict[str, Any]:
    """Wait until it serves without the process that is gone, nothing changes it, and its standbys are back (and
    armed, where they are to be).
    """

    def settled(status: dict[str, Any]) -> bool:
        return (
            bool(status.get("ready"))
            and not status["operation"]
            and status["dataParallel"] in ask
            and len(status["standbys"]) == 1
            and status["armed"] == (status["standbys"] if armed else [])
            and len(status["memory"]["holders"]) == status["dataParallel"] + sum(status["armed"])
            and not any(h["borrowed"] for h in status["memory"]["holders"].values() if h["config"] == status["config"])
            and (gone is None or gone not in status["processes"].values())
        )

    return await engine.until(settled)


async def run(folder: Path, session: aiohttp.ClientSession, *, rounds: int = 2, seed: int = 1) -> dict[str, Any]:
    """Kill each part in each phase ``rounds`` times under load; returns what happened. Every second round has armed
    standbys, which leave nothing to do in the phases before the switch; every third a memory per rank, where pages
    are copied after it.
    """
    make_checkpoint(folder, vocab=4096, layers=4, dtype="float64")
    rng = random.Random(seed)
    kills: list[dict[str, Any]] = []
    engines = [await _round(folder, session, turn, rng, kills) for turn in range(rounds)]
    return {"seed": seed, **_summary(kills), "engines": engines}


async def _round(
    folder: Path, session: aiohttp.ClientSession, turn: int, rng: random.Random, kills: list[dict[str, Any]]
) -> dict[str, Any]:
    """Each part in each phase on one engine."""
    armed, shared = turn % 2 == 1, turn % 3 != 2
    prompts = [[rng.randrange(300, 4096) for _ in range(n)] for n in (5, 17, 40, 64)]
    engine = Engine(
        folder, session, data_parallel=1, max_data_parallel=2, standbys=1, dtype="float64", blocks_per_rank=128,
        block_tokens=8, phase_delay_s=_STRETCH_S, arm_standbys=armed, standby_delay_s=0.0, shared_domain=shared,
    )  # fmt: skip
    try:
        await _settled(engine, (1,), armed)
        expected = [(await engine.stream(prompts, i, _TOKENS)).text for i in range(len(prompts))]
        base = engine.memory_bytes()
        for who in VICTIMS:
            for phase in PHASES:
                kill = await _kill(engine, who, phase, rng, armed=armed, prompts=prompts, expected=expected)
                kills.append({"round": turn, "armed": armed, "shared": shared, **kill})
                print(f"  kill {len(kills):3d} {who:<12} {phase:<10} {kill['verdict']}", flush=True)
        await engine.scale(1)
        await _settled(engine, (1,), armed)
        after = engine.memory_bytes()
    finally:
        log = (engine.run_dir / "log").read_text()[-4000:]
        await engine.stop()
    left = [pid for pid in engine.children() if pid != engine.process.pid]
    bad = any(kill["verdict"] != "good" for kill in kills if kill["round"] == turn)
    return {
        "armed": armed,
        "shared": shared,
        "memory_before_bytes": base,
        "memory_after_bytes": after,
        "processes_left": left,
        "log_tail": log if bad else "",
    }


async def _kill(
    engine: Engine, who: str, phase: str, rng: random.Random, *, armed: bool, prompts: list[list[int]],
    expected: list[str],
) -> dict[str, Any]:  # fmt: skip
    status = await _settled(engine, (1, 2), armed)
    old = status["dataParallel"]
    new = 2 if old == 1 else 1
    with Load(engine, prompts, _TOKENS, rate_rps=4.0) as load:
        await asyncio.sleep(0.2)
        operation: dict[str, Any] = {}
        if phase != "idle":
            _, operation = await engine.post("/scale", {"dataParallel": new})
            operation = await _reach(engine, operation, phase)
            status = await engine.get("/scale")
        pid = _victim(who, status, rng)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        status = await _settled(engine, (old, new), armed, pid)
        settled_s = time.monotonic() - killed
        await load.finish()
    broken = [a for a in load.answers if a.error]
    different = [a for a in load.answers if not a.error and a.text != expected[a.prompt]]
    probe = await engine.stream(prompts, 0, _TOKENS)
    # Processes and pages go a moment after what used them: what is still there after a while is a leak.
    end = time.monotonic() + 30
    leaks = _leaks(engine, await _settled(engine, (old, new), armed, pid))
    while leaks and time.monotonic() < end:
        leaks = _leaks(engine, await _settled(engine, (old, new), armed, pid))
    served = not probe.error and probe.text == expected[0]
    # Connections end with the process that holds them: only a killed coordinator may break streams.
    allowed = who == "coordinator"
    good = served and not different and not leaks and (allowed or not broken)
    return {
        "victim": who,
        "phase": phase,
        "killed": pid is not None,
        "from": old,
        "to": new if phase != "idle" else old,
        "after": status["dataParallel"],
        "settled_s": round(settled_s, 3),
        "requests": len(load.answers),
        "broken": len(broken),
        "different": len(different),
        "leaks": leaks,
        "disk_bytes_read_after": status["memory"]["diskBytesRead"] if who == "hmm" else None,
        "verdict": "good" if good else f"BAD served={served} broken={len(broken)} different={len(different)} {leaks}",
    }


def _summary(kills: list[dict[str, Any]]) -> dict[str, Any]:
    done = [kill for kill in kills if kill["killed"]]
    spared = [kill for kill in done if kill["victim"] != "coordinator"]
    return {
        "kills": len(done),
        "good": sum(kill["verdict"] == "good" for kill in done),
        "served_by_old": sum(kill["after"] == kill["from"] for kill in done),
        "served_by_new": sum(kill["after"] != kill["from"] for kill in done),
        "requests": sum(kill["requests"] for kill in done),
        "broken_other_than_coordinator": sum(kill["broken"] for kill in spared),
        "broken_with_coordinator": sum(kill["broken"] for kill in done if kill["victim"] == "coordinator"),
        "different": sum(kill["different"] for kill in done),
        "leaks": [leak for kill in done for leak in kill["leaks"]],
        "hmm_restarts_that_read_the_disk": sum(bool(k["disk_bytes_read_after"]) for k in done if k["victim"] == "hmm"),
        "settled_s": {
            who: round(percentile([k["settled_s"] for k in done if k["victim"] == who], 0.5), 3) for who in VICTIMS
        },
        "bad": [kill for kill in done if kill["verdict"] != "good"],
    }
