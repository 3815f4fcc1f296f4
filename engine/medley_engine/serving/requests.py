"""Requests on their way: which rank computes each, and what its client has got so far.

A request belongs to the coordinator, not to an instance: the coordinator knows its prompt and every token that was
sent, so it can be moved with its KV blocks, or replayed from its tokens when its instance is lost, and its client
notices nothing but a pause.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from medley_engine.memory.wire import Frame
from medley_engine.scheduler import SamplingParams
from medley_engine.serving.instances import Instance
from medley_engine.serving.metrics import Metrics
from medley_engine.spreading import group_for


class QueueFullError(RuntimeError):
    """The engine has as many requests as it may hold."""


class ClosingError(RuntimeError):
    """The engine is shutting down."""


@dataclass
class Request:
    """One request. ``events`` carries (token ids, finish reason or None) to its client."""

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    arrived: float
    generated: list[int] = field(default_factory=list)
    events: asyncio.Queue[tuple[int | None, str | None]] = field(default_factory=asyncio.Queue)
    instance: Instance | None = None
    rank: int = -1
    dispatched: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    finished: bool = False
    replays: int = 0

    def dump(self) -> dict[str, Any]:
        """As a rank takes it: with what was generated already, to be replayed."""
        return {
            "id": self.id,
            "prompt": list(self.prompt),
            "params": {name: getattr(self.params, name) for name in SamplingParams.__slots__},
            "generated": list(self.generated),
        }


class Dispatcher:
    """Gives requests to the ranks of the active instance and tokens to clients."""

    def __init__(self, metrics: Metrics, max_queue: int, max_running: int, abreast: int) -> None:
        self._metrics, self._abreast = metrics, abreast
        self._max_queue, self._max_running = max_queue, max_running
        self.requests: dict[str, Request] = {}
        self.waiting: deque[Request] = deque()
        self.active: Instance | None = None
        self.closing = False
        self._held_back = False
        self.idle = asyncio.Event()
        self.idle.set()
        self._preemptions: dict[tuple[str, int], int] = {}
        self.awaited: dict[str, Callable[[float], None]] = {}
        self.on_finished: Any = None

    # --- clients -----------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Accept a request.

        Raises:
            QueueFullError, ClosingError: refused, nothing was kept.
        """
        if self.closing:
            raise ClosingError("the engine is shutting down")
        size = self.active.size if self.active else 1
        if len(self.requests) >= self._max_queue + size * self._max_running:
            raise QueueFullError(f"{len(self.requests)} requests are in the engine already")
        self.requests[request.id] = request
        self.idle.clear()
        self._metrics.prompt_tokens.inc(len(request.prompt))
        self._metrics.request_prompt_tokens.observe(len(request.prompt))
        self.waiting.append(request)
        self.pump()

    def cancel(self, request: Request) -> None:
        """The client is gone or has enough."""
        if request.finished:
            return
        self._end(request, "abort")
        if request in self.waiting:
            self.waiting.remove(request)
        if request.instance is not None and request.instance.state == "attached" and request.rank >= 0:
            request.instance.links[request.rank].tell("abort", ids=[request.id])

    def load(self, instance: Instance) -> dict[int, int]:
        """Requests on each leader of an instance."""
        counts = dict.fromkeys(instance.leaders, 0)
        for request in self.requests.values():
            if request.instance is instance and request.rank in counts:
                counts[request.rank] += 1
        return counts

    # --- ranks -------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Give waiting requests to the active instance, up to what ranks run at once."""
        instance = self.active
        if instance is None or instance.state != "attached" or not self.waiting or self._held_back:
            return
        counts = self.load(instance)
        given: dict[int, list[dict[str, Any]]] = {}
        now = time.monotonic()
        while self.waiting:
            room = {rank: count for rank, count in counts.items() if count < self._max_running}
            if not room:
                break
            rank = group_for(room, self._abreast)
            request = self.waiting.popleft()
            request.instance, request.rank = instance, rank
            if request.dispatched is None:
                request.dispatched = now
                self._metrics.queue_time.observe(now - request.arrived)
            counts[rank] += 1
            given.setdefault(rank, []).append(request.dump())
        for rank, sequences in sorted(given.items()):
            instance.links[rank].tell("add", sequences=sequences)
        if given:
            instance.wake()

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Requests that come meanwhile are taken in and wait."""
        self._held_back = True
        try:
            yield
        finally:
            self._held_back = False
            self.pump()

    def on_output(self, instance: Instance, rank: int, frame: Frame) -> None:
        """Tokens from a rank."""
        now = time.monotonic()
        for request_id, token, reason in frame.get("out", ()):
            request = self.requests.get(request_id)
            if request is not None and request.instance is instance and not request.finished:
                self._token(request, int(token), reason, now)
                told = self.awaited.pop(instance.id, None)
                if told is not None:
                    told(now)
        if "stats" in frame:
            self._take_stats(instance, rank, frame["stats"])
        self.pump()

    def _token(self, request: Request, token: int, reason: str | None, now: float) -> None:
        request.generated.append(token)
        self._metrics.generation_tokens.inc()
        if request.first_token is None:
            request.first_token = now
            self._metrics.ttft.observe(now - request.arrived)
        elif request.last_token is not None:
            self._metrics.inter_token.observe(now - request.last_token)
        request.last_token = now
        request.events.put_nowait((token, reason))
        if reason is not None:
            self._end(request, reason)

    def _end(self, request: Request, reason: str) -> None:
        request.finished = True
        self.requests.pop(request.id, None)
        now = time.monotonic()
        count = len(request.generated)
        self._metrics.finished(reason)
        self._metrics.request_generation_tokens.observe(count)
        self._metrics.e2e.observe(now - request.arrived)
        if count > 1 and request.first_token is not None and request.last_token is not None:
            self._metrics.per_output_token.observe((request.last_token - request.first_token) / (count - 1))
        if reason == "abort":
            request.events.put_nowait((None, "abort"))
        if self.on_finished is not None:
            self.on_finished(request)
        if not self.requests:
            self.idle.set()

    def _take_stats(self, instance: Instance, rank: int, stats: dict[str, Any]) -> None:
        instance.stats[rank] = stats
        seen = self._preemptions.get((instance.id, rank), 0)
        if stats["preemptions"] > seen:
            self._metrics.preemptions.inc(stats["preemptions"] - seen)
        self._preemptions[instance.id, rank] = stats["preemptions"]

    def refresh_gauges(self) -> None:
        """Set the gauges from what is known now."""
        instance = self.active
        stats = list(instance.stats.values()) if instance is not None else []
        on_ranks = sum(1 for r in self.requests.values() if r.instance is not None)
        queued_there = min(on_ranks, sum(s["waiting"] for s in stats))
        self._metrics.running.set(on_ranks - queued_there)
        self._metrics.waiting.set(len(self.waiting) + queued_there)
        capacity = max((s["capacity"] for s in stats), default=0)
        self._metrics.kv_usage.set(sum(s["blocks"] for s in stats) / capacity if capacity else 0.0)
        self._metrics.data_parallel.set(instance.size if instance is not None else 0)

    # --- moving ------------------------------------------------------------------------------------------------

    def replay(self, lost: Instance) -> int:
        """Queue again everything that ran on an instance that is gone; tokens sent already are replayed, not sent
        again.
        """
        hit = [r for r in self.requests.values() if r.instance is lost]
        self.requeue(hit)
        return len(hit)

    def requeue(self, requests: Iterable[Request]) -> None:
        """Put requests at the head of the queue, the oldest first."""
        for request in sorted(requests, key=lambda r: r.arrived, reverse=True):
            request.instance, request.rank = None, -1
            request.replays += 1
            self.waiting.appendleft(request)
        self.pump()

    def on_instance(self, instance: Instance) -> list[Request]:
        """Requests that an instance computes."""
        return [r for r in self.requests.values() if r.instance is instance]
