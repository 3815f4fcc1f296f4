"""On-demand prices of GPUs, to begin with: what `medley discover` writes until the owner puts in what they pay.

Amazon EC2, us-east-1, on demand, read in January 2026; whole instances divided by their GPUs.
There are no spot prices here: they change by the hour, and only the owner knows what they pay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ListPrice:
    """The price of one GPU for one hour, and what it was read from."""

    usd_per_gpu_hour: float
    source: str


def _instance(name: str, usd_per_hour: float, gpus: int) -> ListPrice:
    return ListPrice(round(usd_per_hour / gpus, 5), f"{name} in us-east-1, on demand, 2026-01")


LIST_PRICES: Mapping[str, ListPrice] = {
    "A100-40GB": _instance("p4d.24xlarge", 21.96, 8),
    "A100-80GB": _instance("p4de.24xlarge", 27.45, 8),
    "A10G": _instance("g5.xlarge", 1.006, 1),
    "B200": _instance("p6-b200.48xlarge", 113.93, 8),
    "H100-80GB": _instance("p5.48xlarge", 55.04, 8),
    "H200": _instance("p5en.48xlarge", 63.30, 8),
    "L4": _instance("g6.xlarge", 0.8048, 1),
    "L40S": _instance("g6e.xlarge", 1.861, 1),
}
"""By GPU type."""
