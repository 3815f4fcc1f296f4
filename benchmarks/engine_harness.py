"""What the engine's benchmarks share: starting engines, open-loop load, and reading memory and processes from the
outside.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp

from engine_ports import free_port

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "engine"))

from medley_engine import random_checkpoint  # noqa: E402 - the path is set above

_FIRST_PORT = 18700

# 2.2 GB in float32: many small experts, as current models have, few enough active that two cores can serve it.
LARGE: dict[str, Any] = {
    "layers": 6, "hidden": 1024, "heads": 16, "kv_heads": 4, "head_dim": 64, "experts": 108, "experts_per_token": 2,
    "expert_width": 256, "vocab": 8192, "context": 2048, "dtype": "float32",
}  # fmt: skip


# Twice the experts, and as much computed for a token.
LARGER: dict[str, Any] = {**LARGE, "experts": 216}


def make_checkpoint(folder: Path, **sizes: Any) -> int:
    """Write a random Qwen3-MoE checkpoint unless it is there; returns its bytes."""
    if not (folder / "tokenizer_config.json").exists():
        random_checkpoint.write(folder, random_checkpoint.model_config("qwen3_moe", **sizes))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def percentile(values: Iterable[float], share: float) -> float:
    """Nearest-rank percentile; not a number where there is nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


@dataclass
class Answer:
    """One request as its client saw it; times are of ``time.monotonic``."""

    prompt: int
    sent_s: float
    tokens_s: list[float] = field(default_factory=list)
    text: str = ""
    error: str = ""
    ended: bool = False

    @property
    def ttft_s(self) -> float:
        return self.tokens_s[0] - self.sent_s if self.tokens_s else float("nan")


class Engine:
    """A served checkpoint and a client for it."""

    def __init__(self, folder: Path, session: aiohttp.ClientSession, **settings: Any) -> None:
        self.folder, self.session = folder, session
        self.run_dir = Path(tempfile.mkdtemp(prefix="medley-bench-"))
        self.port = free_port(_FIRST_PORT)
        self.url = f"http://127.0.0.1:{self.port}"
        arguments = [sys.executable, "-m", "medley_engine", "serve", str(folder)]
        for name, value in {"run_dir": self.run_dir / "run", "port": self.port, **settings}.items():
            flag = name.replace("_", "-")
            arguments += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
        self.log = (self.run_dir / "log").open("wb")
        self.started_s = time.monotonic()
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "engine")}
        self.process = subprocess.Popen(arguments, env=environment, stdout=self.log, stderr=subprocess.STDOUT)

    async def get(self, path: str) -> Any:
        async with self.session.get(self.url + path) as response:
            return await response.json()

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=body) as response:
            return response.status, await response.json()

    async def until(self, condition: Callable[[dict[str, Any]], bool], deadline_s: float = 240.0) -> dict[str, Any]:
        end = time.monotonic() + deadline_s
        status: dict[str, Any] = {}
        while time.monotonic() < end:
            try:
                status = await self.get("/scale")
                if condition(status):
                    return status
            except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
                status = {"error": repr(error)}
            await asyncio.sleep(0.05)
        raise TimeoutError(f"{status}\n{(self.run_dir / 'log').read_text()[-2000:]}")

    async def ready(self, *standbys: int, armed: bool = False) -> dict[str, Any]:
        """Wait until it serves, runs no operation and has these standbys (armed, if so)."""
        have = "armed" if armed else "standbys"
        return await self.until(lambda s: bool(s.get("ready")) and not s["operation"] and set(standbys) <= set(s[have]))

    async def stream(
        self, prompts: list[list[int]], index: int, count: int, into: list[Answer] | None = None
    ) -> Answer:
        """One streamed completion, put into a list as it begins; anything but a whole stream is an error."""
        answer = Answer(index, time.monotonic())
        if into is not None:
            into.append(answer)
        body = {
            "model": self.folder.name,
            "prompt": prompts[index],
            "max_tokens": count,
            "temperature": 0,
            "stream": True,
        }
        try:
            async with self.session.post(f"{self.url}/v1/completions", json=body) as response:
                if response.status != 200:
                    answer.error = f"status {response.status}"
                    return answer
                async for line in response.content:
                    text = line.decode().strip()
                    if text == "data: [DONE]":
                        answer.ended = True
                    elif text:
                        answer.tokens_s.append(time.monotonic())
                        answer.text += json.loads(text.removeprefix("data: "))["choices"][0]["text"]
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            answer.error = repr(error)
            return answer
        if not answer.ended:
            answer.error = "the stream broke"
        return answer

    async def scale(self, size: int, deadline_s: float = 240.0, **wish: Any) -> dict[str, Any]:
        """Ask for a size and wait for the end of the operation."""
        status, operation = await self.post("/scale", {"dataParallel": size, **wish})
        if status != 202:
            raise RuntimeError(f"scale: {status} {operation}")
        end = time.monotonic() + deadline_s
        while not operation["finished"] and time.monotonic() < end:
            await asyncio.sleep(0.05)
            operation = await self.get(f"/scale/operations/{operation['id']}")
        return dict(operation)

    def children(self) -> dict[int, str]:
        """Processes of this engine by id, with their command lines."""
        found = {self.process.pid: "supervisor"}
        try:
            listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        except OSError:
            return found
        for pid in map(int, listed):
            try:
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
        return found

    def memory_bytes(self) -> dict[str, int]:
        """Private memory of all processes, and what their pools hold (each pool once)."""
        private, pools = 0, {}
        for pid in self.children():
            try:
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("RssAnon"):
                        private += int(line.split()[1]) * 1024
                for fd in Path(f"/proc/{pid}/fd").iterdir():
                    if "memfd:medley" in str(fd.readlink()):
                        stat = fd.stat()
                        pools[stat.st_ino] = stat.st_blocks * 512
            except OSError:
                continue
        return {"private": private, "pools": sum(pools.values()), "total": private + sum(pools.values())}

    async def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self.process.wait, 30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.run_dir, ignore_errors=True)


class Load:
    """Open-loop streams: a request is sent at its time whatever became of the others."""

    def __init__(self, engine: Engine, prompts: list[list[int]], count: int, rate_rps: float) -> None:
        self._engine, self._prompts, self._count, self._gap_s = engine, prompts, count, 1 / rate_rps
        self.answers: list[Answer] = []
        self._open: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Load:
        self._task = asyncio.create_task(self._send())
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _send(self) -> None:
        number, at = 0, time.monotonic()
        while True:
            task = asyncio.create_task(self._one(number % len(self._prompts)))
            self._open.add(task)
            task.add_done_callback(self._open.discard)
            number, at = number + 1, at + self._gap_s
            await asyncio.sleep(max(0.0, at - time.monotonic()))

    async def _one(self, index: int) -> None:
        await self._engine.stream(self._prompts, index, self._count, self.answers)

    async def finish(self) -> None:
        """Send nothing more and wait for what is open."""
        if self._task is not None:
            self._task.cancel()
        if self._open:
            await asyncio.wait(set(self._open))

    async def a_stream_has_begun(self) -> None:
        """Return as some client gets its first token, and is to get more."""
        begun = {id(answer) for answer in self.answers if answer.tokens_s}
        while not any(a.tokens_s and not a.ended and id(a) not in begun for a in self.answers[-50:]):
            await asyncio.sleep(0.001)

    def tokens(self, start_s: float, end_s: float) -> int:
        """Tokens that clients got in a window."""
        return sum(start_s < at <= end_s for a in self.answers for at in a.tokens_s)

    def ttfts_s(self, start_s: float, end_s: float) -> list[float]:
        """Times to first token of requests sent in a window."""
        return [a.ttft_s for a in self.answers if start_s <= a.sent_s < end_s and a.tokens_s]

    def longest_pause_s(self, start_s: float, end_s: float) -> float:
        """Longest time between two tokens of one stream, the second of them in a window."""
        pauses = (b - a for one in self.answers for a, b in pairwise(one.tokens_s) if start_s < b <= end_s)
        return max(pauses, default=0.0)


class MemoryWatch:
    """Samples an engine's memory while open, (when, what). It costs processor time: where a window is compared with
    another, both must be watched.
    """

    def __init__(self, engine: Engine, interval_s: float = 0.1) -> None:
        self._engine, self._interval_s = engine, interval_s
        self.samples: list[tuple[float, dict[str, int]]] = []

    async def __aenter__(self) -> MemoryWatch:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            self.samples.append((time.monotonic(), await asyncio.to_thread(self._engine.memory_bytes)))
            await asyncio.sleep(self._interval_s)

    def peak_bytes(self, what: str, start_s: float, end_s: float) -> int:
        """Most that was taken in a window."""
        return max(sample[what] for at, sample in self.samples if start_s <= at <= end_s)
