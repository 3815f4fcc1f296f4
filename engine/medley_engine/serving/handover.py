"""Move running sequences from one instance to another with their KV blocks, without recomputing a token."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from medley_engine.memory.wire import RemoteError
from medley_engine.serving.instances import Instance
from medley_engine.serving.links import ManagerLink, RankLostError
from medley_engine.serving.requests import Dispatcher
from medley_engine.serving.settings import Settings
from medley_engine.spreading import group_for

_EXPORT_S = 10.0
"""How long ranks may take to stop. New requests wait meanwhile, so what does not answer finishes where it is."""


async def hand_over(
    old: Instance, new: Instance, dispatcher: Dispatcher, manager: ManagerLink, settings: Settings
) -> dict[str, Any]:
    """Move what runs on ``old``; what cannot move stays there and finishes there.

    Each leader of the old instance calls off its step and tells where its sequences stand. Their blocks pass to a
    rank of the new one: in one memory to any, else to the same rank where it exists (no byte is copied). A sequence
    whose blocks find no room is replayed. Outputs that a rank sent before it stopped arrive before its answer, on the
    same connection, so no token is lost or sent twice.
    """
    counted = {"moved": 0, "replayed": 0, "seconds": 0.0}
    if settings.handover != "kv" or not settings.shared_pages:
        return counted
    if settings.tensor_parallel > 1 and not settings.shared_domain:
        return counted
    start = time.monotonic()
    running = await _exported(old, dispatcher)
    for (rank, target), sequences in sorted(by_ranks(running, dispatcher.load(new), settings).items()):
        moved = await _pass_blocks((old, rank), (new, target), sequences, manager)
        counted["moved" if moved else "replayed"] += len(sequences)
        _resume((old, rank), (new, target), sequences, dispatcher)
    if counted["moved"] + counted["replayed"] and new.state == "attached":
        # Once for all, and those in the midst of their answers first.
        for rank in new.leaders if any(_decodes(sequence) for _, sequence in running) else ():
            new.links[rank].tell("add", sequences=[], decode_first=True)
        new.wake()
    counted["seconds"] = time.monotonic() - start
    return counted


async def _exported(old: Instance, dispatcher: Dispatcher) -> list[tuple[int, dict[str, Any]]]:
    """Stop the old instance: what ran on which of its ranks, without those whose client left and those that are being
    replayed already (their blocks end with the old instance).
    """
    # All at once: the ranks compute in lock step, so they stop in the same layer of a step.
    asked = [asyncio.ensure_future(old.links[rank].ask("export", deadline_s=_EXPORT_S)) for rank in old.leaders]
    try:
        replies = await asyncio.gather(*asked)
    except RankLostError:
        # The old instance is lost: what it ran is replayed by whoever was told so. Its other ranks may wait in a step
        # for the one that is gone, and new requests wait meanwhile: nobody waits for them.
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        return []
    running = []
    for rank, reply in zip(old.leaders, replies, strict=True):
        for sequence in reply["sequences"]:
            request = dispatcher.requests.get(sequence["id"])
            if request is not None and request.instance is old:
                running.append((rank, sequence))
    return running


def _decodes(sequence: dict[str, Any]) -> bool:
    return int(sequence["computed"]) >= len(sequence["prompt"])


def by_ranks(
    running: list[tuple[int, dict[str, Any]]], counts: dict[int, int], settings: Settings
) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Sequences by the ranks that they leave and reach. ``counts`` of the new instance are brought up to date.

    The first step is to be short, since running streams wait for it. Where processors are fewer than ranks, those that
    decode are put close together, so that few ranks have anything to compute in it.
    """
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    close = 1 if settings.abreast < len(counts) else settings.abreast
    for rank, sequence in sorted(running, key=lambda one: not _decodes(one[1])):
        if settings.shared_domain or rank not in counts or not sequence["computed"]:
            target = group_for(counts, close if _decodes(sequence) else settings.abreast)
        else:
            target = rank
        if not settings.shared_domain and not sequence["computed"]:
            # Nothing was computed into its blocks: it needs no copy of them.
            sequence["blocks"] = []
        counts[target] += 1
        found.setdefault((rank, target), []).append(sequence)
    return found


async def _pass_blocks(
    source: tuple[Instance, int], goal: tuple[Instance, int], sequences: list[dict[str, Any]], manager: ManagerLink
) -> bool:
    """Pass the blocks of sequences to a rank (all its tensor-parallel shards); False leaves them without blocks, to
    be replayed.
    """
    (old, rank), (new, target) = source, goal
    blocks = [block for sequence in sequences for block in sequence["blocks"]]
    try:
        given = blocks
        for shard in range(old.settings.tensor_parallel):
            reply = await manager.ask(
                "kv_transfer", source=old.holder(rank + shard), target=new.holder(target + shard), blocks=blocks
            )
            given = reply["blocks"]
    except RemoteError:
        for sequence in sequences:
            sequence["blocks"], sequence["computed"] = [], 0
        return False
    at = 0
    for sequence in sequences:
        count = len(sequence["blocks"])
        sequence["blocks"] = given[at : at + count]
        at += count
    return True


def _resume(
    source: tuple[Instance, int], goal: tuple[Instance, int], sequences: list[dict[str, Any]], dispatcher: Dispatcher
) -> None:
    """Let the new rank go on. What changed while blocks were passed: clients may have left, either instance may be
    lost.
    """
    (old, _), (new, target) = source, goal
    moving = []
    for sequence in sequences:
        request = dispatcher.requests.get(sequence["id"])
        if request is not None and request.instance is old:
            request.instance, request.rank = new, target
            moving.append((sequence, request))
    if new.state != "attached":
        dispatcher.requeue([request for _, request in moving])
        return
    going = {sequence["id"] for sequence, _ in moving}
    ownerless = [block for sequence in sequences if sequence["id"] not in going for block in sequence["blocks"]]
    if ownerless:
        new.links[target].tell("gift", blocks=ownerless)
    new.links[target].tell("add", sequences=[s for s, _ in moving])
