"""Settings of one engine, given once at its start and passed to every process as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

_GPU_PAGE_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True)
class Settings:
    """What ``medley-engine serve`` was told. Memory sizes are per rank."""

    model: str
    run_dir: str
    served_name: str = "model"
    host: str = "127.0.0.1"
    port: int = 8000
    data_parallel: int = 1
    max_data_parallel: int = 8
    tensor_parallel: int = 1
    shared_domain: bool = True
    device: str = "cpu"
    peer_access: bool = True
    dtype: str = "float32"
    page_bytes: int = 4096
    block_tokens: int = 16
    blocks_per_rank: int = 512
    chunk_tokens: int = 32
    budget_tokens: int = 64
    max_running: int = 32
    max_queue: int = 256
    batch_invariant: bool = True
    threads: int = 1
    standbys: int = 2
    arm_standbys: bool = True
    copy_after_switch: bool = True
    home_share: float = 0.1
    standby_delay_s: float = 10.0
    spare_experts: int = 0
    drain_timeout_s: float = 300.0
    handover: str = "kv"
    read_timeout_s: float = 30.0
    max_body_bytes: int = 4 * 1024 * 1024
    transport: str = "memory"
    auto_scale: bool = False
    ttft_objective_s: float = 2.0
    tpot_objective_s: float = 0.5
    load_window_s: float = 30.0
    # What follows exists to measure what each mechanism is worth, and to test failures.
    shared_pages: bool = True
    peer_copy: bool = True
    keep_standbys: bool = True
    zero_copy: bool = True
    page_remap: bool = True
    phase_delay_s: float = 0.0

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device {self.device!r} is neither cpu nor cuda")
        if not 0 < self.home_share <= 1:
            raise ValueError(f"home share {self.home_share} is not above 0 and at most 1")
        if self.device == "cuda":
            object.__setattr__(self, "shared_domain", False)

    @property
    def item_page_bytes(self) -> int:
        """What items are rounded up to: a GPU maps whole allocations, which come in 2 MiB."""
        return self.page_bytes if self.device == "cpu" else -(-self.page_bytes // _GPU_PAGE_BYTES) * _GPU_PAGE_BYTES

    @property
    def abreast(self) -> int:
        """Data-parallel groups that can compute at the same time."""
        if self.device != "cpu":
            return self.max_data_parallel
        return max(1, len(os.sched_getaffinity(0)) // (self.threads * self.tensor_parallel))

    @property
    def reaches_others(self) -> bool:
        """Whether a rank can map what lies in another rank's memory."""
        return self.maps_pages and self.peer_access and not self.shared_domain

    @property
    def maps_pages(self) -> bool:
        """Whether ranks map the manager's pages, one item each, so that they can map them elsewhere."""
        return self.zero_copy and self.page_remap and self.shared_pages

    @property
    def copies_later(self) -> bool:
        """Whether an instance maps what lies in other memories there, and copies of it are made once it serves. Only
        where a rank can read another's memory.
        """
        return self.copy_after_switch and self.peer_copy and self.reaches_others and self.transport == "memory"

    @property
    def arms(self) -> bool:
        """Whether standbys attach before anybody asks for them: where that takes no memory."""
        free = self.maps_pages and (self.shared_domain or self.copies_later)
        return free and self.arm_standbys and self.keep_standbys

    @property
    def run_path(self) -> Path:
        """Directory of sockets and state."""
        return Path(self.run_dir)

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Settings:
        """From :meth:`dump`."""
        return cls(**json.loads(text))
