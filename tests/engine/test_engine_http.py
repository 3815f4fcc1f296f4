"""The HTTP surface of a running engine: refusals, metrics, cancellation, idempotent operations."""

from __future__ import annotations

import asyncio
import io
import json
import time

import pytest

VLLM_NAMES = [
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:request_success_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:request_time_per_output_token_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:request_queue_time_seconds_bucket",
    "vllm:cache_config_info",
    "vllm:engine_sleep_state",
]

MALFORMED = [
    (b"{", 400),
    (b"\xff", 400),
    (b"[]", 400),
    (b'{"model": "M"}', 400),
    (b'{"model": "M", "prompt": []}', 400),
    (b'{"model": "M", "prompt": [99999]}', 400),
    (b'{"model": "M", "prompt": [true]}', 400),
    (b'{"prompt": "x"}', 400),
    (b'{"model": "other", "prompt": "x"}', 404),
    (b'{"model": "M", "prompt": "x", "max_tokens": 0}', 400),
    (b'{"model": "M", "prompt": "x", "max_tokens": 100000}', 400),
    (b'{"model": "M", "prompt": "x", "temperature": NaN}', 400),
    (b'{"model": "M", "prompt": "x", "n": 2}', 400),
    (b'{"model": "M", "prompt": "x", "stop": [1]}', 400),
    (b" " * (5 * 1024 * 1024), 413),
]


async def test_one_engine_and_everything_a_client_may_do(engine, checkpoint, reference):
    """One start serves all of these: starting is what takes long."""
    folder = checkpoint()
    served = await engine(folder, max_queue=2, max_running=4, budget_tokens=64, standbys=1, max_data_parallel=2)
    await _refuses_what_is_malformed(served)
    await _speaks_openai(served, folder, reference)
    await _stops_for_clients_that_leave(served)
    await _refuses_beyond_the_queue(served)
    await _operations_are_idempotent_and_can_be_aborted(served)
    await _metrics_have_the_names_that_dashboards_know(served)
    await _the_command_scales_and_tells(served)


async def _the_command_scales_and_tells(served):
    cli = pytest.importorskip("medley_engine.cli")
    size = (await served.get("/scale"))["dataParallel"]
    other = 3 - size
    assert await asyncio.to_thread(cli.main, ["scale", str(other), "--url", served.url]) == 0
    assert (await served.get("/scale"))["dataParallel"] == other
    assert await asyncio.to_thread(cli.main, ["status", "--url", served.url]) == 0
    assert await asyncio.to_thread(cli.main, ["scale", "99", "--url", served.url]) == 2
    assert await asyncio.to_thread(cli.main, ["serve", str(served.run_dir)]) == 2


async def _refuses_what_is_malformed(served):
    for body, status in MALFORMED:
        data = body.replace(b'"M"', json.dumps(served.model).encode())
        async with served.session.post(f"{served.url}/v1/completions", data=io.BytesIO(data)) as response:
            assert response.status == status, body[:60]
            assert (await response.json())["error"]["message"]
    for path, body in (
        ("/scale", {"dataParallel": 0}),
        ("/scale", {"dataParallel": "2"}),
        ("/scale", {"dataParallel": 9}),
    ):
        assert (await served.post(path, body))[0] == 400
    async with served.session.get(f"{served.url}/scale/operations/none") as response:
        assert response.status == 404


async def _speaks_openai(served, folder, reference):
    body = {"model": served.model, "prompt": [5, 6, 7], "max_tokens": 8, "temperature": 0}
    status, whole = await served.post("/v1/completions", body)
    assert status == 200
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
    assert whole["choices"][0]["finish_reason"] == "length"
    text = whole["choices"][0]["text"]
    assert await served.text([5, 6, 7], 8) == text
    stop = text[len(text) // 2 :][:2]
    _, stopped = await served.post("/v1/completions", {**body, "stop": stop})
    assert stopped["choices"][0] == {
        "index": 0, "finish_reason": "stop", "text": text[: text.find(stop)], "logprobs": None,
    }  # fmt: skip
    first = reference(folder, [5, 6, 7], 1)[0]
    _, ended = await served.post("/v1/completions", {**body, "stop_token_ids": [first]})
    assert (ended["choices"][0]["text"], ended["choices"][0]["finish_reason"]) == ("", "stop")
    chat = {"model": served.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "seed": 1}
    status, one = await served.post("/v1/chat/completions", chat)
    assert status == 200, one
    assert one == {**(await served.post("/v1/chat/completions", chat))[1], "id": one["id"], "created": one["created"]}
    assert one["usage"]["prompt_tokens"] == len("<user>hi\n<assistant>")
    assert (await served.get("/v1/models"))["data"][0]["id"] == served.model


async def _stops_for_clients_that_leave(served):
    body = {"model": served.model, "prompt": [1, 2, 3], "max_tokens": 400, "temperature": 0}
    for stream in (True, False):
        task = asyncio.create_task(_start(served, {**body, "stream": stream}))
        await served.until(lambda s: s["requests"]["held"] == 1)
        task.cancel()
        await asyncio.wait([task])
        await served.until(lambda s: s["requests"]["held"] == 0, 10)


async def _start(served, body):
    async with served.session.post(f"{served.url}/v1/completions", json=body) as response:
        await response.read()


async def _refuses_beyond_the_queue(served):
    body = {"model": served.model, "prompt": [1, 2, 3], "max_tokens": 20, "temperature": 0}

    async def one():
        async with served.session.post(f"{served.url}/v1/completions", json=body) as response:
            return response.status, response.headers.get("Retry-After")

    answers = await asyncio.gather(*(one() for _ in range(20)))
    assert {status for status, _ in answers} == {200, 429}
    assert sum(status == 200 for status, _ in answers) >= 6
    assert all(after for status, after in answers if status == 429)


async def _operations_are_idempotent_and_can_be_aborted(served):
    await served.until(lambda s: s["standbys"] == [2])
    first, again = await asyncio.gather(
        *(served.post("/scale", {"dataParallel": 2, "operationId": "up"}) for _ in range(2))
    )
    assert first[0] == again[0] == 202
    assert first[1]["id"] == again[1]["id"] == "up"
    assert (await served.post("/scale", {"dataParallel": 1, "operationId": "up"}))[0] == 409
    assert (await served.post("/scale", {"dataParallel": 1}))[0] == 409
    await served.until(lambda s: not s["operation"])
    done = await served.get("/scale/operations/up")
    assert (done["result"], done["percent"]) == ("succeeded", 100)
    status, body = await served.post("/scale/operations/up/abort", {})
    assert status == 409, body
    unchanged = await served.scale(2)
    assert unchanged["details"]["unchanged"]
    status, begun = await served.post("/scale", {"dataParallel": 1})
    assert status == 202
    status, _ = await served.post(f"/scale/operations/{begun['id']}/abort", {})
    end = await served.until(lambda s: not s["operation"])
    assert (end["dataParallel"], status) in ((2, 202), (1, 409))
    assert {n for n in end["memory"]["configs"] if not n.endswith("-armed")} <= {end["config"]}
    assert end["config"] in end["memory"]["configs"]
    spread = await served.scale(end["dataParallel"], rebalance=True)
    assert spread["phase"] == "succeeded"


async def _metrics_have_the_names_that_dashboards_know(served):
    async with served.session.get(f"{served.url}/metrics") as response:
        text = await response.text()
    missing = [name for name in VLLM_NAMES if f"\n{name}{{" not in text]
    assert not missing
    assert f'vllm:num_requests_running{{model_name="{served.model}"}} 0.0' in text


async def test_it_is_alive_before_it_is_ready_and_finishes_what_runs_when_told_to_end(engine):
    served = await engine(wait=False, keep_standbys=False, drain_timeout_s=60)
    end = time.monotonic() + 60
    alive = False
    while not alive:
        assert time.monotonic() < end
        try:
            async with served.session.get(f"{served.url}/health/live") as response:
                alive = response.status == 200
            async with served.session.get(f"{served.url}/health/ready") as response:
                assert response.status in (200, 503)
        except OSError:
            await asyncio.sleep(0.05)
    await served.until(lambda s: bool(s.get("ready")))
    task = asyncio.create_task(served.text([1, 2, 3], 120))
    await served.until(lambda s: s["requests"]["held"] == 1)
    served.process.terminate()
    assert await task
    assert await asyncio.to_thread(served.process.wait, 30) == 0


def test_a_stream_breaks_neither_characters_nor_stop_strings(checkpoint):
    text_module = pytest.importorskip(
        "medley_engine.serving.text", reason="tokenizers is not installed (extra: engine)"
    )
    codec = text_module.TextCodec(checkpoint())
    text = "añb€c…done. STOP never"
    tokens = codec.encode(text)
    decoder = text_module.StreamDecoder(codec)
    pieces = [decoder.push(token) for token in tokens]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + decoder.finish() == text
    decoder = text_module.StreamDecoder(codec, ("STOP",))
    got = ""
    for token in tokens:
        got += decoder.push(token)
        assert "S" not in got
        if decoder.stopped:
            break
    assert got == "añb€c…done. "
