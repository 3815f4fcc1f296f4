"""How an instance is laid out over ranks and memories."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topology:
    """How an instance is spread: ``data_parallel`` groups of ``tensor_parallel`` ranks; experts are spread over all
    ranks.

    ``shared_domain`` says that all ranks can map the same memory (the CPUs of one node); otherwise each rank has a
    memory of its own (a GPU, or a CPU that stands in for one).
    """

    data_parallel: int
    tensor_parallel: int = 1
    shared_domain: bool = True

    def __post_init__(self) -> None:
        if self.data_parallel < 1 or self.tensor_parallel < 1:
            raise ValueError("a topology needs at least one data-parallel group of at least one rank")

    @property
    def ranks(self) -> int:
        """Number of ranks, which is also the expert-parallel size."""
        return self.data_parallel * self.tensor_parallel

    def tp_index(self, rank: int) -> int:
        """Position of a rank inside its tensor-parallel group."""
        return rank % self.tensor_parallel

    def leader(self, data_index: int) -> int:
        """First rank of a data-parallel group; it owns the group's scheduler."""
        return data_index * self.tensor_parallel

    def domain(self, rank: int) -> str:
        """Name of the memory that a rank computes from."""
        return "node" if self.shared_domain else f"device{rank}"
