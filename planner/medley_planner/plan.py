"""The plan of a whole fleet: services, pools and what runs today in; an integer mix per service with its reasons out."""

from __future__ import annotations

from medley_planner.fleet import FleetState, PlanOptions
from medley_planner.memo import Memo
from medley_planner.result import FleetPlan

DEFAULT_OPTIONS = PlanOptions()


class InvalidFleetError(ValueError):
    """A fleet that cannot be planned because a value in it makes no sense. `field` is its path in `FleetState`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


def plan(state: FleetState, options: PlanOptions = DEFAULT_OPTIONS, *, memo: Memo | None = None) -> FleetPlan:
    """Plan all services of a fleet together.

    Args:
        state: The fleet. The order of services and pools does not matter.
        options: How to plan.
        memo: What earlier calls worked out; only makes the same plan faster.

    Raises:
        InvalidFleetError: A value makes no sense; names the field.
    """
    raise NotImplementedError
