"""Collectives of one instance over gloo (NCCL for tensors on GPUs), without torch's global process group.

Groups are built from a store and a prefix of their own, so that instances of several sizes live side by side in one
node, and a process can belong to one today and none tomorrow.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed

dist: Any = torch.distributed
"""torch's stubs leave out the stores and the options of groups, which are public by use."""


def _gloo(store: Any, prefix: str, rank: int, size: int, timeout_s: float) -> Any:
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = timedelta(seconds=timeout_s)
    return dist.ProcessGroupGloo(dist.PrefixStore(prefix, store), rank, size, options)


class Collective:
    """The whole instance, and this rank's tensor-parallel group inside it.

    Ranks are numbered data-parallel group by group: rank = data index × tensor_parallel + tensor index.
    """

    def __init__(self, store_file: Path, rank: int, size: int, tensor_parallel: int, timeout_s: float = 60.0) -> None:
        self.rank, self.size, self.tensor_parallel = rank, size, tensor_parallel
        self.tp_rank = rank % tensor_parallel
        self._all: Any = None
        self._tensor: Any = None
        if size > 1:
            store = dist.FileStore(str(store_file), size)
            self._all = _gloo(store, "all", rank, size, timeout_s)
            if tensor_parallel > 1:
                prefix = f"tensor{rank // tensor_parallel}"
                self._tensor = _gloo(store, prefix, self.tp_rank, tensor_parallel, timeout_s)

    def gather(self, values: list[int]) -> list[list[int]]:
        """Every rank's small integers, by rank; each rank must give as many."""
        if self._all is None:
            return [values]
        mine = torch.tensor(values, dtype=torch.int64)
        out = [torch.empty_like(mine) for _ in range(self.size)]
        self._all.allgather([out], [mine]).wait()
        return [tensor.tolist() for tensor in out]

    def exchange(self, send: torch.Tensor, send_counts: list[int], receive_counts: list[int]) -> torch.Tensor:
        """All-to-all of rows: ``send`` (sum of counts, width) is cut by destination rank; the result is cut by source
        rank.
        """
        if self._all is None:
            return send
        out = send.new_empty((sum(receive_counts), send.shape[1]))
        self._all.alltoall_base(out, send.contiguous(), receive_counts, send_counts).wait()
        return out

    def exchange_counts(self, counts: list[int], *, flag: bool = False) -> tuple[list[int], bool]:
        """All-to-all of one integer per pair of ranks, and whether any rank raised its flag."""
        if self._all is None:
            return counts, flag
        mine = torch.tensor([[count, int(flag)] for count in counts], dtype=torch.int64)
        out = torch.empty_like(mine)
        self._all.alltoall_base(out, mine, [], []).wait()
        pairs = out.tolist()
        return [int(count) for count, _ in pairs], any(raised for _, raised in pairs)

    def sum_shards(self, part: torch.Tensor) -> torch.Tensor:
        """Sum over the tensor-parallel group, in rank order so that every rank and every run gets the same bits."""
        if self._tensor is None:
            return part
        parts = self.gather_shards(part)
        total = parts[0]
        for other in parts[1:]:
            total = total + other
        return total

    def gather_shards(self, part: torch.Tensor) -> list[torch.Tensor]:
        """Equal-shaped tensors of the tensor-parallel group, by tensor index."""
        if self._tensor is None:
            return [part]
        out = [torch.empty_like(part) for _ in range(self.tensor_parallel)]
        self._tensor.allgather([out], [part.contiguous()]).wait()
        return out

    def from_leader(self, data: bytes) -> bytes:
        """Bytes of the tensor-parallel group's first rank; what the others pass is ignored."""
        if self._tensor is None:
            return data
        size = torch.tensor([len(data)], dtype=torch.int64)
        self._tensor.broadcast([size], self._root()).wait()
        body = torch.zeros(int(size.item()), dtype=torch.uint8)
        if self.tp_rank == 0:
            body = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._tensor.broadcast([body], self._root()).wait()
        return body.numpy().tobytes()

    @staticmethod
    def _root() -> Any:
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        return options
