"""The manager's pages, of this node's memory and of GPUs (over a fake driver): what is copied, what survives what, and
who may ask.
"""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import asdict

import numpy as np
import pytest
from engine_manager import Keeper, Managers, ask, in_force, item_bytes, prepare, settle, weight_bytes

from medley_engine import random_checkpoint
from medley_engine.config import UnsupportedModelError, parse_model_config
from medley_engine.memory import wire
from medley_engine.memory.checkpoint import Checkpoint, CheckpointError
from medley_engine.memory.client import ManagerClient
from medley_engine.memory.server import build_manager, serve
from medley_engine.placement import initial, rebalance
from medley_engine.topology import Topology


def test_items_hold_exactly_the_bytes_of_the_checkpoint(managers):
    manager = managers()
    report = prepare(manager, "a", 2)
    assert report["state"] == "prepared", report
    item = manager.store.layout.items["expert/1/3"]
    data = item_bytes(manager, "device0", item.key)
    checkpoint = manager.checkpoint
    for piece in item.pieces:
        entry = checkpoint.tensors[piece.tensor]
        with entry.file.open("rb") as file:
            file.seek(entry.offset)
            assert data[piece.offset_bytes : piece.offset_bytes + entry.size_bytes] == file.read(entry.size_bytes)
    total = sum(entry.size_bytes for entry in checkpoint.tensors.values())
    assert manager.checkpoint.bytes_read == total, "each tensor is read once, copies for other domains come from peers"


def test_growing_copies_from_peers_and_shrinking_frees_at_takeover(managers):
    manager = managers()
    in_force(manager, "two", 2)
    read = manager.checkpoint.bytes_read
    placement = rebalance(initial(2, 8, 2), [[1.0] * 8] * 2, 3)
    report = prepare(manager, "three", 3, placement=placement)
    assert report["plan"]["diskItems"] == 0
    assert report["plan"]["peerItems"] > 0
    assert manager.checkpoint.bytes_read == read, "nothing is read again"
    for (domain, key), copy in manager.store.copies.items():
        if domain == "device2":
            holder = next(d for (d, k) in manager.store.copies if k == key and d != domain)
            assert item_bytes(manager, domain, key) == item_bytes(manager, holder, key)
            assert copy.valid
    before = weight_bytes(manager)
    ask(manager, "commit", config="three")
    assert weight_bytes(manager) < before
    in_force(manager, "two", 2)
    assert manager.store.pools["weights/device2"].resident_bytes == 0, "a gone rank's pages are given back"


def test_pages_live_as_long_as_a_rank_maps_them(managers):
    """The old configuration's pages outlive the takeover until its ranks let go, however these end."""
    manager = managers()
    in_force(manager, "one", 1)
    child = subprocess.Popen(["sleep", "600"])
    peer = wire.Peer(child.pid, os.getuid())
    reply, fds = ask(manager, "attach", peer, config="one", rank=0, holder="old/0")
    assert max(number for _, number, _, _ in reply["items"]) == len(fds) - 2, "one for KV, the others for the items"
    in_force(manager, "two", 2)
    assert ("device0", "expert/0/7") in manager.store.copies, "the old rank still reads this expert"
    child.kill()
    child.wait()
    assert manager.reap(5.0) == ["old/0"]
    assert ("device0", "expert/0/7") not in manager.store.copies
    assert ("device1", "expert/0/7") in manager.store.copies


def test_a_new_manager_finds_pages_holders_and_leases(managers):
    keeper = Keeper()
    manager = managers(keeper)
    in_force(manager, "a", 2)
    ask(manager, "attach", config="a", rank=1, holder="i/1")
    blocks = ask(manager, "kv_lease", holder="i/1", count=5)[0]["blocks"]
    expert = item_bytes(manager, "device1", "expert/1/6")
    again = managers(keeper, keeper.take())
    assert again.restored
    assert again.checkpoint.bytes_read == 0
    assert again.store.active == "a"
    assert again.store.holders["i/1"].blocks == set(blocks)
    assert item_bytes(again, "device1", "expert/1/6") == expert
    assert prepare(again, "a", 2)["plan"]["diskItems"] == 0


def test_a_new_manager_drops_what_was_half_done_and_who_died(managers):
    keeper = Keeper()
    manager = managers(keeper)
    in_force(manager, "a", 1)
    child = subprocess.Popen(["sleep", "600"])
    ask(manager, "attach", wire.Peer(child.pid, os.getuid()), config="a", rank=0, holder="dead/0")
    child.kill()
    child.wait()
    with manager.store.lock:
        manager.store.add_config("half", Topology(2, 1, False), initial(2, 8, 2))
        manager.store.copies.reserve("device1", "expert/0/7")
        manager._save()
    again = managers(keeper, keeper.take())
    assert again.store.holders == {}
    assert set(again.store.configs) == {"a"}
    assert all(copy.valid for copy in again.store.copies.values())
    assert not [key for key in again.store.copies if key[0] == "device1"]


def test_abandoning_gives_every_page_back(managers):
    manager = managers()
    in_force(manager, "one", 1)
    before = set(manager.store.copies)
    prepare(manager, "two", 2)
    ask(manager, "abandon", config="two")
    assert set(manager.store.copies) == before
    assert ask(manager, "abandon", config="one")[0]["error"] == "conflict"
    assert ask(manager, "commit", config="two")[0]["error"] == "not_found"


@pytest.mark.parametrize("shards", [2])
def test_tensor_parallel_shards_add_up_to_the_tensor(managers, shards):
    manager = managers(tensor_parallel=shards)
    topology = asdict(Topology(1, shards, False))
    wish = {"topology": topology, "placement": initial(2, 8, shards).layers}
    settle(manager, "a", ask(manager, "prepare", config="a", **wish)[0])
    parts = []
    for shard in range(shards):
        item = manager.store.layout.items[f"dense/0/{shard}"]
        piece = next(p for p in item.pieces if p.tensor.endswith("o_proj.weight"))
        raw = item_bytes(manager, f"device{shard}", item.key)[piece.offset_bytes :][: piece.elements * 4]
        parts.append(np.frombuffer(raw, np.float32).reshape(piece.shape))
    entry = manager.checkpoint.tensors[piece.tensor]
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


def test_a_device_that_is_full_refuses_a_preparation_and_keeps_nothing_of_it(fake_cuda, folder, monkeypatch):
    manager = Managers(folder, "cuda over a fake driver")()
    in_force(manager, "one", 1)
    before = weight_bytes(manager)
    monkeypatch.setenv("FAKE_CUDA_DEVICE_BYTES", str(6 * 1024 * 1024))
    report = prepare(manager, "two", 2)
    assert report["state"] == "failed"
    assert "CUDA_ERROR_OUT_OF_MEMORY" in report["failure"]
    assert weight_bytes(manager) == before
    assert fake_cuda()["handles"] == 0, "memory is held by what is mapped and by descriptors alone"


def test_only_this_user_with_the_token_is_let_in(managers, tmp_path):
    path = tmp_path / "hmm.sock"
    threading.Thread(target=serve, args=(managers(), path, "right"), daemon=True).start()
    client = ManagerClient(path, "right", role="test")
    assert client.call("describe")["active"] is None
    with pytest.raises(wire.RemoteError, match="unauthenticated"):
        ManagerClient(path, "wrong", role="test", deadline_s=0).call("describe")
    assert path.stat().st_mode & 0o077 == 0
    client.close()


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


def test_broken_checkpoints_name_the_tensor(managers, folder):
    manager = managers()
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
