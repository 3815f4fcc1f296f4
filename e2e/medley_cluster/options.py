"""What a cluster is asked to be: plain values, so that they can be written to and read from its state file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class GpuModel:
    """A GPU type as GPU feature discovery describes it, and how long a simulated pod takes to load on it."""

    short_name: str
    product: str
    family: str
    memory_mib: int
    instance_type: str
    load_time_s: float
    gpus_per_node: int
    compute_major: int
    compute_minor: int


GPU_MODELS: dict[str, GpuModel] = {
    model.short_name: model
    for model in (
        GpuModel("t4", "Tesla-T4", "turing", 15360, "g4dn.metal", 2.0, 8, 7, 5),
        GpuModel("l4", "NVIDIA-L4", "ada-lovelace", 23034, "g6.48xlarge", 2.0, 8, 8, 9),
        GpuModel("a10g", "NVIDIA-A10G", "ampere", 23028, "g5.48xlarge", 2.5, 8, 8, 6),
        GpuModel("a100", "NVIDIA-A100-SXM4-80GB", "ampere", 81920, "p4de.24xlarge", 3.0, 8, 8, 0),
        GpuModel("h100", "NVIDIA-H100-80GB-HBM3", "hopper", 81559, "p5.48xlarge", 4.0, 8, 9, 0),
    )
}


@dataclass(frozen=True)
class SimulatedPool:
    """`count` simulated nodes of one GPU type."""

    gpu: str
    count: int
    gpus_per_node: int | None = None

    def __post_init__(self) -> None:
        if self.gpu not in GPU_MODELS:
            raise ValueError(f"unknown GPU type {self.gpu!r}: want one of {', '.join(GPU_MODELS)}")


DEFAULT_POOLS = (SimulatedPool("l4", 3), SimulatedPool("a10g", 3), SimulatedPool("a100", 2), SimulatedPool("h100", 2))


@dataclass(frozen=True)
class ClusterOptions:
    """What to bring up; real nodes and Prometheus are left out, with a reason, where the machine cannot run them."""

    pools: tuple[SimulatedPool, ...] = DEFAULT_POOLS
    load_times_s: dict[str, float] = field(default_factory=dict)
    real_nodes: int = 1
    real_gpu: str = "t4"
    real_gpus_per_node: int = 8
    prometheus: bool = True
    operator_image: bool = False
    audit: bool = True

    def load_time_s(self, gpu: str) -> float:
        """How long pods take to load on this GPU type."""
        return self.load_times_s.get(gpu, GPU_MODELS[gpu].load_time_s)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> ClusterOptions:
        """From plain values."""
        pools = tuple(SimulatedPool(**pool) for pool in value.get("pools", []))
        return ClusterOptions(**{**value, "pools": pools})
