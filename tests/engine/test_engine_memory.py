"""Pages, journals, the wire and the manager's book: what survives what, and who may ask."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley_engine import random_checkpoint
from medley_engine.config import Topology, UnsupportedModelError, parse_model_config
from medley_engine.memory import wire
from medley_engine.memory.checkpoint import Checkpoint, CheckpointError
from medley_engine.memory.client import ManagerClient
from medley_engine.memory.journal import Journal
from medley_engine.memory.mapping import PAGE_BYTES, Pool, VirtualRange
from medley_engine.memory.peer import GlooEnd
from medley_engine.memory.server import build_manager, serve
from medley_engine.placement import initial, rebalance

ME = wire.Peer(os.getpid(), os.getuid())


class Keeper:
    """Keeps descriptors as the supervisor does."""

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}

    def put(self, name, fd):
        self.fds[name] = os.dup(fd)


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra: engine)")
    random_checkpoint.write(tmp_path / "model", random_checkpoint.model_config("qwen3_moe", layers=2))
    return tmp_path / "model"


def manager_for(folder, keeper=None, kept=None, **options):
    return build_manager(
        folder, "float32", 1, 4096, block_tokens=8, blocks_per_rank=16, keeper=keeper, kept=kept or {}, **options
    )


def ask(manager, do, peer=ME, **fields):
    reply, fds = manager.handle({"do": do, **fields}, peer)
    return reply, fds


def prepare(manager, name, size, *, shared=True, placement=None, wait=True):
    placement = placement or initial(2, 8, size)
    topology = asdict(Topology(size, 1, shared))
    reply, _ = ask(manager, "prepare", config=name, topology=topology, placement=placement.layers)
    end = time.monotonic() + 20
    while wait and reply["state"] in ("planning", "copying"):
        assert time.monotonic() < end
        reply, _ = ask(manager, "progress", config=name)
    return reply


def item_bytes(manager, domain, key):
    extent = manager.store.copies[domain, key].extent
    return os.pread(manager.store.pools[f"weights/{domain}"].fd, extent.size, extent.offset)


def resident_bytes(manager):
    with manager.store.lock:
        return sum(pool.resident_bytes for pool in manager.store.pools.values())


def test_items_hold_exactly_the_bytes_of_the_checkpoint(folder):
    manager = manager_for(folder)
    report = prepare(manager, "a", 2, shared=False)
    assert report["state"] == "prepared", report
    item = manager.store.layout.items["expert/1/3"]
    data = item_bytes(manager, "device0", item.key)
    checkpoint = Checkpoint(folder)
    for piece in item.pieces:
        entry = checkpoint.tensors[piece.tensor]
        with entry.file.open("rb") as file:
            file.seek(entry.offset)
            assert data[piece.offset_bytes : piece.offset_bytes + entry.size_bytes] == file.read(entry.size_bytes)
    total = sum(entry.size_bytes for entry in checkpoint.tensors.values())
    assert manager.checkpoint.bytes_read == total, "each tensor is read once, copies for other domains come from peers"


@pytest.mark.parametrize("shards", [2])
def test_tensor_parallel_shards_add_up_to_the_tensor(folder, shards):
    manager = build_manager(folder, "float32", shards, 4096, block_tokens=8, blocks_per_rank=16)
    topology = asdict(Topology(1, shards))
    ask(manager, "prepare", config="a", topology=topology, placement=initial(2, 8, shards).layers)
    end = time.monotonic() + 20
    while ask(manager, "progress", config="a")[0]["state"] != "prepared":
        assert time.monotonic() < end
    parts = []
    for shard in range(shards):
        item = manager.store.layout.items[f"dense/0/{shard}"]
        piece = next(p for p in item.pieces if p.tensor.endswith("o_proj.weight"))
        raw = item_bytes(manager, "node", item.key)[piece.offset_bytes :][: piece.elements * 4]
        parts.append(np.frombuffer(raw, np.float32).reshape(piece.shape))
    entry = Checkpoint(folder).tensors[piece.tensor]
    whole = np.fromfile(entry.file, np.float32, entry.size_bytes // 4, offset=entry.offset).reshape(entry.shape)
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize(
    ("stored", "wanted"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("float32", "float64")]
)
def test_numeric_types_are_converted(tmp_path, stored, wanted):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra: engine)")
    random_checkpoint.write(tmp_path, random_checkpoint.model_config("mixtral", layers=1, dtype=stored))
    checkpoint = Checkpoint(tmp_path)
    manager = build_manager(tmp_path, wanted, 1, 4096, block_tokens=8, blocks_per_rank=4)
    item = manager.store.layout.items["expert/0/1"]
    target = bytearray(item.size_bytes)
    checkpoint.read_item(item, wanted, memoryview(target))
    load_file = pytest.importorskip("safetensors.torch").load_file
    for piece in item.pieces:
        expected = load_file(checkpoint.tensors[piece.tensor].file)[piece.tensor].to(getattr(torch, wanted))
        dtype = getattr(torch, wanted)
        got = torch.frombuffer(target, dtype=dtype, count=piece.elements, offset=piece.offset_bytes)
        assert torch.equal(got.view(piece.shape), expected)


def test_growing_copies_from_peers_and_shrinking_frees_at_takeover(folder):
    manager = manager_for(folder)
    prepare(manager, "two", 2, shared=False)
    ask(manager, "commit", config="two")
    read = manager.checkpoint.bytes_read
    placement = rebalance(initial(2, 8, 2), [[1.0] * 8] * 2, 3)
    report = prepare(manager, "three", 3, shared=False, placement=placement)
    assert report["plan"]["diskItems"] == 0
    assert report["plan"]["peerItems"] > 0
    assert manager.checkpoint.bytes_read == read, "nothing is read again"
    for (domain, key), copy in manager.store.copies.items():
        if domain == "device2":
            holder = next(d for (d, k) in manager.store.copies if k == key and d != domain)
            assert item_bytes(manager, domain, key) == item_bytes(manager, holder, key)
            assert copy.valid
    before = sum(pool.resident_bytes for pool in manager.store.pools.values())
    ask(manager, "commit", config="three")
    assert sum(pool.resident_bytes for pool in manager.store.pools.values()) < before
    ask(manager, "prepare", config="two", topology=asdict(Topology(2, 1, False)), placement=initial(2, 8, 2).layers)
    end = time.monotonic() + 20
    while ask(manager, "progress", config="two")[0]["state"] != "prepared":
        assert time.monotonic() < end
    ask(manager, "commit", config="two")
    assert manager.store.pools["weights/device2"].resident_bytes == 0, "a gone rank's pages are given back"


def test_pages_live_as_long_as_a_rank_maps_them(folder):
    """The old configuration's pages outlive the takeover until its ranks let go, however these end."""
    manager = manager_for(folder)
    prepare(manager, "one", 1, shared=False)
    ask(manager, "commit", config="one")
    child = subprocess.Popen(["sleep", "600"])
    peer = wire.Peer(child.pid, os.getuid())
    _, fds = ask(manager, "attach", peer, config="one", rank=0, holder="old/0")
    assert len(fds) == 2
    prepare(manager, "two", 2, shared=False)
    ask(manager, "commit", config="two")
    assert ("device0", "expert/0/7") in manager.store.copies, "the old rank still reads this expert"
    child.kill()
    child.wait()
    assert manager.reap(5.0) == ["old/0"]
    assert ("device0", "expert/0/7") not in manager.store.copies
    assert ("device1", "expert/0/7") in manager.store.copies


def test_a_new_manager_finds_pages_holders_and_leases(folder):
    keeper = Keeper()
    manager = manager_for(folder, keeper)
    prepare(manager, "a", 2)
    ask(manager, "commit", config="a")
    ask(manager, "attach", config="a", rank=1, holder="i/1")
    blocks = ask(manager, "kv_lease", holder="i/1", count=5)[0]["blocks"]
    expert = item_bytes(manager, "node", "expert/1/6")
    again = manager_for(folder, keeper, dict(keeper.fds))
    assert again.restored
    assert again.checkpoint.bytes_read == 0
    assert again.store.active == "a"
    assert again.store.holders["i/1"].blocks == set(blocks)
    assert item_bytes(again, "node", "expert/1/6") == expert
    assert prepare(again, "a", 2)["plan"]["diskItems"] == 0


def test_a_new_manager_drops_what_was_half_done_and_who_died(folder):
    keeper = Keeper()
    manager = manager_for(folder, keeper)
    prepare(manager, "a", 1)
    ask(manager, "commit", config="a")
    child = subprocess.Popen(["sleep", "600"])
    ask(manager, "attach", wire.Peer(child.pid, os.getuid()), config="a", rank=0, holder="dead/0")
    child.kill()
    child.wait()
    with manager.store.lock:
        manager.store.add_config("half", Topology(2, 1, False), initial(2, 8, 2))
        manager.store.reserve("device1", "expert/0/7")
        manager._save()
    again = manager_for(folder, keeper, dict(keeper.fds))
    assert again.store.holders == {}
    assert set(again.store.configs) == {"a"}
    assert all(copy.valid for copy in again.store.copies.values())
    assert not [key for key in again.store.copies if key[0] == "device1"]


def test_abandoning_gives_every_page_back(folder):
    manager = manager_for(folder)
    prepare(manager, "one", 1, shared=False)
    ask(manager, "commit", config="one")
    before = set(manager.store.copies)
    prepare(manager, "two", 2, shared=False)
    ask(manager, "abandon", config="two")
    assert set(manager.store.copies) == before
    assert ask(manager, "abandon", config="one")[0]["error"] == "conflict"
    assert ask(manager, "commit", config="two")[0]["error"] == "not_found"


def test_kv_blocks_are_lent_once_and_handed_over(folder):
    manager = manager_for(folder)
    prepare(manager, "a", 2)
    ask(manager, "commit", config="a")
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


def test_an_instance_that_drains_still_gets_blocks_and_they_go_with_it(folder):
    manager = manager_for(folder)
    for name, size in (("two", 2), ("one", 1)):
        prepare(manager, name, size, shared=False)
        for rank in range(size):
            ask(manager, "attach", config=name, rank=rank, holder=f"{name}/{rank}")
        ask(manager, "commit", config=name)
    blocks = ask(manager, "kv_lease", holder="two/1", count=3)[0]["blocks"]
    assert len(blocks) == 3, "the memory that the new configuration leaves"
    pool = manager.store.pools["kv/device1/0"]
    os.pwrite(pool.fd, b"x" * 4096, manager.store.block_bytes * blocks[-1])
    assert pool.resident_bytes > 0
    for rank in (1, 0):
        ask(manager, "detach", holder=f"two/{rank}")
    assert pool.resident_bytes == 0


def test_kv_blocks_are_copied_between_memories(folder):
    manager = manager_for(folder)
    prepare(manager, "a", 2, shared=False)
    ask(manager, "commit", config="a")
    for rank in (0, 1):
        ask(manager, "attach", config="a", rank=rank, holder=f"i/{rank}")
    (block,) = ask(manager, "kv_lease", holder="i/0", count=1)[0]["blocks"]
    ask(manager, "kv_lease", holder="i/1", count=2)
    size = manager.store.block_bytes
    data = os.urandom(size)
    os.pwrite(manager.store.pools["kv/device0/0"].fd, data, block * size)
    (moved,) = ask(manager, "kv_transfer", source="i/0", target="i/1", blocks=[block])[0]["blocks"]
    assert moved == 2
    assert os.pread(manager.store.pools["kv/device1/0"].fd, size, moved * size) == data


def test_experts_that_leave_a_memory_are_given_back_one_by_one_and_survive_a_crash_and_an_abort(folder):
    """Copying waits for the old rank to map the new copies; nothing is lost whatever happens then."""
    keeper = Keeper()
    manager = manager_for(folder, keeper)
    prepare(manager, "one", 1, shared=False)
    ask(manager, "commit", config="one")
    before = resident_bytes(manager)
    expert = manager.store.layout.expert_bytes
    contents = item_bytes(manager, "device0", "expert/0/7")
    ask(manager, "attach", config="one", rank=0, holder="old/0")
    wish = {"config": "two", "topology": asdict(Topology(2, 1, False)), "placement": initial(2, 8, 2).layers}
    report, _ = ask(manager, "prepare", early_release=True, **wish)
    lent, peak, end = set(), 0, time.monotonic() + 20
    while report["state"] != "prepared":
        assert time.monotonic() < end, report
        peak = max(peak, resident_bytes(manager))
        items = report["leaving"].get("device0", [])
        if items:
            places, fds = ask(manager, "borrow", holder="old/0", items=items)
            assert [place[0] for place in places["items"]] == items
            assert len(fds) == 1
            ask(manager, "give_back", holder="old/0", items=items)
            lent |= set(items)
        report, _ = ask(manager, "progress", config="two")
    assert len(lent) >= 6, "all but the last few were given back while others were copied"
    dense = sum(manager.store.layout.items[key].size_bytes for key in manager.store.layout.dense_keys(0))
    assert peak <= before + dense + 2 * expert
    assert not [key for key in manager.store.copies if key in {("device0", item) for item in lent}]

    again = manager_for(folder, keeper, dict(keeper.fds))
    assert set(again.store.holders["old/0"].borrowed) == lent
    ask(again, "abandon", config="two")
    ask(again, "detach", holder="old/0")
    assert item_bytes(again, "device1", "expert/0/7") == contents, "the last copy stays while it is needed"
    reply, fds = ask(again, "attach", config="one", rank=0, holder="new/0")
    assert len(reply["items"]) == len(again.store.layout.rank_keys(Topology(1), initial(2, 8, 1), 0))
    assert len(fds) == 3, "KV, its own memory, and the one that it borrows from"


def bring_home(manager, holder, wish, *, until_copied=None):
    """Do what a coordinator and a rank do after a switch; returns the most memory that was taken meanwhile."""
    report, _ = ask(manager, "prepare", homewards=True, **wish)
    peak, end = 0, time.monotonic() + 20
    while report["state"] in ("planning", "copying") or report["arrived"]:
        assert time.monotonic() < end, report
        peak = max(peak, resident_bytes(manager))
        for items in report["arrived"].values():
            if until_copied is not None and len(items) >= until_copied:
                return peak
            if until_copied is None:
                places, _ = ask(manager, "home", holder=holder, items=items)
                assert [place[0] for place in places["items"]] == items
                ask(manager, "settled", holder=holder, items=items)
        report, _ = ask(manager, "progress", config=wish["config"])
    assert report["state"] == "prepared", report
    return peak


def test_a_configuration_serves_from_other_memories_until_its_pages_are_home(folder):
    keeper = Keeper()
    manager = manager_for(folder, keeper)
    prepare(manager, "one", 1, shared=False)
    ask(manager, "commit", config="one")
    before = resident_bytes(manager)
    layout, expert = manager.store.layout, manager.store.layout.expert_bytes
    dense = sum(layout.items[key].size_bytes for key in layout.dense_keys(0))
    contents = item_bytes(manager, "device0", "expert/0/7")
    ask(manager, "attach", config="one", rank=0, holder="old/0")
    wish = {"config": "two", "topology": asdict(Topology(2, 1, False)), "placement": initial(2, 8, 2).layers}
    report, _ = ask(manager, "prepare", peer_later=True, **wish)
    while report["state"] in ("planning", "copying"):
        report, _ = ask(manager, "progress", config="two")
    assert report["state"] == "prepared", report
    assert resident_bytes(manager) == before, "nothing is copied before the switch"
    for rank in (0, 1):
        ask(manager, "attach", config="two", rank=rank, holder=f"new/{rank}")
    ask(manager, "commit", config="two")
    ask(manager, "detach", holder="old/0")
    assert resident_bytes(manager) == before
    assert len(manager.store.holders["new/1"].borrowed) == len(manager.store.needs("two")[1])

    bring_home(manager, "new/1", wish, until_copied=2)
    manager = manager_for(folder, keeper, dict(keeper.fds))
    assert len(manager.store.holders["new/1"].borrowed) == len(manager.store.needs("two")[1])
    found, _ = ask(manager, "attach", config="two", rank=1, holder="revived/1")
    assert [place[0] for place in found["items"]] == list(manager.store.needs("two")[1])
    ask(manager, "detach", holder="revived/1")

    peak = bring_home(manager, "new/1", wish)
    assert peak <= before + dense + 2 * expert
    assert resident_bytes(manager) == before + dense
    assert manager.store.holders["new/1"].borrowed == {}
    assert manager.store.collect() == 0, "all that nobody wants went as its items came home"
    assert ("device0", "expert/0/7") not in manager.store.copies
    assert item_bytes(manager, "device1", "expert/0/7") == contents
    assert manager.checkpoint.bytes_read == 0


def test_copying_home_does_not_wait_for_a_rank_that_is_gone(folder):
    manager = manager_for(folder)
    prepare(manager, "one", 1, shared=False)
    ask(manager, "commit", config="one")
    wish = {"config": "two", "topology": asdict(Topology(2, 1, False)), "placement": initial(2, 8, 2).layers}
    ask(manager, "prepare", peer_later=True, **wish)
    prepare(manager, "two", 2, shared=False)
    ask(manager, "attach", config="two", rank=1, holder="new/1")
    ask(manager, "commit", config="two")
    bring_home(manager, "new/1", wish, until_copied=2)
    ask(manager, "detach", holder="new/1")
    start = time.monotonic()
    bring_home(manager, "new/1", wish)
    assert time.monotonic() - start < 4, "less than the patience of the copying thread"
    assert not [item for domain, item in manager.store.copies if domain == "device0" and item == "expert/0/7"]


def test_pages_are_put_under_a_reader_without_it_seeing_anything_else():
    """What lets ranks map items anew while a step runs."""
    size = 64 * PAGE_BYTES
    pool, stop, wrong = Pool.create("test", 2 * size), threading.Event(), []
    for half in (0, size):
        os.pwrite(pool.fd, bytes(range(256)) * (size // 256), half)
    shown = VirtualRange(size)
    shown.map(pool.fd, 0, 0, size)
    expected = bytes(shown.buffer())

    def read():
        while not stop.is_set():
            if bytes(shown.buffer()) != expected:
                wrong.append("other bytes")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(2000):
        shown.map(pool.fd, size * (turn % 2), 0, size)
    stop.set()
    for reader in readers:
        reader.join()
    shown.close()
    pool.close()
    assert not wrong


def test_gloo_moves_bytes_between_two_processes(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra: engine)")
    data = os.urandom(3_000_000)
    (tmp_path / "data").write_bytes(data)
    code = (
        "import sys, torch.distributed as dist; from medley_engine.memory.peer import GlooEnd; "
        "end = GlooEnd(dist.FileStore(sys.argv[1] + '/store', 2), 1, chunk_bytes=1 << 20); "
        "end.send(memoryview(open(sys.argv[1] + '/data', 'rb').read()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "engine")}
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    got = bytearray(len(data))
    end = GlooEnd(torch.distributed.FileStore(str(tmp_path / "store"), 2), 0, chunk_bytes=1 << 20)
    end.receive(memoryview(got))
    assert child.wait(30) == 0
    assert bytes(got) == data


def test_only_this_user_with_the_token_is_let_in(folder, tmp_path):
    path = tmp_path / "hmm.sock"
    threading.Thread(target=serve, args=(manager_for(folder), path, "right"), daemon=True).start()
    client = ManagerClient(path, "right", role="test")
    assert client.call("describe")["active"] is None
    with pytest.raises(wire.RemoteError, match="unauthenticated"):
        ManagerClient(path, "wrong", role="test", deadline_s=0).call("describe")
    assert path.stat().st_mode & 0o077 == 0
    client.close()


def test_a_range_shows_the_pages_of_a_pool_in_any_order():
    pool = Pool.create("test", 1 << 20)
    for number in range(4):
        os.pwrite(pool.fd, bytes([number]) * 4096, number * 4096)
    view = VirtualRange(4 * 4096)
    for at, number in enumerate((2, 0, 3, 1)):
        view.map(pool.fd, number * 4096, at * 4096, 4096)
    assert bytes(view.buffer())[::4096] == bytes([2, 0, 3, 1])
    os.pwrite(pool.fd, b"\xff", 3 * 4096)
    assert bytes(view.buffer(2 * 4096, 1)) == b"\xff", "the same pages, not a copy"
    pool.punch(0, 4 * 4096)
    assert pool.resident_bytes == 0
    assert bytes(view.buffer(0, 1)) == b"\0"
    view.close()
    pool.close()


@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=200_000), max_size=3), min_size=1, max_size=5),
    st.data(),
)
def test_a_journal_gives_the_last_whole_state(states, data):
    journal = Journal.create("test")
    try:
        for state in states:
            journal.store(state)
        assert Journal(journal.fd).load() == states[-1]
        torn = data.draw(st.booleans())
        if torn and len(states) > 1 and states[-1] != states[-2] and len(str(states)) < 30_000:
            size = os.fstat(journal.fd).st_size // 2
            slot = len(states) % 2 * size
            os.pwrite(journal.fd, b"\x00\xff", slot + 21)
            assert Journal(journal.fd).load() in (states[-2], states[-1])
    finally:
        os.close(journal.fd)


def test_a_frame_carries_descriptors_and_a_broken_one_is_an_error():
    left, right = socket.socketpair()
    with left, right:
        read, write = os.pipe()
        wire.send_frame(left, {"n": "x" * 500_00}, [write])
        frame, fds = wire.receive_frame(right)
        assert len(frame["n"]) == 500_00
        os.write(fds[0], b"hi")
        assert os.read(read, 2) == b"hi"
        for fd in (read, write, *fds):
            os.close(fd)
        left.sendall(b"\x00\x00\x00\x09half")
        left.shutdown(socket.SHUT_WR)
        with pytest.raises(wire.WireError, match="inside a frame"):
            wire.receive_frame(right)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_type 'llama3'"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
    ],
)
def test_models_that_are_not_served_are_refused_by_name(change, message):
    with pytest.raises(UnsupportedModelError, match=message):
        parse_model_config({**random_checkpoint.model_config("qwen3_moe"), **change})


def test_broken_checkpoints_name_the_tensor(folder):
    manager = manager_for(folder)
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    del manager.checkpoint.tensors[name]
    report = prepare(manager, "a", 1)
    assert report["state"] == "failed"
    assert name in report["failure"]
    assert manager.store.copies == {}
    shard = next(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:7])
    with pytest.raises(CheckpointError, match="too short"):
        Checkpoint(folder)
