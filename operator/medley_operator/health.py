"""The operator's HTTP servers: /healthz and /readyz for the kubelet, /metrics for Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from medley_operator.metrics import Metrics

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BEAT_EVERY_S = 1.0
STUCK_AFTER_S = 120.0
"""A planning round may take its solver's time limit and more;
after so long without a sign of life, something is stuck.
"""


class Pulse:
    """Signs of life of the event loop and of the parts that run in it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._beats: dict[str, float] = {}

    def beat(self, part: str) -> None:
        """A part is alive."""
        self._beats[part] = time.monotonic()

    def stuck(self) -> list[str]:
        """Parts that gave no sign of life for too long."""
        now_s = time.monotonic()
        return sorted(part for part, beat_s in self._beats.items() if now_s > beat_s + STUCK_AFTER_S)

    async def run(self) -> None:
        """Measure how late the event loop wakes up, until cancelled."""
        while True:
            due_s = time.monotonic() + BEAT_EVERY_S
            await asyncio.sleep(BEAT_EVERY_S)
            self._metrics.loop_lag_seconds.set(max(0.0, time.monotonic() - due_s))


@contextlib.asynccontextmanager
async def serve_health(port: int, pulse: Pulse, ready: Callable[[], str]) -> AsyncIterator[int]:
    """Serve /healthz and /readyz while in this context; gives the port. `ready` says what is missing, or nothing."""

    async def healthz(_: web.Request) -> web.Response:
        stuck = pulse.stuck()
        return web.Response(status=503 if stuck else 200, text=f"stuck: {', '.join(stuck)}\n" if stuck else "ok\n")

    async def readyz(_: web.Request) -> web.Response:
        missing = ready()
        return web.Response(status=503 if missing else 200, text=f"{missing or 'ok'}\n")

    async with _serve(port, {"/healthz": healthz, "/readyz": readyz}) as bound:
        yield bound


@contextlib.asynccontextmanager
async def serve_metrics(port: int, metrics: Metrics) -> AsyncIterator[int]:
    """Serve /metrics while in this context; gives the port."""

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async with _serve(port, {"/metrics": exposition}) as bound:
        yield bound


@contextlib.asynccontextmanager
async def _serve(port: int, handlers: Mapping[str, Handler]) -> AsyncIterator[int]:
    app = web.Application()
    for path, handler in handlers.items():
        app.router.add_get(path, handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, None, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
