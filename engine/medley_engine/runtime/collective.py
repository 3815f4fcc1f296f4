"""Collectives of one instance, without global state: instances of several sizes live side by side in one node, and a
process can belong to one today and none tomorrow. Tensors travel as bytes over a :class:`Mesh`; those of GPUs go
through the node's memory on their way, which works between any two devices and asks nothing of a new instance.
"""

from __future__ import annotations

import struct
from pathlib import Path

import torch

from medley_engine.runtime.mesh import Mesh

_FLAG = struct.Struct("<Q")


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    if not tensor.numel():
        return memoryview(b"")
    return memoryview(tensor.contiguous().view(torch.uint8).cpu().numpy()).cast("B")


def _tensor_from(data: memoryview | bytearray, like: torch.Tensor) -> torch.Tensor:
    return torch.frombuffer(data, dtype=like.dtype).to(like.device)


def _rows_from(data: memoryview, like: torch.Tensor) -> torch.Tensor:
    if not data:
        return like.new_empty((0, like.shape[1]))
    return _tensor_from(data, like).view(-1, like.shape[1])


class Collective:
    """The whole instance, and this rank's tensor-parallel group inside it.

    Ranks are numbered data-parallel group by group: rank = data index × tensor_parallel + tensor index.
    """

    def __init__(
        self, prefix: Path, rank: int, size: int, *, token: str, tensor_parallel: int = 1, timeout_s: float = 60.0
    ) -> None:
        self.rank, self.size, self.tensor_parallel = rank, size, tensor_parallel
        self.tp_rank = rank % tensor_parallel
        first = rank - self.tp_rank
        self._group = range(first, first + tensor_parallel)
        self._mesh = Mesh(prefix, rank, size, token, timeout_s) if size > 1 else None
        self._others = [other for other in range(size) if other != rank]

    def gather(self, values: list[int]) -> list[list[int]]:
        """Every rank's small integers, by rank; each rank must give as many."""
        if self._mesh is None:
            return [values]
        shape = struct.Struct(f"<{len(values)}q")
        got = self._mesh.swap(dict.fromkeys(self._others, shape.pack(*values)), self._others)
        return [values if rank == self.rank else list(shape.unpack(got[rank])) for rank in range(self.size)]

    def exchange(
        self, rows: torch.Tensor, counts: list[int], *, flag: bool = False
    ) -> tuple[torch.Tensor, list[int], bool]:
        """All-to-all of rows: ``rows`` (sum of counts, width) is cut by destination rank.

        Returns:
            What came, one source rank after the other; how many rows from each; whether any rank raised its flag.
        """
        if self._mesh is None:
            return rows, counts, flag
        parts = list(torch.split(rows, counts))
        raised = _FLAG.pack(flag)
        got = self._mesh.swap({to: b"".join((raised, _bytes_of(parts[to]))) for to in self._others}, self._others)
        came = [
            parts[self.rank] if source == self.rank else _rows_from(memoryview(got[source])[_FLAG.size :], rows)
            for source in range(self.size)
        ]
        flags = [flag, *(bool(_FLAG.unpack_from(data)[0]) for data in got.values())]
        return torch.cat(came), [part.shape[0] for part in came], any(flags)

    def sum_shards(self, part: torch.Tensor) -> torch.Tensor:
        """Sum over the tensor-parallel group, in rank order so that every rank and every run gets the same bits."""
        if self.tensor_parallel == 1:
            return part
        parts = self.gather_shards(part)
        total = parts[0]
        for other in parts[1:]:
            total = total + other
        return total

    def gather_shards(self, part: torch.Tensor) -> list[torch.Tensor]:
        """Equal-shaped tensors of the tensor-parallel group, by tensor index."""
        if self.tensor_parallel == 1:
            return [part]
        assert self._mesh is not None
        others = [rank for rank in self._group if rank != self.rank]
        got = self._mesh.swap(dict.fromkeys(others, _bytes_of(part)), others)
        return [part if rank == self.rank else _tensor_from(got[rank], part).view(part.shape) for rank in self._group]

    def from_leader(self, data: bytes) -> bytes:
        """Bytes of the tensor-parallel group's first rank; what the others pass is ignored."""
        if self.tensor_parallel == 1:
            return data
        assert self._mesh is not None
        leader = self._group[0]
        if self.rank == leader:
            self._mesh.swap(dict.fromkeys(self._group[1:], data), ())
            return data
        return bytes(self._mesh.swap({}, (leader,))[leader])

    def close(self) -> None:
        """End the connections to the other ranks."""
        if self._mesh is not None:
            self._mesh.close()
