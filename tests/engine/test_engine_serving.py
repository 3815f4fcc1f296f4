"""Whole engines: the same tokens as the reference, through every change of size, with no stream dropped."""

from __future__ import annotations

import asyncio

import pytest

PROMPTS = [list(range(1, 40)), [5, 6, 7], list(range(100, 190)), [250, 3, 3, 9], [17] * 33]


def text_of(folder, tokens):
    return (
        pytest.importorskip("tokenizers")
        .Tokenizer.from_file(str(folder / "tokenizer.json"))
        .decode(tokens, skip_special_tokens=True)
    )


@pytest.mark.parametrize(
    "options",
    [{"shared_domain": True}, {"shared_domain": False}, {"tensor_parallel": 2}],
    ids=["one memory", "a memory per rank", "tensor parallel"],
)
async def test_streams_survive_growing_and_shrinking(engine, checkpoint, reference, options):
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
