"""Real requests to engines, and their metrics: against small HTTP servers that behave well and badly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from medley_operator.drain import Drains
from medley_operator.engines import Endpoint, EngineError, in_flight, probe, requests_in_flight
from medley_operator.probe import Probes

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m}{"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:num_requests_waiting_by_reason{reason="capacity"} 100.0
"""


@asynccontextmanager
async def engine(
    *, post: Handler | None = None, get: Handler | None = None, kind: str = "vllm"
) -> AsyncIterator[Endpoint]:
    app = web.Application()
    if post is not None:
        app.router.add_post("/v1/completions", post)
    if get is not None:
        app.router.add_get("/metrics", get)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield Endpoint("127.0.0.1", runner.addresses[0][1], kind, "m")
    finally:
        await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


def test_in_flight_is_the_sum_of_both_gauges_over_all_labels() -> None:
    assert in_flight(VLLM, "vllm") == 7
    assert in_flight(VLLM, "custom") == 7
    sglang = "sglang:num_running_reqs 0.0\nsglang:num_queue_reqs 3.0 1700000000000\n"
    assert in_flight(sglang, "sglang") == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vllm:num_requests_running 0.0\n",
        VLLM.replace("waiting", "queued"),
        "vllm:num_requests_running NaN\nvllm:num_requests_waiting 0",
    ],
)
def test_a_missing_gauge_is_unknown_and_never_zero(text: str) -> None:
    assert in_flight(text, "vllm") is None


async def test_a_probe_is_a_completion_of_one_token(session: aiohttp.ClientSession) -> None:
    asked: list[dict[str, object]] = []

    async def complete(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response({"choices": [{"text": "!"}]})

    async with engine(post=complete) as endpoint:
        await probe(session, endpoint)
    assert (asked[0]["model"], asked[0]["max_tokens"]) == ("m", 1)


async def test_what_is_no_completion_fails_the_probe_and_says_how(session: aiohttp.ClientSession) -> None:
    async def wrong_model(_: web.Request) -> web.Response:
        return web.json_response({"error": "The model `m` does not exist."}, status=404)

    async def other(_: web.Request) -> web.Response:
        return web.json_response({"hello": "world"})

    async with engine(post=wrong_model) as endpoint:
        with pytest.raises(EngineError, match=r"404.*does not exist"):
            await probe(session, endpoint)
    async with engine(post=other) as endpoint:
        with pytest.raises(EngineError, match="not with a completion"):
            await probe(session, endpoint)
    with pytest.raises(EngineError, match="did not answer"):
        await probe(session, endpoint)


async def test_a_custom_engine_without_completions_counts_by_its_own_readiness(session: aiohttp.ClientSession) -> None:
    async with engine(kind="custom") as endpoint:
        await probe(session, endpoint)


async def test_metrics_that_cannot_be_read_raise_and_none_at_all_is_unknown(session: aiohttp.ClientSession) -> None:
    async def broken(_: web.Request) -> web.Response:
        return web.Response(status=500)

    async with engine(get=broken) as endpoint:
        with pytest.raises(EngineError, match="500"):
            await requests_in_flight(session, endpoint)
    async with engine() as endpoint:
        assert await requests_in_flight(session, endpoint) is None


async def test_probes_go_on_until_the_engine_answers(session: aiohttp.ClientSession) -> None:
    statuses = iter([503, 200])
    failures: list[str] = []
    answered = asyncio.Event()

    async def complete(_: web.Request) -> web.Response:
        return web.json_response({"choices": []}, status=next(statuses))

    probes = Probes(session)
    async with engine(post=complete) as endpoint:
        for _ in range(2):  # asking again for the same pod changes nothing
            probes.ask("uid", endpoint, on_answer=answered.set, on_failure=failures.append)
        await asyncio.wait_for(answered.wait(), 10)
    assert probes.answered == {"uid"}
    assert len(failures) == 1
    probes.forget("uid")
    assert probes.answered == frozenset()
    await probes.close()


async def test_a_pod_is_idle_after_two_quiet_readings_in_a_row(session: aiohttp.ClientSession) -> None:
    running = iter([1, 0, 1, 0, 0])
    readings: list[int] = []
    idle = asyncio.Event()

    async def metrics(_: web.Request) -> web.Response:
        readings.append(next(running))
        return web.Response(text=f"vllm:num_requests_running {readings[-1]}\nvllm:num_requests_waiting 0\n")

    drains = Drains(session)
    async with engine(get=metrics) as endpoint:
        drains.watch("uid", endpoint, 0.0, on_idle=idle.set)
        assert drains.idle == frozenset()
        await asyncio.wait_for(idle.wait(), 10)
    assert readings == [1, 0, 1, 0, 0]
    assert drains.idle == {"uid"}
    await drains.close()


async def test_unreadable_metrics_are_not_taken_for_idle(session: aiohttp.ClientSession) -> None:
    answers = iter([("0", 200), ("0", 500), ("0", 200), ("0", 200)])
    seen: list[int] = []
    idle = asyncio.Event()

    async def metrics(_: web.Request) -> web.Response:
        text, status = next(answers)
        seen.append(status)
        return web.Response(text=f"vllm:num_requests_running {text}\nvllm:num_requests_waiting {text}\n", status=status)

    drains = Drains(session)
    async with engine(get=metrics) as endpoint:
        drains.watch("uid", endpoint, 0.0, on_idle=idle.set)
        await asyncio.wait_for(idle.wait(), 10)
    assert seen == [200, 500, 200, 200]
    await drains.close()
