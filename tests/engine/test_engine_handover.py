"""What runs on an old instance is not waited for once the instance is lost."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from medley_engine.serving.handover import hand_over
from medley_engine.serving.links import RankLostError


class Link:
    """Of a rank that is lost, or of one that waits for it and never answers."""

    def __init__(self, *, lost: bool) -> None:
        self._lost = lost

    async def ask(self, do: str, deadline_s: float = 120.0, **fields: object) -> dict[str, object]:
        if self._lost:
            await asyncio.sleep(0)
            raise RankLostError("it is gone")
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody answers")


@pytest.mark.parametrize("lost", [0, 1])
def test_ranks_that_wait_for_a_lost_one_are_not_waited_for(lost: int) -> None:
    old = SimpleNamespace(leaders=[0, 1], links=[Link(lost=rank == lost) for rank in (0, 1)])
    new = SimpleNamespace(leaders=[0], state="attached")
    dispatcher = SimpleNamespace(requests={}, load=lambda instance: {0: 0})
    settings = SimpleNamespace(handover="kv", shared_pages=True, tensor_parallel=1, shared_domain=True, abreast=2)

    async def handed_over() -> dict[str, object]:
        return await asyncio.wait_for(hand_over(old, new, dispatcher, None, settings), 5.0)

    assert asyncio.run(handed_over())["moved"] == 0
