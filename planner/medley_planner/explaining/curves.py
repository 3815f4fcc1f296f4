"""What a service would cost if something else were asked of it: cost against its rate and its objectives, and which
variant is cheapest for requests of which size.

All of it holds with the stock that the other services leave, and whatever runs today.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from medley_planner.capacities.variants import CapacityFunction, candidates
from medley_planner.fleet import FleetState, Objectives, PlanOptions, Pool, Role, Service, Variant
from medley_planner.plan import plan
from medley_planner.programme.memo import Memo
from medley_planner.result import Outcome, ServicePlan
from medley_planner.wording import mix_text
from medley_planner.workload.sizes import SizeHistogram


class Axis(enum.StrEnum):
    """What a curve is drawn against."""

    RATE = "rate"
    """Requests per second."""
    TIME_PER_OUTPUT_TOKEN = "time_per_output_token"  # noqa: S105 - not a password
    """Seconds."""
    TIME_TO_FIRST_TOKEN = "time_to_first_token"  # noqa: S105
    """Seconds."""


@dataclass(frozen=True)
class CurvePoint:
    """The plan at one value.

    Args:
        value: The value, in the axis's unit.
        outcome: How planning ended there.
        mix: The mix in short; empty where there is none that serves everything.
        cost_usd_per_hour: Its price; None where there is none.
        lower_bound_usd_per_hour: Proven bound on it; None where there is none.
        gpus_by_pool: GPUs of the mix by pool.
        single_pools: Price of the best mix of each pool alone, None where there is none, in the order of the curve's
            `pools`.
    """

    value: float
    outcome: Outcome
    mix: str
    cost_usd_per_hour: float | None
    lower_bound_usd_per_hour: float | None
    gpus_by_pool: tuple[tuple[str, int], ...]
    single_pools: tuple[float | None, ...]


@dataclass(frozen=True)
class Curve:
    """Cost of a service against its rate or one of its objectives.

    Args:
        service: The service's name.
        axis: What moves.
        now: Its present value.
        pools: The pools that are compared with the mix, each alone.
        points: By value, ascending.
    """

    service: str
    axis: Axis
    now: float
    pools: tuple[str, ...]
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Cell:
    """Requests of one size, and the variant that serves them at the least price per request.

    Args:
        input_tokens: Their input.
        output_tokens: Their output.
        variant: The cheapest variant; None where none serves them.
        usd_per_million_requests: What they cost there, replicas in fractions and full; None where none serves them.
        runner_up: The cheapest variant of another pool, None where there is none.
        runner_up_ratio: What it costs over what the cheapest costs; None where there is none.
        reason: Why no variant serves them; empty where one does.
    """

    input_tokens: int
    output_tokens: int
    variant: Variant | None
    usd_per_million_requests: float | None = None
    runner_up: Variant | None = None
    runner_up_ratio: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class SizeMap:
    """The cheapest variant over request sizes.

    Args:
        service: The service's name.
        input_tokens: The grid's inputs, ascending and evenly spaced in their logarithm.
        output_tokens: The same for outputs.
        cells: One per input and output, outputs fastest.
    """

    service: str
    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Alone:
    """A service with the stock that the others leave, and how it is planned."""

    service: Service
    pools: tuple[Pool, ...]
    max_cost_usd_per_hour: float | None
    options: PlanOptions
    memo: Memo
    capacity_of: CapacityFunction

    def plan(self, service: Service) -> ServicePlan:
        """The plan of a changed service."""
        state = FleetState((service,), self.pools, self.max_cost_usd_per_hour)
        found = plan(state, self.options, memo=self.memo, capacity_of=self.capacity_of)
        return found.services[0]


def curve(alone: Alone, axis: Axis, values: Sequence[float], pools: Sequence[str]) -> Curve:
    """Cost at each of the values.

    Args:
        alone: The service, with what it may use.
        axis: What moves.
        values: Values to plan at, positive.
        pools: Pools to compare with, each alone.
    """
    now = present_value(alone.service, axis)
    if now is None:
        raise ValueError(f"{alone.service.name} has no objective {axis.value}")
    at = with_value(axis)
    points = tuple(_point(alone, at(alone.service, value), value, pools) for value in sorted(set(values)))
    return Curve(alone.service.name, axis, now, tuple(pools), points)


def present_value(service: Service, axis: Axis) -> float | None:
    """Where a service is on an axis; None where it has no such objective."""
    if axis is Axis.RATE:
        return service.rate_rps
    if axis is Axis.TIME_PER_OUTPUT_TOKEN:
        return service.objectives.time_per_output_token_s
    return service.objectives.time_to_first_token_s


def with_value(axis: Axis) -> Callable[[Service, float], Service]:
    """Moves a service along an axis."""

    def moved(service: Service, value: float) -> Service:
        if axis is Axis.RATE:
            return replace(service, rate_rps=value)
        objectives: Objectives = service.objectives
        if axis is Axis.TIME_PER_OUTPUT_TOKEN:
            return replace(service, objectives=replace(objectives, time_per_output_token_s=value))
        return replace(service, objectives=replace(objectives, time_to_first_token_s=value))

    return moved


def _point(alone: Alone, service: Service, value: float, pools: Sequence[str]) -> CurvePoint:
    found = alone.plan(service)
    planned = found.outcome is Outcome.PLANNED
    gpus: dict[str, int] = {}
    for entry in found.mix if planned else ():
        gpus[entry.variant.pool] = gpus.get(entry.variant.pool, 0) + entry.gpus
    singles = (alone.plan(replace(service, pools=(pool,), replicas_by_pool={})) for pool in pools)
    return CurvePoint(
        value=value,
        outcome=found.outcome,
        mix=mix_text(found.mix) if planned else "",
        cost_usd_per_hour=found.cost_usd_per_hour if planned else None,
        lower_bound_usd_per_hour=found.lower_bound_usd_per_hour if planned else None,
        gpus_by_pool=tuple(sorted(gpus.items())),
        single_pools=tuple(each.cost_usd_per_hour if each.outcome is Outcome.PLANNED else None for each in singles),
    )


def size_map(alone: Alone, input_tokens: Sequence[int], output_tokens: Sequence[int]) -> SizeMap:
    """The cheapest variant for each input and output: argmin over v of price[v] / capacity[v].

    Args:
        alone: The service, with what it may use.
        input_tokens: The grid's inputs, distinct.
        output_tokens: The grid's outputs, distinct.
    """
    inputs, outputs = tuple(sorted(set(input_tokens))), tuple(sorted(set(output_tokens)))
    everywhere = SizeHistogram.of(*((each, other, 1.0) for each in inputs for other in outputs))
    service = replace(alone.service, sizes=everywhere)
    pools = sorted(alone.pools, key=lambda pool: pool.name)
    found = candidates(service, pools, alone.capacity_of, alone.memo)
    whole = [candidate for candidate in found.usable if candidate.variant.role is Role.SHARED]
    why = "; ".join(sorted({rejection.reason for rejection in found.rejected}))
    cells = []
    for index, bucket in enumerate(found.buckets):
        prices: list[tuple[float, Variant]] = []
        reasons = {why} if not whole else set()
        for candidate in whole:
            capacity = candidate.capacities[index]
            if capacity.requests_per_second > 0:
                per_request = candidate.price_usd_per_hour / 3600 / capacity.requests_per_second
                prices.append((per_request * 1e6, candidate.variant))
            else:
                reasons.add(capacity.reason)
        cells.append(_cell(bucket.input_tokens, bucket.output_tokens, sorted(prices), reasons))
    return SizeMap(service.name, inputs, outputs, tuple(cells))


def _cell(input_tokens: int, output_tokens: int, prices: Sequence[tuple[float, Variant]], reasons: set[str]) -> Cell:
    if not prices:
        return Cell(input_tokens, output_tokens, None, reason=", ".join(sorted(reasons)))
    least, variant = prices[0]
    others = [(price, other) for price, other in prices if other.pool != variant.pool]
    second, runner_up = others[0] if others else (None, None)
    ratio = second / least if second is not None and least > 0 else None
    return Cell(input_tokens, output_tokens, variant, least, runner_up, ratio)


def log_spaced(least: float, most: float, count: int) -> tuple[float, ...]:
    """So many values from least to most, evenly spaced in their logarithm."""
    if count < 2:
        return (least,)
    step = math.log(most / least) / (count - 1)
    return tuple(least * math.exp(step * place) for place in range(count))
