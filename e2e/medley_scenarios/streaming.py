"""Streams through a Service while replicas move: every stream is read to its end and judged.

The load is open: streams start at a fixed rate, whatever became of earlier ones, each on a connection of its own, as
clients of a load balancer behave. It is bounded in number and stops by itself.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType

import aiohttp


@dataclass(frozen=True)
class StreamLoad:
    """What to send: `concurrent` streams at any time, each of `tokens` tokens that take `stream_s` seconds."""

    url: str
    model: str
    concurrent: int
    tokens: int
    stream_s: float
    longest_s: float = 300.0

    @property
    def rate_per_s(self) -> float:
        """Streams started per second, by Little's law."""
        return self.concurrent / self.stream_s


@dataclass
class StreamReport:
    """What became of the streams.

    `failed` got an error before the first token, `broken` ended before the last one; `errors` counts their messages.
    """

    started: int = 0
    finished: int = 0
    failed: int = 0
    broken: int = 0
    most_at_once: int = 0
    errors: Counter[str] = field(default_factory=Counter)


class BackgroundStreams:
    """Runs a load in a thread of its own from entering to leaving; leaving waits for every open stream."""

    def __init__(self, load: StreamLoad) -> None:
        self.load = load
        self.report = StreamReport()
        self._over = threading.Event()
        self._open = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> BackgroundStreams:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=self.load.stream_s * 4 + 30)
        if self._thread.is_alive() and kind is None:
            raise TimeoutError("streams did not end")

    @property
    def open_streams(self) -> int:
        """Streams that are being read now."""
        return self._open

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=self.load.stream_s + 20)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        ends_s = time.monotonic() + self.load.longest_s
        tasks: set[asyncio.Task[None]] = set()
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=False) as session:
            next_s = time.monotonic()
            while not self._over.is_set() and time.monotonic() < ends_s:
                task = asyncio.create_task(self._stream(session))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                next_s += 1.0 / self.load.rate_per_s
                await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            if tasks:
                await asyncio.wait(tasks)

    async def _stream(self, session: aiohttp.ClientSession) -> None:
        report = self.report
        report.started += 1
        self._open += 1
        report.most_at_once = max(report.most_at_once, self._open)
        tokens, done = 0, False
        body = {
            "model": self.load.model,
            "prompt": "Which GPU is the cheapest?",
            "max_tokens": self.load.tokens,
            "ignore_eos": True,
            "stream": True,
        }
        try:
            async with session.post(f"{self.load.url}/v1/completions", json=body) as response:
                if response.status != 200:
                    raise aiohttp.ClientError(f"status {response.status}: {(await response.text())[:120]}")
                async for raw in response.content:
                    line = raw.decode().strip()
                    if line == "data: [DONE]":
                        done = True
                    elif line.startswith("data: "):
                        choices = json.loads(line.removeprefix("data: ")).get("choices") or []
                        tokens += bool(choices and choices[0].get("text"))
            if not done:
                raise aiohttp.ClientError(f"ended without [DONE] after {tokens} tokens")
            report.finished += 1
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            report.errors[f"{type(error).__name__}: {error}"] += 1
            if tokens:
                report.broken += 1
            else:
                report.failed += 1
        finally:
            self._open -= 1
