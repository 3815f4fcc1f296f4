"""Why a service keeps what runs."""

from __future__ import annotations

from dataclasses import dataclass

from medley_planner.result import Binding, Outcome


@dataclass(frozen=True)
class Trouble:
    """Why a service keeps what runs.

    Args:
        outcome: The reason as a word.
        message: The reason as a sentence with figures.
        binding: The constraint that stands in the way, where there is one.
        nearest_cap_usd_per_hour: With `CAP_TOO_LOW`: the lowest cap that would do.
        nearest_share: With a share of replicas or of the demand that cannot be kept: the nearest that can.
    """

    outcome: Outcome
    message: str
    binding: tuple[Binding, ...] = ()
    nearest_cap_usd_per_hour: float | None = None
    nearest_share: float | None = None
