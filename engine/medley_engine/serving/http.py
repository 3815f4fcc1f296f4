"""The HTTP surface: OpenAI's API, health and metrics; scaling is in :mod:`medley_engine.serving.scaling_http`."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

from medley_engine.config import ModelConfig
from medley_engine.serving.metrics import Metrics
from medley_engine.serving.openai import (
    BadRequestError,
    Wish,
    Writer,
    read_messages,
    read_prompt,
    read_wish,
    usage,
)
from medley_engine.serving.replies import read_json, refusal
from medley_engine.serving.requests import ClosingError, Dispatcher, QueueFullError, Request
from medley_engine.serving.scaling import Scaler
from medley_engine.serving.scaling_http import ScalingApi
from medley_engine.serving.settings import Settings
from medley_engine.serving.text import NoChatTemplateError, StreamDecoder, TextCodec

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger("medley.engine.http")

_DEFAULT_COMPLETION_TOKENS = 16
_DEFAULT_CHAT_TOKENS = 1 << 20


class Api:
    """Handlers. They read, hand to the dispatcher, and write."""

    def __init__(
        self,
        *,
        settings: Settings,
        model: ModelConfig,
        codec: TextCodec,
        dispatcher: Dispatcher,
        scaler: Scaler,
        metrics: Metrics,
        status: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        self._settings, self._model, self._codec = settings, model, codec
        self._dispatcher, self._metrics = dispatcher, metrics
        self._scaling = ScalingApi(scaler, status, settings.read_timeout_s)
        self._started = int(time.time())

    def application(self) -> web.Application:
        """The application with its routes."""
        app = web.Application(client_max_size=self._settings.max_body_bytes, middlewares=[self._errors])
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health/live", self.live)
        app.router.add_get("/health/ready", self.health)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        self._scaling.add_to(app)
        return app

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except BadRequestError as error:
            self._metrics.refuse("bad_request")
            return refusal(400, str(error), "invalid_request_error", error.param)
        except QueueFullError as error:
            self._metrics.refuse("queue_full")
            return refusal(429, str(error), "rate_limit_error", None, **{"Retry-After": "1"})
        except ClosingError as error:
            return refusal(503, str(error), "service_unavailable", None, **{"Retry-After": "5"})
        except web.HTTPException as error:
            return refusal(error.status, error.reason, "invalid_request_error")

    # --- OpenAI ------------------------------------------------------------------------------------------------

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/completions``."""
        body = await read_json(request, self._settings.read_timeout_s)
        prompt = read_prompt(body, self._model.vocab_size)
        tokens = self._encode(prompt) if isinstance(prompt, str) else prompt
        return await self._generate(request, body, tokens, chat=False)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/chat/completions``."""
        body = await read_json(request, self._settings.read_timeout_s)
        try:
            tokens = self._codec.render_chat(read_messages(body))
        except NoChatTemplateError as error:
            raise BadRequestError("messages", str(error)) from error
        return await self._generate(request, body, tokens, chat=True)

    def _encode(self, text: str) -> tuple[int, ...]:
        try:
            return self._codec.encode(text)
        except ValueError as error:
            raise BadRequestError("prompt", str(error)) from error

    async def _generate(
        self, http: web.Request, body: Any, tokens: tuple[int, ...], *, chat: bool
    ) -> web.StreamResponse:
        capacity = self._settings.blocks_per_rank * self._settings.block_tokens
        room = min(self._model.max_context_tokens, capacity) - len(tokens)
        default = _DEFAULT_CHAT_TOKENS if chat else _DEFAULT_COMPLETION_TOKENS
        eos, name = self._model.eos_token_ids, self._settings.served_name
        wish = read_wish(body, eos=eos, vocab_size=self._model.vocab_size, room=room, default_tokens=default)
        if wish.model != name:
            return refusal(
                404, f"the model {wish.model!r} does not exist; this engine serves {name!r}", "not_found", "model"
            )
        identifier = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        request = Request(identifier, tokens, wish.params, time.monotonic())
        self._dispatcher.submit(request)
        writer = Writer(identifier, wish.model, int(time.time()), chat)
        try:
            if wish.stream:
                return await self._stream(http, request, wish, writer)
            return await self._whole(http, request, wish, writer)
        finally:
            self._dispatcher.cancel(request)

    async def _pieces(self, request: Request, wish: Wish) -> AsyncIterator[tuple[str, str | None]]:
        """Text as it becomes certain, with the finish reason on the last piece."""
        decoder = StreamDecoder(self._codec, wish.stops)
        if wish.echo:
            yield self._codec.decode(list(request.prompt)), None
        while True:
            token, reason = await request.events.get()
            text = "" if token is None or token in wish.params.stop_token_ids else decoder.push(token)
            if decoder.stopped:
                yield text, "stop"
                return
            if reason is not None:
                yield text + decoder.finish(), "stop" if decoder.stopped else reason
                return
            yield text, None

    async def _whole(self, http: web.Request, request: Request, wish: Wish, writer: Writer) -> web.Response:
        text, reason = "", None
        watch = asyncio.create_task(_disconnected(http))
        collect = asyncio.create_task(self._collect(request, wish))
        try:
            await asyncio.wait({watch, collect}, return_when=asyncio.FIRST_COMPLETED)
            if not collect.done():
                raise web.HTTPBadRequest(reason="the client went away")
            text, reason = collect.result()
        finally:
            watch.cancel()
            collect.cancel()
        return web.json_response(writer.whole(text, reason, usage(len(request.prompt), len(request.generated))))

    async def _collect(self, request: Request, wish: Wish) -> tuple[str, str | None]:
        pieces = [piece async for piece in self._pieces(request, wish)]
        return "".join(text for text, _ in pieces), pieces[-1][1]

    async def _stream(self, http: web.Request, request: Request, wish: Wish, writer: Writer) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(http)
        first = True
        async for text, reason in self._pieces(request, wish):
            if text or reason or first:
                await _event(response, writer.chunk(text, reason, first=first))
                first = False
        if wish.include_usage:
            await _event(response, writer.usage_chunk(usage(len(request.prompt), len(request.generated))))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def models(self, _request: web.Request) -> web.Response:
        """``GET /v1/models``."""
        entry = {
            "id": self._settings.served_name, "object": "model", "created": self._started, "owned_by": "medley",
            "max_model_len": self._model.max_context_tokens,
        }  # fmt: skip
        return web.json_response({"object": "list", "data": [entry]})

    # --- health and metrics ------------------------------------------------------------------------------------

    async def live(self, _request: web.Request) -> web.Response:
        """Alive: the event loop answers."""
        return web.json_response({"status": "alive"})

    async def health(self, _request: web.Request) -> web.Response:
        """Ready: an instance serves and intake is open."""
        if self._dispatcher.closing or self._dispatcher.active is None:
            reason = "shutting down" if self._dispatcher.closing else "no instance serves"
            return refusal(503, reason, "service_unavailable")
        return web.json_response({"status": "ready", "dataParallel": self._dispatcher.active.size})

    async def metrics(self, _request: web.Request) -> web.Response:
        """Prometheus' text format."""
        self._dispatcher.refresh_gauges()
        return web.Response(
            body=self._metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )


async def _event(response: web.StreamResponse, body: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n")


async def _disconnected(http: web.Request) -> None:
    """Returns when the client's connection is gone (aiohttp tells nobody who is not writing, so it is looked at)."""
    while http.transport is not None and not http.transport.is_closing():  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0.1)
