"""The HTTP surface of scaling: Medley's own, and vLLM's."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from medley_engine import operations as ops
from medley_engine.serving.openai import BadRequestError
from medley_engine.serving.replies import read_json, refusal
from medley_engine.serving.scaling import Scaler


class ScalingApi:
    """Handlers. They read, hand to the scaler, and write. ``status`` tells what is in force."""

    def __init__(self, scaler: Scaler, status: Callable[[], Awaitable[dict[str, Any]]], read_timeout_s: float) -> None:
        self._scaler, self._status, self._read_timeout_s = scaler, status, read_timeout_s

    def add_to(self, app: web.Application) -> None:
        """Add the routes to an application."""
        app.router.add_get("/scale", self.scale_status)
        app.router.add_post("/scale", self.scale)
        app.router.add_get("/scale/operations/{id}", self.operation)
        app.router.add_post("/scale/operations/{id}/abort", self.abort)
        app.router.add_post("/scale_elastic_ep", self.scale_elastic_ep)
        app.router.add_post("/is_scaling_elastic_ep", self.is_scaling)

    async def scale_status(self, _request: web.Request) -> web.Response:
        """``GET /scale``: what is in force and what changes it."""
        return web.json_response(await self._status())

    async def scale(self, request: web.Request) -> web.Response:
        """``POST /scale`` {dataParallel, operationId?, rebalance?}: 202 with the operation; repeating it is
        harmless.
        """
        body = await read_json(request, self._read_timeout_s)
        target = body.get("dataParallel") if isinstance(body, dict) else None
        if isinstance(target, bool) or not isinstance(target, int):
            raise BadRequestError("dataParallel", "dataParallel must be an integer")
        operation_id = body.get("operationId")
        if operation_id is not None and not (isinstance(operation_id, str) and 0 < len(operation_id) <= 64):
            raise BadRequestError("operationId", "operationId must be a string of at most 64 characters")
        spread = body.get("rebalance", False)
        if not isinstance(spread, bool):
            raise BadRequestError("rebalance", "rebalance must be true or false")
        return self._begin(target, operation_id, spread=spread)

    def _begin(self, target: int, operation_id: str | None, *, spread: bool) -> web.Response:
        if not self._scaler.ready.is_set():
            return refusal(
                503, "the engine is starting or recovering", "service_unavailable", None, **{"Retry-After": "1"}
            )
        try:
            operation = self._scaler.request(target, operation_id, spread=spread)
        except ValueError as error:
            raise BadRequestError("dataParallel", str(error)) from error
        except ops.OperationConflictError as error:
            return refusal(409, str(error), "conflict")
        return web.json_response(self._scaler.report(operation.id), status=202)

    async def operation(self, request: web.Request) -> web.Response:
        """``GET /scale/operations/ID``."""
        try:
            return web.json_response(self._scaler.report(request.match_info["id"]))
        except KeyError:
            return refusal(404, "no such operation", "not_found", "id")

    async def abort(self, request: web.Request) -> web.Response:
        """``POST /scale/operations/ID/abort``: 202, or 409 past the commit point."""
        try:
            self._scaler.abort(request.match_info["id"])
        except KeyError:
            return refusal(404, "no such operation", "not_found", "id")
        except ops.TooLateError as error:
            return refusal(409, str(error), "conflict")
        return web.json_response(self._scaler.report(request.match_info["id"]), status=202)

    async def scale_elastic_ep(self, request: web.Request) -> web.Response:
        """vLLM's endpoint: blocks until the size is in force."""
        body = await read_json(request, self._read_timeout_s)
        target = body.get("new_data_parallel_size") if isinstance(body, dict) else None
        if isinstance(target, bool) or not isinstance(target, int):
            raise BadRequestError("new_data_parallel_size", "new_data_parallel_size must be an integer")
        begun = self._begin(target, None, spread=False)
        if begun.status != 202:
            return begun
        operation_id = json.loads(begun.text or "{}")["id"]
        await self._scaler.wait(operation_id)
        done = self._scaler.operations[operation_id]
        if done.phase != "succeeded":
            return refusal(500, done.message or f"operation {done.phase}", "scale_failed")
        return web.json_response({"message": f"Scaled to {target} data parallel engines"})

    async def is_scaling(self, _request: web.Request) -> web.Response:
        """vLLM's endpoint."""
        return web.json_response({"is_scaling_elastic_ep": self._scaler.current is not None})
