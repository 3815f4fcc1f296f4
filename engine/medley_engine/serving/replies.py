"""What every handler reads and refuses with."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from medley_engine.serving.openai import BadRequestError, error_body


def refusal(status: int, message: str, kind: str, param: str | None = None, **headers: str) -> web.Response:
    """An error as OpenAI's API tells it."""
    return web.json_response(error_body(message, kind, param, status), status=status, headers=headers)


async def read_json(request: web.Request, timeout_s: float) -> Any:
    """A request's body.

    Raises:
        BadRequestError: it is no JSON.
        web.HTTPRequestTimeout: it did not arrive in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            raw = await request.read()
        return json.loads(raw)
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(reason="the body did not arrive in time") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError("", f"the body is not JSON: {error}") from error
