"""What the operator asks of a serving pod: to answer one real request, and how many requests it has in flight.

Both go straight to the pod's address, not through a Service: a pod is asked before it is an endpoint and after it
stopped being one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import aiohttp

PROBE_TIMEOUT_S = 30.0
METRICS_TIMEOUT_S = 5.0
LARGEST_ANSWER_BYTES = 8 * 1024 * 1024

IN_FLIGHT_METRICS: Mapping[str, tuple[str, ...]] = {
    "vllm": ("vllm:num_requests_running", "vllm:num_requests_waiting"),
    "sglang": ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
}
"""Names of the gauges whose sum is the number of requests in flight, by engine.

A custom engine may speak either dialect.
"""


class EngineError(Exception):
    """The pod did not answer as an engine should; the message says what it did instead."""


@dataclass(frozen=True)
class Endpoint:
    """Where a pod's engine listens, and what it serves."""

    address: str
    port: int
    engine: str
    model: str

    def url(self, path: str) -> str:
        """The URL of a path of this engine."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}{path}"


async def probe(session: aiohttp.ClientSession, endpoint: Endpoint) -> None:
    """Have the engine complete one token.

    A custom engine that has no completions API (404, 405) counts as serving: its own readiness probe is all there is
    to know.

    Raises:
        EngineError: It did not answer, or not with a completion.
    """
    body = {"model": endpoint.model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
    timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
    try:
        async with session.post(endpoint.url("/v1/completions"), json=body, timeout=timeout) as response:
            answer = await _bounded(response)
            if response.status in {404, 405} and endpoint.engine == "custom":
                return
            if response.status != 200:
                raise EngineError(
                    f"answered a completion with {response.status}: {answer[:200].decode(errors='replace')}"
                )
            if b'"choices"' not in answer:
                raise EngineError("answered a completion with 200, but not with a completion")
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise EngineError(f"did not answer a completion: {str(error) or type(error).__name__}") from error


async def requests_in_flight(session: aiohttp.ClientSession, endpoint: Endpoint) -> int | None:
    """How many requests the engine runs or has queued; None where it answers but does not say. Never assumed to be 0.

    Raises:
        EngineError: Its metrics could not be read.
    """
    try:
        timeout = aiohttp.ClientTimeout(total=METRICS_TIMEOUT_S)
        async with session.get(endpoint.url("/metrics"), timeout=timeout) as response:
            content = await _bounded(response)
            if response.status == 404:
                return None
            if response.status != 200:
                raise EngineError(f"answered /metrics with {response.status}")
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise EngineError(f"did not answer /metrics: {str(error) or type(error).__name__}") from error
    return in_flight(content.decode(errors="replace"), endpoint.engine)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    """The body. Raises EngineError where it is larger than any sound engine's."""
    content = bytearray()
    async for chunk in response.content.iter_chunked(65_536):
        content += chunk
        if len(content) > LARGEST_ANSWER_BYTES:
            raise EngineError(f"answered with more than {LARGEST_ANSWER_BYTES} bytes")
    return bytes(content)


def in_flight(exposition: str, engine: str) -> int | None:
    """The sum of an engine's gauges over all their labels, out of a Prometheus text exposition;
    None where one is missing.
    """
    dialects = [IN_FLIGHT_METRICS[engine]] if engine in IN_FLIGHT_METRICS else list(IN_FLIGHT_METRICS.values())
    for names in dialects:
        sums = _sums(exposition.splitlines(), names)
        if all(name in sums for name in names):
            return sum(math.ceil(sums[name]) for name in names)
    return None


def _sums(lines: Iterable[str], names: tuple[str, ...]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for line in lines:
        name = next((name for name in names if line.startswith((f"{name}{{", f"{name} "))), None)
        if name is None:
            continue
        rest = line[len(name) :]
        value = rest.rpartition("}")[2].split() if rest.startswith("{") else rest.split()
        try:
            number = float(value[0])
        except (IndexError, ValueError):
            continue
        if math.isfinite(number):
            sums[name] = sums.get(name, 0.0) + number
    return sums
