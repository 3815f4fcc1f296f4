"""The coordinator process: HTTP in front, instances behind. Replaceable: what must survive it is in the state file
and in other processes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from medley_engine.config import parse_model_config
from medley_engine.load import LoadEstimator, Objectives, Served
from medley_engine.serving.http import Api
from medley_engine.serving.instances import Instance, InstancePool
from medley_engine.serving.links import ManagerLink, SupervisorLink
from medley_engine.serving.metrics import Metrics
from medley_engine.serving.recovery import Recovery
from medley_engine.serving.requests import Dispatcher, Request
from medley_engine.serving.scaling import Scaler
from medley_engine.serving.settings import Settings
from medley_engine.serving.supervisor import TOKEN_VARIABLE
from medley_engine.serving.text import TextCodec

log = logging.getLogger("medley.engine.coordinator")


class Coordinator:
    """Wires the parts together and runs until told to stop."""

    def __init__(self, settings: Settings, token: str) -> None:
        self._settings = settings
        folder = Path(settings.model)
        self._model = parse_model_config(json.loads((folder / "config.json").read_text()))
        self._metrics = Metrics(settings.served_name)
        self._dispatcher = Dispatcher(self._metrics, settings.max_queue, settings.max_running, settings.abreast)
        self._manager = ManagerLink(settings.run_path, token)
        self._supervisor = SupervisorLink(settings.run_path, token)
        self._pool = InstancePool(settings, self._supervisor, token, self._dispatcher.on_output, self._instance_lost)
        self._scaler = Scaler(
            settings=settings,
            model=self._model,
            pool=self._pool,
            manager=self._manager,
            dispatcher=self._dispatcher,
            metrics=self._metrics,
        )
        self._recovery = Recovery(settings, self._model, self._scaler)
        objectives = Objectives(settings.ttft_objective_s, settings.tpot_objective_s, window_s=settings.load_window_s)
        self._estimator = LoadEstimator(objectives, time.monotonic())
        self._dispatcher.on_finished = self._observe
        self._scaler.on_changed = self._changed
        codec = TextCodec(folder)
        api = Api(
            settings=settings,
            model=self._model,
            codec=codec,
            dispatcher=self._dispatcher,
            scaler=self._scaler,
            metrics=self._metrics,
            status=self._status,
        )
        self._app = api.application()
        self._stop = asyncio.Event()

    def _instance_lost(self, instance: Instance) -> None:
        self._recovery.instance_lost(instance)

    def _observe(self, request: Request) -> None:
        if request.first_token is None or request.last_token is None:
            return
        count = len(request.generated)
        per_token = (request.last_token - request.first_token) / (count - 1) if count > 1 else None
        self._estimator.record(Served(time.monotonic(), request.first_token - request.arrived, per_token))

    def _changed(self) -> None:
        self._estimator.reset(time.monotonic())
        self._metrics.cache_info(
            self._settings.block_tokens, self._settings.blocks_per_rank * self._scaler.in_force.size
        )

    async def run(self, listener: socket.socket) -> None:
        """Serve until SIGTERM, then finish what runs and end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=5.0, handler_cancellation=True)
        await runner.setup()
        site = web.SockSite(runner, listener, backlog=4096)
        # Listen at once: requests that come while instances start are queued, and health tells that none serves yet.
        await site.start()
        starting = asyncio.create_task(self._start())
        watching = asyncio.create_task(self._watch_load())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await self._stop.wait()
        starting.cancel()
        watching.cancel()
        self._dispatcher.closing = True
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._dispatcher.idle.wait()
        except TimeoutError:
            log.warning("%d requests outlasted the shutdown deadline", len(self._dispatcher.requests))
        await runner.cleanup()

    async def _start(self) -> None:
        await self._recovery.start()
        self._changed()
        size = self._scaler.in_force.size
        log.warning(
            "serving %s with %d data-parallel groups on %s:%d", self._settings.served_name, size, *self._address()
        )

    def _address(self) -> tuple[str, int]:
        return self._settings.host, self._settings.port

    async def _watch_load(self) -> None:
        """Tell the estimator how full the engine is and, where wanted, follow its advice."""
        while True:
            await asyncio.sleep(1.0)
            active = self._dispatcher.active
            if active is None or not self._scaler.ready.is_set():
                continue
            now = time.monotonic()
            share = len(self._dispatcher.requests) / (active.size * self._settings.max_running)
            self._estimator.record_utilisation(now, share)
            advice = self._estimator.advise(now, active.size)
            if self._settings.auto_scale and advice != "hold" and self._scaler.current is None:
                target = active.size + (1 if advice == "grow" else -1)
                if 1 <= target <= self._settings.max_data_parallel:
                    log.warning("load advises to %s: scaling to %d", advice, target)
                    self._scaler.request(target, None, spread=False)

    async def _status(self) -> dict[str, Any]:
        scaler, now = self._scaler, time.monotonic()
        active = self._dispatcher.active
        return {
            "dataParallel": scaler.in_force.size,
            "tensorParallel": self._settings.tensor_parallel,
            "config": scaler.in_force.config,
            "generation": scaler.in_force.generation,
            "ready": active is not None,
            "operation": scaler.report(scaler.current) if scaler.current else None,
            "operations": [scaler.report(name) for name in scaler.operations],
            "active": active.id if active is not None else None,
            "armed": scaler.armoury.sizes,
            "standbys": [instance.size for instance in self._pool.standbys],
            "attainment": list(self._estimator.attainments(now)),
            "advice": self._estimator.advise(now, scaler.in_force.size),
            "requests": {"held": len(self._dispatcher.requests), "waiting": len(self._dispatcher.waiting)},
            "processes": (await self._supervisor.ask("children"))["children"],
            "memory": await self._manager.ask("describe"),
        }


def main() -> None:
    """Entry point: ``python -m medley_engine.serving.coordinator SETTINGS LISTENER``, started by the supervisor."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    settings = Settings.load(sys.argv[1])
    listener = socket.socket(fileno=int(sys.argv[2]))
    listener.setblocking(False)

    async def serve() -> None:
        await Coordinator(settings, os.environ[TOKEN_VARIABLE]).run(listener)

    asyncio.run(serve())


if __name__ == "__main__":
    main()
