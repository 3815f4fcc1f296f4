"""What a rank process is told at its start; apart from the runtime so that its parents need no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RankSpec:
    """What a rank process is told at its start."""

    instance: str
    rank: int
    size: int
    tensor_parallel: int
    model: str
    dtype: str
    page_bytes: int
    block_tokens: int
    run_dir: str
    device: str = "cpu"
    chunk_tokens: int = 32
    budget_tokens: int = 128
    max_running: int = 64
    batch_invariant: bool = True
    threads: int = 1
    zero_copy: bool = True
    page_remap: bool = True
    shared_kv: bool = True

    @property
    def socket_path(self) -> Path:
        """Where the coordinator reaches this rank."""
        return Path(self.run_dir) / f"rank-{self.instance}-{self.rank}.sock"

    @property
    def holder(self) -> str:
        """Name of this rank in the manager's book."""
        return f"{self.instance}/{self.rank}"
