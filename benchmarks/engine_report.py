"""What the figures of the engine's benchmark say: rows with goals, and the tables of docs/engine/benchmarks.md.

Pure: it reads the parts of `benchmarks/results/engine.json` as they were measured and computes nothing but ratios.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from medley_bench.report import Row

PAGE = Path(__file__).resolve().parents[1] / "docs" / "engine" / "benchmarks.md"
MODES = (
    ("scale", "one memory"),
    ("scale_separate_memories", "a memory per rank"),
    ("scale_larger", "one memory, twice the experts"),
)
GOALS = {"up": 0.036, "down": 0.021, "throughput": 0.9, "ttft": 1.5, "memory": 1.02}

Parts = Mapping[str, Any]


def _at_most(value: float, goal: float) -> dict[str, Any]:
    return {"goal": f"≤ {goal:g}", "met": bool(value <= goal)}


def _at_least(value: float, goal: float) -> dict[str, Any]:
    return {"goal": f"≥ {goal:g}", "met": bool(value >= goal)}


def _share_goal(name: str) -> float:
    old, _, new = name.partition("→")
    return GOALS["up" if int(new) > int(old) else "down"]


def rows(parts: Parts) -> tuple[Row, ...]:
    """Every figure that has a goal, and those that explain one."""
    found: list[Row] = []
    for part, mode in MODES:
        if part in parts:
            found += _scale_rows(parts[part], mode)
    for name, row in parts.get("ablation", {}).get("rows", {}).items():
        for direction in ("up", "down"):
            found.append(Row(f"ablation, {name}: first token, {direction}", _seconds(row, direction), "s"))
    if "kills" in parts:
        found += _kill_rows(parts["kills"])
    for other in ("transformers", "llama.cpp"):
        for name, ratios in parts.get("compare", {}).get(f"ratios_to_{other}", {}).items():
            found += [Row(f"{name} over {other}: {what}", value, "×") for what, value in ratios.items()]
    if "clients" in parts:
        found += _client_rows(parts["clients"])
    return tuple(found)


def _seconds(row: Mapping[str, Any], direction: str) -> float | str:
    value = row[direction]["first_token_s"]
    return "none" if value is None else float(value)


def _scale_rows(part: Mapping[str, Any], mode: str) -> Iterable[Row]:
    for name, step in part["steps"].items():
        where = f"{mode}, DP{name}"
        share = step.get("share_of_cold_start", math.inf)
        yield Row(f"{where}: first token, share of a cold start", share, "×", **_at_most(share, _share_goal(name)))
        ratio = step["throughput_ratio"]
        yield Row(f"{where}: throughput in the window", ratio, "×", **_at_least(ratio, GOALS["throughput"]))
        yield Row(f"{where}: throughput where nothing happens", step["throughput_ratio_of_control"], "×")
        ratio = step["ttft_p99_ratio"]
        yield Row(f"{where}: TTFT p99 in the window", ratio, "×", **_at_most(ratio, GOALS["ttft"]))
        yield Row(f"{where}: TTFT p99 where nothing happens", step["ttft_p99_ratio_of_control"], "×")
        ratio = step["peak_ratio"]
        yield Row(f"{where}: peak memory of the node", ratio, "×", **_at_most(ratio, GOALS["memory"]))
    for what, count in (("broken", len(part["errors"])), ("with other tokens", part["different_answers"])):
        yield Row(f"{mode}: requests {what}, of {part['requests']}", count, "", **_at_most(count, 0))


def _kill_rows(kills: Mapping[str, Any]) -> Iterable[Row]:
    yield Row("kills", kills["kills"], "", **_at_least(kills["kills"], 50))
    yield Row("kills after which all was good", kills["good"], "", **_at_least(kills["good"], kills["kills"]))
    for what, count in (
        ("requests with other tokens", kills["different"]),
        ("requests broken, but for a killed coordinator's", kills["broken_other_than_coordinator"]),
        ("leaks", len(kills["leaks"])),
        ("restarts of the HMM that read the disk", kills["hmm_restarts_that_read_the_disk"]),
    ):
        yield Row(f"kills: {what}", count, "", **_at_most(count, 0))


def _client_rows(part: Mapping[str, Any]) -> Iterable[Row]:
    wrong = len(part["malformed_answered_wrongly"])
    yield Row(f"malformed bodies answered wrongly, of {part['malformed_bodies']}", wrong, "", **_at_most(wrong, 0))
    growth = part["memory_growth_ratio"]
    clients = sum(part["abused"].values())
    yield Row(f"memory after {clients} hostile clients", growth, "×", **_at_most(growth, 1.02))
    full = part["full_queue"]
    yield Row("full queue: neither served nor 429", full["other"], "", **_at_most(full["other"], 0))


# --- tables ------------------------------------------------------------------------------------------------------


def _table(head: Iterable[str], body: Iterable[Iterable[str]]) -> list[str]:
    names = list(head)
    lines = [names, ["---"] * len(names), *map(list, body)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _judged(text: str, met: bool) -> str:
    return text if met else f"{text} **missed**"


def _scale_table(part: Mapping[str, Any]) -> list[str]:
    def line(name: str, s: Mapping[str, Any]) -> list[str]:
        first, share, goal = s["first_token_s"], s.get("share_of_cold_start", math.inf), _share_goal(name)
        by_cycle = s["throughput_ratio_by_cycle"]
        return [
            name,
            f"{first['median']:.3f} ({first['worst']:.3f})" if first else "none",
            f"{s['cold_start_s']:.2f}",
            _judged(f"{share:.4f} (≤ {goal})", share <= goal),
            _judged(f"{s['throughput_ratio']:.2f}×", s["throughput_ratio"] >= GOALS["throughput"]),
            f"{min(by_cycle):.2f}–{max(by_cycle):.2f}×; {s['throughput_ratio_of_control']:.2f}×",
            _judged(f"{s['ttft_p99_ratio']:.2f}×", s["ttft_p99_ratio"] <= GOALS["ttft"]),
            f"{s['ttft_p99_ratio_of_control']:.2f}×",
            f"{1000 * s['longest_pause_s']['before']:.0f} → {1000 * s['longest_pause_s']['inside']:.0f}",
            _judged(f"{s['peak_ratio']:.3f}×", s["peak_ratio"] <= GOALS["memory"]),
            f"{s['requests']['before']}, {s['requests']['inside']}",
        ]

    head = (
        "step", "first token s: median (worst)", "cold s", "share (goal)", "throughput", "by cycle; control",
        "TTFT p99", "control", "longest pause ms", "peak memory", "requests before, inside",
    )  # fmt: skip
    capacity = ", ".join(f"DP{size} {float(rps):.2f}" for size, rps in part["capacity_rps"].items())
    lengths = part["prompt_tokens"]
    size = f"Checkpoint: {part['checkpoint_bytes'] / 1e9:.2f} GB. " if "checkpoint_bytes" in part else ""
    return [
        f"{size}Capacity in requests/s: {capacity}. Offered: {part['rate_rps']:.2f} requests/s of {lengths[0]} to "
        f"{lengths[-1]} prompt tokens and {part['tokens_each']} more. {part['requests']} requests: "
        f"{len(part['errors'])} broken, {part['different_answers']} with a different token.",
        "",
        *_table(head, (line(*step) for step in part["steps"].items())),
    ]


def _phase_table(part: Mapping[str, Any]) -> list[str]:
    phases = [name for name in next(iter(part["steps"].values()))["each"][0]["phases_s"] if name != "succeeded"]

    def line(name: str, s: Mapping[str, Any]) -> list[str]:
        each = [turn["phases_s"] for turn in s["each"]]
        middle = [sorted(turn.get(phase, 0.0) for turn in each)[len(each) // 2] for phase in phases]
        whole = sum(middle) or 1.0
        return [name, *(f"{1000 * value:.0f} ({100 * value / whole:.0f} %)" for value in middle)]

    return _table(["step", *phases], (line(*step) for step in part["steps"].items()))


def _ablation_table(part: Mapping[str, Any]) -> list[str]:
    def cell(value: Any) -> str:
        return "none" if value is None else f"{value:.2f}"

    def line(name: str, row: Mapping[str, Any]) -> list[str]:
        up, down = row["up"], row["down"]
        times = [cell(d[key]) for d in (up, down) for key in ("first_token_s", "whole_operation_s")]
        return [name, *times, f"{up['peak_bytes'] / 2**20:.0f}", str(up["broken"] + down["broken"])]

    head = ("", "up: first token s", "up: whole s", "down: first token s", "down: whole s", "peak MiB", "broken")
    return _table(head, (line(*row) for row in part["rows"].items()))


def _kill_table(kills: Mapping[str, Any]) -> list[str]:
    settled = ", ".join(f"{who} {seconds:.1f} s" for who, seconds in kills["settled_s"].items())
    totals = [
        " and ".join(f"{engine[key]['total'] / 1e6:.0f}" for key in ("memory_before_bytes", "memory_after_bytes"))
        for engine in kills["engines"]
    ]
    broken = f"{kills['broken_other_than_coordinator']} broken and {kills['different']} different"
    return _table(
        ("", ""),
        (
            ("kills", f"{kills['kills']}, {kills['good']} good: served afterwards by the old "
             f"({kills['served_by_old']}) or the new configuration ({kills['served_by_new']})"),
            ("requests in flight", f"{kills['requests']}: {broken}, but for {kills['broken_with_coordinator']} "
             "connections that ended with the coordinator that held them"),
            ("left behind", "; ".join(kills["leaks"]) or "no process, socket file, configuration, page or holder"),
            ("restarts of the HMM that read the disk", str(kills["hmm_restarts_that_read_the_disk"])),
            ("median time until everything is back, standbys included", settled),
            ("MB before and after all of them", "; ".join(totals)),
        ),
    )  # fmt: skip


def _compare_table(part: Mapping[str, Any]) -> list[str]:
    theirs = part.get("transformers", {})

    def line(name: str, one: Mapping[str, Any]) -> list[str]:
        ratio = part.get("ratios_to_transformers", {}).get(name)
        shown = ("one_stream_tokens_per_s", "ttft", "tpot", "eight_streams_tokens_per_s")
        times = [f" ({ratio[key]:.2f}×)" for key in shown] if ratio else [""] * len(shown)
        values = (
            f"{one['one']['tokens_per_s']:.1f}", f"{1000 * one['one']['ttft_s']:.0f} ms",
            f"{1000 * one['one']['tpot_s']:.1f} ms", f"{one['many']['tokens_per_s']:.1f}",
        )  # fmt: skip
        return [name, *(value + ratio_text for value, ratio_text in zip(values, times, strict=True))]

    measured = {name: one for name, one in part.items() if isinstance(one, dict) and "one" in one}
    order = sorted(measured, key=lambda name: (measured[name] is not theirs, name))
    head = ("", "one stream tokens/s", "TTFT", "TPOT", "eight streams tokens/s")
    return _table(head, (line(name, measured[name]) for name in order))


def _client_table(part: Mapping[str, Any]) -> list[str]:
    full, clients = part["full_queue"], sum(part["abused"].values())
    return [
        f"{part['malformed_bodies']} kinds of malformed bodies, {len(part['malformed_answered_wrongly'])} answered "
        f"wrongly. {clients} clients that send half a request, leave in mid-stream or do not read: memory "
        f"{part['memory_growth_ratio']:.3f}× afterwards. 300 requests at once into an engine that holds 24: "
        f"{full['served']} served, {full['refused_429']} refused with 429 and `Retry-After` (99 % within "
        f"{full['refusal_p99_s']:.2f} s), {full['other']} otherwise.",
    ]


TABLES: tuple[tuple[str, str, Callable[[Mapping[str, Any]], list[str]]], ...] = (
    ("scale", "scale", _scale_table),
    ("scale-phases", "scale", _phase_table),
    ("scale-separate", "scale_separate_memories", _scale_table),
    ("scale-separate-phases", "scale_separate_memories", _phase_table),
    ("scale-larger", "scale_larger", _scale_table),
    ("ablation", "ablation", _ablation_table),
    ("kills", "kills", _kill_table),
    ("compare", "compare", _compare_table),
    ("clients", "clients", _client_table),
)
"""Name in the page, part of the results, and how it is written."""


def tables(parts: Parts) -> dict[str, str]:
    """Every table by name, each with what it was measured on."""
    made = {}
    for name, part, write in TABLES:
        if part not in parts:
            made[name] = "Not measured yet."
            continue
        figures = parts[part]
        load, took = figures["load_average"][0], figures["seconds"]
        on = f"*{figures['machine']}; load average {load:.1f} at the end, {took:.0f} s.*"
        made[name] = "\n".join([*write(figures), "", on])
    return made


def fill(page: str, made: Mapping[str, str]) -> str:
    """The page with each table between its markers, ``<!-- table NAME -->`` and ``<!-- end -->``.

    Raises:
        ValueError: the page has no place for a table.
    """
    for name, text in made.items():
        pattern = re.compile(rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(page):
            raise ValueError(f"no markers for table {name}")
        page = pattern.sub(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page)  # type: ignore[misc]
    return page
