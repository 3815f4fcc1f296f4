"""What carries pages and words: ranges, pools, journals, frames, gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley_engine.memory import wire
from medley_engine.memory.host import HostPool
from medley_engine.memory.journal import Journal
from medley_engine.memory.mapping import PAGE_BYTES, VirtualRange
from medley_engine.memory.peer import GlooEnd


def test_a_range_shows_the_pages_of_a_pool_in_any_order():
    pool = HostPool.create("test", 1 << 20)
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


def test_pages_are_put_under_a_reader_without_it_seeing_anything_else():
    """What lets ranks map items anew while a step runs."""
    size = 64 * PAGE_BYTES
    pool, stop, wrong = HostPool.create("test", 2 * size), threading.Event(), []
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
