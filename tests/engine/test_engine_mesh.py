"""Collectives over sockets: any sizes in any direction, and a dead rank is noticed at once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: engine)")

from medley_engine.runtime.collective import Collective  # noqa: E402
from medley_engine.runtime.mesh import PeerLostError  # noqa: E402


def together(tmp_path, size, work, tensor_parallel=1, timeout_s=20.0):
    """Run ``work(collective)`` on each rank; results by rank."""

    def one(rank):
        comm = Collective(
            tmp_path / "ranks", rank, size, token="token", tensor_parallel=tensor_parallel, timeout_s=timeout_s
        )
        try:
            return work(comm)
        finally:
            comm.close()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


@pytest.mark.parametrize("rows", [0, 1, 3, 5000], ids=lambda rows: f"{rows} rows")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_go_where_they_are_sent_whatever_their_number(tmp_path, rows, dtype):
    """5000 rows of 64 numbers are more than a socket's buffer holds, in all directions at once."""
    size = 3

    def work(comm):
        counts = [rows * (to + 1) for to in range(size)]
        sent = torch.cat([torch.full((count, 64), 10 * comm.rank + to) for to, count in enumerate(counts)]).to(dtype)
        came, received, flagged = comm.exchange(sent, counts, flag=comm.rank == 1)
        assert flagged
        assert received == [rows * (comm.rank + 1)] * size
        back, _, flagged = comm.exchange(came, received)
        assert not flagged
        assert torch.equal(back, sent)
        return came[:, 0].tolist()

    got = together(tmp_path, size, work)
    for rank, values in enumerate(got):
        assert values == [10.0 * source + rank for source in range(size) for _ in range(rows * (rank + 1))]
    assert not list(tmp_path.iterdir()), "nothing is left where the ranks met"


def test_groups_gather_and_sum_in_their_own_order(tmp_path):
    def work(comm):
        everyone = comm.gather([comm.rank, -comm.rank])
        led = comm.from_leader(b"led by %d" % comm.rank)
        return everyone, led, comm.sum_shards(torch.tensor([[1.0 * comm.rank]])).item()

    for rank, (everyone, led, total) in enumerate(together(tmp_path, 4, work, tensor_parallel=2)):
        assert everyone == [[other, -other] for other in range(4)]
        assert led == b"led by %d" % (rank // 2 * 2)
        assert total == {0: 1.0, 1: 5.0}[rank // 2]


def test_a_dead_rank_is_noticed_at_once(tmp_path):
    def work(comm):
        if comm.rank == 0:
            return None
        start = time.monotonic()
        with pytest.raises(PeerLostError):
            comm.gather([1])
        return time.monotonic() - start

    assert together(tmp_path, 2, work)[1] < 10.0, "long before the time limit"


def test_a_silent_rank_is_noticed_in_time(tmp_path):
    done = threading.Event()

    def work(comm):
        if comm.rank == 0:
            done.wait(20)
            return
        with pytest.raises(PeerLostError, match="too long"):
            comm.gather([1])
        done.set()

    together(tmp_path, 2, work, timeout_s=0.5)
    assert done.is_set()
