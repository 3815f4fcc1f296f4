"""Whole engines: the same tokens as the reference, through every change of size, with no stream dropped."""

from __future__ import annotations

import asyncio

import pytest

from medley_engine.placement import copy_counts

PROMPTS = [list(range(1, 40)), [5, 6, 7], list(range(100, 190)), [250, 3, 3, 9], [17] * 33]


def text_of(folder, tokens):
    return (
        pytest.importorskip("tokenizers")
        .Tokenizer.from_file(str(folder / "tokenizer.json"))
        .decode(tokens, skip_special_tokens=True)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"shared_domain": True},
        {"shared_domain": False},
        {"shared_domain": False, "arm_standbys": False},
        {"shared_domain": False, "copy_after_switch": False},
        {"tensor_parallel": 2},
        {"tensor_parallel": 2, "shared_domain": False},
        {"device": "cuda"},
        {"device": "cuda", "fake_peers": "0"},
        {"device": "cuda", "tensor_parallel": 2},
    ],
    ids=[
        "one memory",
        "a memory per rank",
        "not armed",
        "copies before the switch",
        "tensor parallel",
        "tensor parallel, a memory per rank",
        "fake GPUs",
        "fake GPUs that are no peers",
        "fake GPUs, tensor parallel",
    ],
)
async def test_streams_survive_growing_and_shrinking(engine, checkpoint, reference, monkeypatch, options):
    options = dict(options)
    monkeypatch.setenv("FAKE_CUDA_PEERS", options.pop("fake_peers", "1"))
    folder = checkpoint()
    count = 40
    expected = {tuple(p): text_of(folder, reference(folder, p, count)) for p in PROMPTS}
    served = await engine(folder, phase_delay_s=0.05, **options)
    wrong, done = [], 0
    running = True

    async def client(number: int) -> None:
        nonlocal done
        turn = number
        while running:
            prompt = PROMPTS[turn % len(PROMPTS)]
            got = await served.text(prompt, count)
            if got != expected[tuple(prompt)]:
                wrong.append((prompt, got))
            done += 1
            turn += 1

    clients = [asyncio.create_task(client(n)) for n in range(4)]
    for size in (2, 1):
        operation = await served.scale(size)
        assert operation["phase"] == "succeeded", operation
    running = False
    await asyncio.gather(*clients)
    assert not wrong
    assert done >= 4
    status = await served.get("/scale")
    assert status["dataParallel"] == 1
    active = [held for held in status["memory"]["holders"].values() if held["config"] == status["config"]]
    assert all(held["borrowed"] == 0 for held in active), "every rank has its pages in its own memory"
    if options.get("device") == "cuda":
        await served.until_device_memory_is_in_the_book()


async def test_it_grows_when_objectives_are_missed_for_long_and_shrinks_when_it_is_idle(engine, checkpoint, reference):
    folder = checkpoint()
    prompt = PROMPTS[1]
    expected = text_of(folder, reference(folder, prompt, 2))
    options = {"auto_scale": True, "load_window_s": 1.5, "max_data_parallel": 2, "tpot_objective_s": 60.0}
    for start, objective_s, end in ((1, 0.0, 2), (2, 60.0, 1)):
        served = await engine(folder, data_parallel=start, ttft_objective_s=objective_s, **options)
        stop, got = asyncio.Event(), set()

        async def client(served=served, stop=stop, got=got):
            while not stop.is_set():
                got.add(await served.text(prompt, 2))

        clients = [asyncio.create_task(client()) for _ in range(3)]
        status = await served.until(lambda s, end=end: s["dataParallel"] == end and not s["operation"])
        stop.set()
        await asyncio.gather(*clients)
        assert got == {expected}
        assert [o["result"] for o in status["operations"]] == ["succeeded"]


async def test_hot_experts_get_copies_under_load_and_no_token_changes(engine, checkpoint, reference):
    folder, count, spare = checkpoint(), 40, 2
    expected = text_of(folder, reference(folder, PROMPTS[4], count))
    served = await engine(folder, data_parallel=2, max_data_parallel=2, shared_domain=False, spare_experts=spare)
    for _ in range(2):
        assert await served.text(PROMPTS[4], count) == expected
    streams = [asyncio.create_task(served.text(PROMPTS[4], count)) for _ in range(4)]
    operation = await served.scale(2, rebalance=True)
    assert operation["phase"] == "succeeded", operation
    assert [await stream for stream in streams] == [expected] * 4
    status = await served.get("/scale")
    layers = status["memory"]["configs"][status["config"]]["placement"]
    copies = [[sum(expert in rank for rank in layer) for expert in range(8)] for layer in layers]
    assert all(sum(layer) == 8 + spare for layer in copies)
    assert any(tuple(layer) != copy_counts([1.0] * 8, 2, spare) for layer in copies), "placed by what was measured"
    assert await served.text(PROMPTS[4], count) == expected


async def test_copies_between_memories_may_go_through_gloo(engine, checkpoint, reference):
    folder, count = checkpoint(), 30
    expected = text_of(folder, reference(folder, PROMPTS[0], count))
    served = await engine(folder, max_data_parallel=2, shared_domain=False, transport="gloo")
    streams = [asyncio.create_task(served.text(PROMPTS[0], count)) for _ in range(2)]
    operation = await served.scale(2)
    assert operation["phase"] == "succeeded", operation
    assert operation["details"]["plan"]["peerBytes"] > 0
    assert [await stream for stream in streams] == [expected] * 2
    assert await served.text(PROMPTS[0], count) == expected
