"""A fleet made ready to be planned: checked, in order, with what every service may run on, in figures."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, fields, replace

from medley_planner.assemble import Prepared
from medley_planner.capacities.variants import Candidates, CapacityFunction, Remembered, candidates
from medley_planner.checking.validation import validate
from medley_planner.fleet import FleetState, PlanOptions, Pool, Service, Stock
from medley_planner.programme.figures import service_problem
from medley_planner.programme.goals import Lent
from medley_planner.programme.memo import Memo
from medley_planner.programme.milp import Limits
from medley_planner.programme.problem import ServiceProblem


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


def outlook(
    state: FleetState,
    options: PlanOptions,
    capacity_of: CapacityFunction,
    memo: Memo,
    helpers: Lent | None = None,
) -> Outlook:
    """Make a fleet ready to be planned.

    Args:
        state: The fleet.
        options: How it will be planned.
        capacity_of: What one replica sustains.
        memo: Keeps capacities.
        helpers: Who searches beside this process.

    Raises:
        InvalidFleetError: A value makes no sense; names the field.
    """
    validate(state, options)
    pools = sorted(state.pools, key=lambda pool: pool.name)
    by_name = {pool.name: pool for pool in pools}
    prepared = {}
    for service in sorted(state.services, key=lambda service: service.name):
        found, problem = _figures(service, by_name, options, capacity_of, memo)
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
            helpers=helpers,
        ),
        capacity_of=Remembered(pairs, {pool.name: pool.gpu for pool in pools}, capacity_of),
    )


def _figures(
    service: Service, pools: Mapping[str, Pool], options: PlanOptions, capacity_of: CapacityFunction, memo: Memo
) -> tuple[Candidates, ServiceProblem]:
    """What a service may run on, and that in figures. Neither depends on stock."""
    horizon_s = options.switching_horizon_s
    key = ("figures", _values(service, _NOT_OF_SERVICES), _values_of(pools), capacity_of, horizon_s)

    def compute() -> tuple[Candidates, ServiceProblem]:
        found = candidates(service, list(pools.values()), capacity_of, memo)
        return found, service_problem(service, found, pools, switching_horizon_s=horizon_s)

    return memo.recall(key, compute, taken_bytes=_FIGURES_BYTES)


_FIGURES_BYTES = 2**17
"""About what the figures of a service take; the capacities in them are kept in the memo anyway."""

_NOT_OF_SERVICES = ("name", "pinned")
_NOT_OF_POOLS = ("stock", "exhausted")
"""What figures do not depend on."""


def _values_of(pools: Mapping[str, Pool]) -> tuple[Hashable, ...]:
    return tuple(_values(pool, _NOT_OF_POOLS) for pool in pools.values())


def _values(value: Service | Pool, left_out: Collection[str]) -> tuple[Hashable, ...]:
    """The fields of a service or a pool, without some."""
    found = (getattr(value, each.name) for each in fields(value) if each.name not in left_out)
    return tuple(tuple(sorted(each.items(), key=repr)) if isinstance(each, Mapping) else each for each in found)
