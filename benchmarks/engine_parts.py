"""Parts of the engine's benchmark: the same weights in `transformers`, and clients that do everything wrong."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

import engine_llama
from engine_harness import Engine, make_checkpoint, percentile

_TRANSFORMERS = """
import json, sys, time, torch, transformers
torch.set_num_threads(int(sys.argv[4]))
folder, prompts, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
def generate(batch):
    longest = max(map(len, batch))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in batch])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch])
    times = []
    class Watch(transformers.generation.streamers.BaseStreamer):
        def put(self, value): times.append(time.monotonic())
        def end(self): pass
    start = time.monotonic()
    streamer = Watch() if len(batch) == 1 else None
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False,
                             pad_token_id=0, eos_token_id=None, streamer=streamer)
    end = time.monotonic()
    return start, times, end, out[:, longest:].tolist()
generate(prompts[:1])
start, times, end, tokens = generate(prompts[:1])
one = {"ttft_s": times[1] - start, "tpot_s": (times[-1] - times[1]) / (len(times) - 2)}
one["tokens_per_s"] = count / (end - start)
start, _, end, _ = generate(prompts)
many = {"tokens_per_s": count * len(prompts) / (end - start), "batch": len(prompts)}
print("RESULT" + json.dumps({"one": one, "many": many, "tokens": tokens[0]}))
"""


def _transformers(folder: Path, prompts: list[list[int]], count: int, threads: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _TRANSFORMERS, str(folder), json.dumps(prompts), str(count), str(threads)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith("RESULT"):
            return dict(json.loads(line.removeprefix("RESULT")))
    return {"error": done.stderr[-500:]}


async def _ours(engine: Engine, prompts: list[list[int]], count: int) -> dict[str, Any]:
    await engine.stream(prompts, 0, count)
    single = await engine.stream(prompts, 0, count)
    gaps = [b - a for a, b in zip(single.tokens_s, single.tokens_s[1:], strict=False)]
    start = time.monotonic()
    answers = await asyncio.gather(*(engine.stream(prompts, i, count) for i in range(len(prompts))))
    took = time.monotonic() - start
    return {
        "one": {
            "ttft_s": single.ttft_s,
            "tpot_s": sum(gaps) / len(gaps),
            "tokens_per_s": count / (single.tokens_s[-1] - single.sent_s),
        },
        "many": {"tokens_per_s": count * len(answers) / took, "batch": len(answers)},
        "errors": [a.error for a in answers if a.error],
    }


async def compare(folder: Path, session: aiohttp.ClientSession, prompts: list[list[int]], count: int) -> dict[str, Any]:
    """Tokens per second, TTFT and TPOT: one stream, and eight at once; two threads each."""
    results: dict[str, Any] = {}
    for name, changes in (
        ("medley, batch-invariant", {"batch_invariant": True, "threads": 2}),
        ("medley, fast", {"batch_invariant": False, "threads": 2}),
        ("medley DP2, batch-invariant", {"batch_invariant": True, "threads": 1, "data_parallel": 2}),
    ):
        engine = Engine(folder, session, keep_standbys=False, blocks_per_rank=256, **{"data_parallel": 1, **changes})
        try:
            await engine.ready()
            results[name] = await _ours(engine, prompts, count)
        finally:
            await engine.stop()
    results["transformers"] = await asyncio.to_thread(_transformers, folder, prompts, count, 2)
    results["llama.cpp"] = await asyncio.to_thread(engine_llama.measure, folder, prompts, count, 2)
    for other in ("transformers", "llama.cpp"):
        theirs = results[other]
        if "one" in theirs:
            ratios = {name: _ratios(ours, theirs) for name, ours in results.items() if name.startswith("medley")}
            results[f"ratios_to_{other}"] = ratios
            theirs["same_tokens_as_transformers"] = theirs["tokens"] == results["transformers"].get("tokens")
            print(f"  against {other}: {json.dumps(ratios)}", flush=True)
        else:
            print(f"  {other} was not measured: {theirs['error']}", flush=True)
    return results


def _ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    return {
        "one_stream_tokens_per_s": ours["one"]["tokens_per_s"] / theirs["one"]["tokens_per_s"],
        "eight_streams_tokens_per_s": ours["many"]["tokens_per_s"] / theirs["many"]["tokens_per_s"],
        "ttft": ours["one"]["ttft_s"] / theirs["one"]["ttft_s"],
        "tpot": ours["one"]["tpot_s"] / theirs["one"]["tpot_s"],
    }


MALFORMED: tuple[tuple[str, bytes, int], ...] = (
    ("not JSON", b"{", 400),
    ("not UTF-8", b"\xff\xfe", 400),
    ("deep nesting", b"[" * 100_000, 400),
    ("a list", b"[]", 400),
    ("no prompt", b'{"model": "M"}', 400),
    ("empty prompt", b'{"model": "M", "prompt": ""}', 400),
    ("unknown token", b'{"model": "M", "prompt": [999999999]}', 400),
    ("negative token", b'{"model": "M", "prompt": [-1]}', 400),
    ("boolean token", b'{"model": "M", "prompt": [true]}', 400),
    ("no model", b'{"prompt": "x"}', 400),
    ("other model", b'{"model": "other", "prompt": "x"}', 404),
    ("no tokens wanted", b'{"model": "M", "prompt": "x", "max_tokens": 0}', 400),
    ("too many tokens", b'{"model": "M", "prompt": "x", "max_tokens": 100000}', 400),
    ("text for a number", b'{"model": "M", "prompt": "x", "temperature": "hot"}', 400),
    ("not a number", b'{"model": "M", "prompt": "x", "temperature": NaN}', 400),
    ("infinite", b'{"model": "M", "prompt": "x", "top_p": 1e999}', 400),
    ("two answers", b'{"model": "M", "prompt": "x", "n": 2}', 400),
    ("logprobs", b'{"model": "M", "prompt": "x", "logprobs": 5}', 400),
    ("stop of numbers", b'{"model": "M", "prompt": "x", "stop": [1]}', 400),
    ("too large", b" " * (5 * 1024 * 1024), 413),
)


async def clients(folder: Path, session: aiohttp.ClientSession, number: int = 10_000) -> dict[str, Any]:
    """Malformed bodies, slow and aborted clients, and a queue that is full; memory before and after."""
    make_checkpoint(folder, vocab=4096, layers=2)
    engine = Engine(
        folder, session, data_parallel=1, keep_standbys=False, blocks_per_rank=128, max_queue=16, max_running=8,
        budget_tokens=64, read_timeout_s=5,
    )  # fmt: skip
    try:
        await engine.ready()
        name = folder.name
        wrong = await _malformed(engine, name)
        await _abuse(engine, name, 500)
        before = engine.memory_bytes()
        started = time.monotonic()
        counts = await _abuse(engine, name, number)
        abuse_s = time.monotonic() - started
        await engine.until(lambda s: s["requests"]["held"] == 0)
        after = engine.memory_bytes()
        full = await _fill_queue(engine, name)
        served = await engine.stream([[5, 6, 7]], 0, 4)
        growth = after["total"] / before["total"]
        print(f"  malformed {wrong or 'all refused'}, {counts}, memory {growth:.3f}×, full queue {full}", flush=True)
        return {
            "malformed_bodies": len(MALFORMED),
            "malformed_answered_wrongly": wrong,
            "abused": counts,
            "abuse_s": abuse_s,
            "memory_before_bytes": before,
            "memory_after_bytes": after,
            "memory_growth_ratio": growth,
            "full_queue": full,
            "serves_afterwards": not served.error,
        }
    finally:
        await engine.stop()


async def _malformed(engine: Engine, name: str) -> list[str]:
    wrong = []
    for what, body, status in MALFORMED:
        data = body.replace(b'"M"', json.dumps(name).encode())
        async with engine.session.post(f"{engine.url}/v1/completions", data=io.BytesIO(data)) as response:
            text = await response.text()
            if response.status != status or "message" not in json.loads(text).get("error", {}):
                wrong.append(f"{what}: {response.status} {text[:80]}")
    return wrong


async def _abuse(engine: Engine, name: str, number: int) -> dict[str, int]:
    """A third sends half a request and leaves, a third leaves in mid-stream, a third reads nothing for a while."""
    counts = {"half_a_request": 0, "left_in_stream": 0, "slow": 0}
    body = json.dumps({"model": name, "prompt": [5, 6, 7], "max_tokens": 64, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    gate = asyncio.Semaphore(200)

    async def one(turn: int) -> None:
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
            with contextlib.suppress(ConnectionError):
                if turn % 3 == 0:
                    writer.write((head + body)[: len(head) + turn % len(body)])
                    await writer.drain()
                    counts["half_a_request"] += 1
                else:
                    writer.write(head + body)
                    await writer.drain()
                    await reader.read(64)
                    if turn % 3 == 2:
                        await asyncio.sleep(0.2)
                    counts["left_in_stream" if turn % 3 == 1 else "slow"] += 1
            writer.transport.abort()

    await asyncio.gather(*(one(turn) for turn in range(number)))
    return counts


async def _fill_queue(engine: Engine, name: str) -> dict[str, Any]:
    """More requests at once than the engine holds: each is served whole or refused with 429 and Retry-After."""
    times: list[float] = []

    async def one() -> int:
        start = time.monotonic()
        body = {"model": name, "prompt": [5, 6, 7], "max_tokens": 16, "temperature": 0}
        async with engine.session.post(f"{engine.url}/v1/completions", json=body) as response:
            await response.read()
            if response.status == 429:
                times.append(time.monotonic() - start)
                assert response.headers["Retry-After"]
            return response.status

    statuses = await asyncio.gather(*(one() for _ in range(300)))
    return {
        "served": statuses.count(200),
        "refused_429": statuses.count(429),
        "other": len(statuses) - statuses.count(200) - statuses.count(429),
        "refusal_p99_s": percentile(times, 0.99),
    }
