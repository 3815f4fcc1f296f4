"""What the manager lends: KV blocks to ranks, and items in other memories while they move."""

from __future__ import annotations

import os
import time

from engine_manager import (
    Keeper,
    Managers,
    ask,
    bring_home,
    in_force,
    item_bytes,
    prepare,
    settle,
    two_groups,
    weight_bytes,
)

from medley_engine.placement import initial
from medley_engine.topology import Topology


def test_kv_blocks_are_lent_once_and_handed_over(folder):
    manager = Managers(folder, "host")()
    in_force(manager, "a", 2, shared=True)
    for rank in (0, 1):
        ask(manager, "attach", config="a", rank=rank, holder=f"i/{rank}")
    first = ask(manager, "kv_lease", holder="i/0", count=20)[0]["blocks"]
    second = ask(manager, "kv_lease", holder="i/1", count=20)[0]["blocks"]
    assert len(first) == 20
    assert len(second) == 12, "two ranks of 16 blocks share one pool of 32"
    assert not set(first) & set(second)
    assert ask(manager, "kv_transfer", source="i/0", target="i/1", blocks=first[:3])[0]["blocks"] == first[:3]
    assert ask(manager, "kv_release", holder="i/0", blocks=first[:1])[0]["error"] == "conflict"
    assert ask(manager, "kv_transfer", source="i/0", target="i/1", blocks=first[:3])[0]["error"] == "conflict"
    ask(manager, "kv_release", holder="i/1", blocks=first[:3])
    assert ask(manager, "kv_lease", holder="i/0", count=9)[0]["blocks"] == first[:3]


def test_an_instance_that_drains_still_gets_blocks_and_they_go_with_it(managers):
    manager = managers()
    for name, size in (("two", 2), ("one", 1)):
        prepare(manager, name, size)
        for rank in range(size):
            ask(manager, "attach", config=name, rank=rank, holder=f"{name}/{rank}")
        ask(manager, "commit", config=name)
    blocks = ask(manager, "kv_lease", holder="two/1", count=3)[0]["blocks"]
    assert len(blocks) == 3, "the memory that the new configuration leaves"
    pool = manager.store.pools["kv/device1/0"]
    with pool.filling(manager.store.block_bytes * blocks[-1], 4096) as view:
        view[:] = b"x" * 4096
    assert pool.resident_bytes > 0
    for rank in (1, 0):
        ask(manager, "detach", holder=f"two/{rank}")
    assert pool.resident_bytes == 0


def test_kv_blocks_are_copied_between_memories(managers):
    manager = managers()
    in_force(manager, "a", 2)
    for rank in (0, 1):
        ask(manager, "attach", config="a", rank=rank, holder=f"i/{rank}")
    (block,) = ask(manager, "kv_lease", holder="i/0", count=1)[0]["blocks"]
    ask(manager, "kv_lease", holder="i/1", count=2)
    size = manager.store.block_bytes
    data = os.urandom(size)
    with manager.store.pools["kv/device0/0"].filling(block * size, size) as view:
        view[:] = data
    (moved,) = ask(manager, "kv_transfer", source="i/0", target="i/1", blocks=[block])[0]["blocks"]
    assert moved == 2
    assert bytes(manager.store.pools["kv/device1/0"].reading(moved * size, size)) == data


def test_experts_that_leave_a_memory_are_given_back_one_by_one_and_survive_a_crash_and_an_abort(managers):
    """Copying waits for the old rank to map the new copies; nothing is lost whatever happens then."""
    keeper = Keeper()
    manager = managers(keeper)
    in_force(manager, "one", 1)
    before = weight_bytes(manager)
    expert = manager.store.layout.expert_bytes
    contents = item_bytes(manager, "device0", "expert/0/7")
    ask(manager, "attach", config="one", rank=0, holder="old/0")
    wish = two_groups()
    report, _ = ask(manager, "prepare", early_release=True, **wish)
    lent, peak, end = set(), 0, time.monotonic() + 20
    while report["state"] != "prepared":
        assert time.monotonic() < end, report
        peak = max(peak, weight_bytes(manager))
        items = report["leaving"].get("device0", [])
        if items:
            places, fds = ask(manager, "borrow", holder="old/0", items=items)
            assert [place[0] for place in places["items"]] == items
            assert {number for _, number, _, _ in places["items"]} == set(range(len(fds)))
            ask(manager, "give_back", holder="old/0", items=items)
            lent |= set(items)
        report, _ = ask(manager, "progress", config="two")
    assert len(lent) >= 6, "all but the last few were given back while others were copied"
    dense = sum(manager.store.layout.items[key].size_bytes for key in manager.store.layout.dense_keys(0))
    assert peak <= before + dense + 2 * expert
    assert not [key for key in manager.store.copies if key in {("device0", item) for item in lent}]

    again = managers(keeper, keeper.take())
    assert set(again.store.holders["old/0"].borrowed) == lent
    ask(again, "abandon", config="two")
    ask(again, "detach", holder="old/0")
    assert item_bytes(again, "device1", "expert/0/7") == contents, "the last copy stays while it is needed"
    reply, fds = ask(again, "attach", config="one", rank=0, holder="new/0")
    assert len(reply["items"]) == len(again.store.layout.rank_keys(Topology(1), initial(2, 8, 1), 0))
    assert max(number for _, number, _, _ in reply["items"]) == len(fds) - 2, "one for KV, the others for the items"


def test_a_configuration_serves_from_other_memories_until_its_pages_are_home(managers):
    keeper = Keeper()
    manager = managers(keeper)
    in_force(manager, "one", 1)
    before = weight_bytes(manager)
    layout, expert = manager.store.layout, manager.store.layout.expert_bytes
    dense = sum(layout.items[key].size_bytes for key in layout.dense_keys(0))
    contents = item_bytes(manager, "device0", "expert/0/7")
    ask(manager, "attach", config="one", rank=0, holder="old/0")
    wish = two_groups()
    report, _ = ask(manager, "prepare", peer_later=True, **wish)
    assert settle(manager, "two", report)["state"] == "prepared"
    assert weight_bytes(manager) == before, "nothing is copied before the switch"
    for rank in (0, 1):
        ask(manager, "attach", config="two", rank=rank, holder=f"new/{rank}")
    ask(manager, "commit", config="two")
    ask(manager, "detach", holder="old/0")
    assert weight_bytes(manager) == before
    assert len(manager.store.holders["new/1"].borrowed) == len(manager.store.needs("two")[1])

    bring_home(manager, "new/1", wish, until_copied=2)
    manager = managers(keeper, keeper.take())
    assert len(manager.store.holders["new/1"].borrowed) == len(manager.store.needs("two")[1])
    found, _ = ask(manager, "attach", config="two", rank=1, holder="revived/1")
    assert [place[0] for place in found["items"]] == list(manager.store.needs("two")[1])
    ask(manager, "detach", holder="revived/1")

    peak = bring_home(manager, "new/1", wish)
    assert peak <= before + dense + 2 * expert
    assert weight_bytes(manager) == before + dense
    assert manager.store.holders["new/1"].borrowed == {}
    assert manager.store.collect() == 0, "all that nobody wants went as its items came home"
    assert ("device0", "expert/0/7") not in manager.store.copies
    assert item_bytes(manager, "device1", "expert/0/7") == contents
    assert manager.checkpoint.bytes_read == 0


def test_copying_home_does_not_wait_for_a_rank_that_is_gone(managers):
    manager = managers()
    in_force(manager, "one", 1)
    wish = two_groups()
    ask(manager, "prepare", peer_later=True, **wish)
    prepare(manager, "two", 2)
    ask(manager, "attach", config="two", rank=1, holder="new/1")
    ask(manager, "commit", config="two")
    bring_home(manager, "new/1", wish, until_copied=2)
    ask(manager, "detach", holder="new/1")
    start = time.monotonic()
    bring_home(manager, "new/1", wish)
    assert time.monotonic() - start < 4, "less than the patience of the copying thread"
    assert not [item for domain, item in manager.store.copies if domain == "device0" and item == "expert/0/7"]
