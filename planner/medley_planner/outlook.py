"""A fleet made ready to be planned: checked, in order, with what every service may run on, in figures."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from medley_planner.assemble import Prepared
from medley_planner.figures import service_problem
from medley_planner.fleet import FleetState, PlanOptions, Pool, Stock
from medley_planner.memo import Memo
from medley_planner.milp import Limits
from medley_planner.validation import validate
from medley_planner.variants import CapacityFunction, Remembered, candidates


@dataclass(frozen=True)
class Outlook:
    """Everything that is known of a fleet before it is planned.

    Args:
        state: The fleet.
        prepared: Its services by name, sorted.
        pools: Its pools by name, sorted.
        limits: Gap, and time of all solves together.
        capacity_of: What one replica sustains, from what was worked out already.
    """

    state: FleetState
    prepared: Mapping[str, Prepared]
    pools: Mapping[str, Pool]
    limits: Limits
    capacity_of: CapacityFunction

    @property
    def stock(self) -> dict[str, Stock]:
        """All stock by pool."""
        return {name: pool.stock for name, pool in self.pools.items()}

    def pinning(self, names: Collection[str]) -> Outlook:
        """The same fleet with these services pinned, besides those that are."""
        prepared = {
            name: replace(each, service=replace(each.service, pinned=True)) if name in names else each
            for name, each in self.prepared.items()
        }
        services = tuple(each.service for each in prepared.values())
        return replace(self, state=replace(self.state, services=services), prepared=prepared)


def outlook(state: FleetState, options: PlanOptions, capacity_of: CapacityFunction, memo: Memo) -> Outlook:
    """Make a fleet ready to be planned.

    Args:
        state: The fleet.
        options: How it will be planned.
        capacity_of: What one replica sustains.
        memo: Keeps capacities.

    Raises:
        InvalidFleetError: A value makes no sense; names the field.
    """
    validate(state, options)
    pools = sorted(state.pools, key=lambda pool: pool.name)
    by_name = {pool.name: pool for pool in pools}
    prepared = {}
    for service in sorted(state.services, key=lambda service: service.name):
        found = candidates(service, pools, capacity_of, memo)
        problem = service_problem(service, found, by_name, switching_horizon_s=options.switching_horizon_s)
        prepared[service.name] = Prepared(service, found, problem)
    pairs = [(each.service, each.candidates) for each in prepared.values()]
    return Outlook(
        state=state,
        prepared=prepared,
        pools=by_name,
        limits=Limits(
            time_limit_s=options.time_limit_s,
            relative_gap=options.relative_gap,
            shared_gap=options.shared_gap,
            method=options.method,
        ),
        capacity_of=Remembered(pairs, {pool.name: pool.gpu for pool in pools}, capacity_of),
    )
