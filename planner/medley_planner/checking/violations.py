"""What a check finds, and how exactly it looks."""

from __future__ import annotations

from dataclasses import dataclass

from medley_planner.result import Outcome

LOAD_TOLERANCE = 1e-5
"""A replica may be loaded a hundred-thousandth beyond its capacity: far below what any measurement can tell."""

USD_TOLERANCE = 1e-4

DECIDED = (Outcome.PLANNED, Outcome.STOCK_SHORT, Outcome.FLEET_CAP_TOO_LOW)
"""The outcomes whose mix was decided, and is not just what runs."""


@dataclass(frozen=True)
class Violation:
    """A constraint that does not hold.

    Args:
        constraint: Its name: `demand`, `capacity`, `queueing`, `survivable`, `stock`, `cost_cap`, `fleet_cost_cap`,
            `replicas_min`, `replicas_max`, `pool_replicas_min`, `pool_replicas_max`, `spot_share`, `pool_share`,
            `allowed`, `lower_bound` or `accounting`.
        subject: The service, or for `stock` the pool, that it concerns; `plan` where it is the whole.
        detail: A sentence with figures.
    """

    constraint: str
    subject: str
    detail: str
