"""How much more than the mean rate must be planned for, so that the plan keeps its objectives when requests come as
they did: found by planning for more and more, and replaying each plan.

No formula knows how a service's traffic will swell and ebb, but a trace of it shows how it did.
The cost of a plan does not fall as the rate grows, so the first that keeps the objectives is the cheapest.
What arrives is known, so that arrivals count as random (an interarrival CV of 1): bursts are in the factor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medley_planner.fleet import FleetState, Objectives, PlanOptions
from medley_planner.plan import plan
from medley_planner.programme.memo import Memo
from medley_planner.result import Outcome, ServicePlan
from medley_planner.simulator.book import Book
from medley_planner.simulator.measures import ServiceMeasures, measured
from medley_planner.simulator.replay import planned_run
from medley_planner.simulator.requests import Requests
from medley_planner.simulator.run import RunOptions

FACTORS: tuple[float, ...] = tuple(np.round(np.geomspace(0.7, 14.0, 62), 3).tolist())
"""Factors on the rate that are tried, each 5 % more than the one before."""

QUEUEING_QUANTILES = (0.9, 0.0)
"""Both are tried, as neither is always the cheaper."""

_LOOKS = 20
"""How often a replay is looked at, to give it up as soon as it cannot keep its objectives any more."""

Tried = Callable[[float, float, bool], None]
"""Told the factor, the plan's price in USD per hour, and whether it kept the objectives."""


@dataclass(frozen=True)
class Fit:
    """The cheapest plan that keeps the objectives.

    Args:
        factor: On the service's rate.
        rate_rps: What is planned for with it.
        queueing_quantile: Share of requests that need not wait, by which the plan keeps capacity free.
        service_plan: The plan.
        measures: Its replay.
        tried: Fleets that were replayed, this one included.
    """

    factor: float
    rate_rps: float
    queueing_quantile: float
    service_plan: ServicePlan
    measures: ServiceMeasures
    tried: int


def fit(
    state: FleetState,
    name: str,
    requests: Requests,
    options: RunOptions,
    *,
    horizon_s: float,
    factors: Sequence[float] = FACTORS,
    queueing_quantiles: Sequence[float] = QUEUEING_QUANTILES,
    memo: Memo | None = None,
    tried: Tried | None = None,
) -> Fit | None:
    """The cheapest plan, of a service at rates times these factors, that keeps its objectives.

    Args:
        state: The fleet. The other services are planned as they are.
        name: The service.
        requests: What arrives, whatever is planned for.
        options: How it is simulated.
        horizon_s: Until when replicas are paid for: the end of arrivals.
        factors: What is tried, rising.
        queueing_quantiles: Shares of requests that need not wait, in the place of the service's own; all are tried.
        memo: What earlier plans worked out.
        tried: Told of every fleet that was replayed.

    Returns:
        None where no plan does: none of the factors suffices, or stock, caps or bounds do not allow more.
    """
    search = _Search(state, name, requests, options, horizon_s, Memo() if memo is None else memo, tried)
    best: Fit | None = None
    for quantile in queueing_quantiles:
        best = search.first(factors, quantile, best)
    return None if best is None else replace(best, tried=search.replays)


@dataclass
class _Search:
    """Plans and replays; no fleet is replayed twice."""

    state: FleetState
    name: str
    requests: Requests
    options: RunOptions
    horizon_s: float
    memo: Memo
    tried: Tried | None
    replays: int = 0

    def __post_init__(self) -> None:
        self._failed: set[tuple[object, ...]] = set()

    def first(self, factors: Sequence[float], quantile: float, best: Fit | None) -> Fit | None:
        """The plan of the first factor that keeps the objectives and costs less than `best`; else that."""
        for factor in factors:
            service_plan = self._planned(factor, quantile)
            cost = service_plan.cost_usd_per_hour
            if service_plan.outcome is not Outcome.PLANNED or (best and cost >= best.service_plan.cost_usd_per_hour):
                return best
            fleet = tuple((entry.variant, entry.replicas) for entry in service_plan.mix)
            if fleet in self._failed or not fleet:
                continue
            measures = replayed(
                self.state, self.name, service_plan, self.requests, self.options, horizon_s=self.horizon_s
            )
            self.replays += 1
            if self.tried is not None:
                self.tried(factor, cost, measures is not None)
            if measures is not None:
                return Fit(factor, factor * self._rate_rps, quantile, service_plan, measures, self.replays)
            self._failed.add(fleet)
        return best

    @property
    def _rate_rps(self) -> float:
        return next(service.rate_rps for service in self.state.services if service.name == self.name)

    def _planned(self, factor: float, quantile: float) -> ServicePlan:
        services = tuple(
            replace(service, rate_rps=service.rate_rps * factor, queueing_quantile=quantile, interarrival_cv=1.0)
            if service.name == self.name
            else service
            for service in self.state.services
        )
        changed = replace(self.state, services=services)
        return plan(changed, PlanOptions(explain=False), memo=self.memo).service(self.name)


def replayed(
    state: FleetState,
    name: str,
    service_plan: ServicePlan,
    requests: Requests,
    options: RunOptions,
    *,
    horizon_s: float,
) -> ServiceMeasures | None:
    """The measures of a plan that keeps the service's objectives; None where it does not, given up as soon as that is
    certain."""
    service = next(service for service in state.services if service.name == name)
    run = planned_run(service, service_plan, state.pools, requests, options)
    for part in range(1, _LOOKS):
        run.run_until(horizon_s * part / _LOOKS)
        if is_hopeless(run.book, service.objectives, run.now_s):
            return None
    run.finish()
    found = measured(name, run.book, run.instances, service.objectives, horizon_s=horizon_s, bin_s=options.bin_s)
    return found if found.attained else None


def is_hopeless(book: Book, objectives: Objectives, now_s: float) -> bool:
    """Whether so many requests have missed an objective for the first token that its percentile cannot be kept."""
    limit_s, percentile = objectives.time_to_first_token_s, objectives.time_to_first_token_percentile
    if limit_s is None or percentile is None:
        return False
    arrived, first = np.array(book.arrived_s), np.array(book.first_token_s)
    waited = np.where(np.isnan(first), now_s, first) - arrived
    late = int(np.count_nonzero((arrived <= now_s) & (waited > limit_s)))
    return late > len(book) * (1 - percentile / 100) + 1
