"""`medley simulate`: plan the input, replay requests through the plan in simulated time, and tell what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from medley_operator.cli.columns import money
from medley_operator.cli.inputs import InputError, Mistake
from medley_operator.cli.planning import PlannedFleet
from medley_operator.cli.workload import open_rated_trace
from medley_planner.fleet import Service
from medley_planner.result import ServicePlan
from medley_planner.simulator.fit import FACTORS, Fit, fit
from medley_planner.simulator.measures import ServiceMeasures
from medley_planner.simulator.replay import FleetMeasures, simulate
from medley_planner.simulator.requests import Requests, RequestsError
from medley_planner.simulator.routing import Balancing, Knowledge
from medley_planner.simulator.run import RunOptions, StepBudget
from medley_planner.wording import mix_text
from medley_planner.workload.presets import UnknownPresetError, preset

DEFAULT_DURATION_S = 1800.0
"""So long requests are drawn where no trace says for how long."""
MAX_DRAWN = 2_000_000
"""Most requests of all services together."""
TIMELINE_BINS = 60

Told = Callable[[str, float], None]


@dataclass(frozen=True)
class Replay:
    """What is to be simulated.

    Args:
        trace: A trace's file; None draws requests at random.
        preset: Draw sizes from this preset; None draws them from each service's own workload.
        service: The service that the trace or preset is for, as `namespace/name` or `name`; None is the only one.
        rate_rps: Requests per second of that service; None is its planned rate.
        duration_s: For so long; None is once through the trace, or `DEFAULT_DURATION_S`.
        interarrival_cv: Of times between drawn arrivals; None is what each service is planned with.
        seed: Of everything that is drawn.
        knowledge: What the router knows of outputs.
        balancing: Which replica of a variant gets a request.
        overflow: Whether a request whose variant is at its capacity goes to another one that can serve it.
        step_budget: How many tokens a step of the engines computes at most.
        fits: Whether to find out what would have to be planned for, too.
    """

    trace: str | None = None
    preset: str | None = None
    service: str | None = None
    rate_rps: float | None = None
    duration_s: float | None = None
    interarrival_cv: float | None = None
    seed: int = 0
    knowledge: Knowledge = Knowledge.MEAN
    balancing: Balancing = Balancing.LEAST_LOAD
    overflow: bool = True
    step_budget: StepBudget = StepBudget.DEFAULT
    fits: bool = False


@dataclass(frozen=True)
class Fitted:
    """What a service would have to be planned for, to keep its objectives.

    Args:
        service: Its name.
        found: The plan that keeps them; None where none of those tried does.
    """

    service: str
    found: Fit | None

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.service}: no plan that was tried keeps the objectives"
        rate = f"{self.found.rate_rps:.4g} requests/s ({self.found.factor:g} × its rate)"
        rate += f" with noWaitShare {self.found.queueing_quantile:g} and interarrivalCV 1"
        entries = self.found.service_plan.mix
        mix, cost = mix_text(entries), money(self.found.service_plan.cost_usd_per_hour)
        return f"{self.service}: planned for {rate}, {mix} for {cost} $/h keeps the objectives"


@dataclass(frozen=True)
class SimulatedFleet:
    """A planned fleet and what a simulation of it showed.

    Args:
        planned: The plan.
        measures: Of the services that have replicas.
        replay: What was simulated.
        horizon_s: The end of arrivals.
        notes: What the simulation assumes, as sentences.
        fitted: What a service would have to be planned for; None where that was not asked.
    """

    planned: PlannedFleet
    measures: FleetMeasures
    replay: Replay
    horizon_s: float
    notes: tuple[str, ...]
    fitted: Fitted | None = None

    @property
    def attained(self) -> bool:
        """Whether every service is planned and kept its objectives."""
        return self.planned.feasible and self.measures.attained

    @property
    def shortcomings(self) -> tuple[str, ...]:
        """Why not, a sentence each."""
        simulated = {each.name: each for each in self.measures.services}
        found: list[str] = []
        for each in self.planned.services:
            key = each.service.key
            if not each.feasible:
                found.append(f"{key}: {each.plan.outcome}: {each.plan.reason}")
            if key in simulated:
                found += [f"{key}: {sentence}" for sentence in missed(simulated[key])]
        return tuple(found)


def simulate_planned(planned: PlannedFleet, replay: Replay, *, told: Told | None = None) -> SimulatedFleet:
    """Replay requests through a planned fleet.

    Args:
        planned: The plan.
        replay: What to simulate.
        told: Told how far the simulation of a service is.

    Raises:
        InputError: The trace cannot be read, there is no such preset or service, or there are too many requests.
    """
    services = {service.name: service for service in planned.state.services}
    chosen = _chosen(services, replay)
    arriving, horizon_s, notes = _arriving(services, chosen, replay)
    runnable = {name: each for name, each in arriving.items() if _has_replicas(planned.fleet.service(name))}
    notes += [f"{name} has no replicas, so it was not simulated" for name in sorted(arriving.keys() - runnable.keys())]
    options = RunOptions(
        knowledge=replay.knowledge,
        balancing=replay.balancing,
        overflow=replay.overflow,
        step_budget=replay.step_budget,
        seed=replay.seed,
        bin_s=max(horizon_s, 1e-6) / TIMELINE_BINS,
    )
    measures = simulate(planned.state, planned.fleet, runnable, options, horizon_s=horizon_s, progress=told)
    fitted = None
    if chosen is not None and replay.fits:
        fitted = Fitted(chosen, _fit(planned, chosen, arriving[chosen], options, horizon_s=horizon_s, told=told))
    return SimulatedFleet(planned, measures, replay, horizon_s, (*planned.notes, *notes), fitted)


def _has_replicas(service_plan: ServicePlan) -> bool:
    """Whether there are replicas, and a split of requests over them."""
    return bool(service_plan.mix and service_plan.shares)


def _fit(
    planned: PlannedFleet, name: str, requests: Requests, options: RunOptions, *, horizon_s: float, told: Told | None
) -> Fit | None:
    def tried(factor: float, cost: float, kept: bool) -> None:
        del cost, kept
        if told is not None:
            told(f"{name} planned for more", FACTORS.index(factor) / len(FACTORS))

    return fit(planned.state, name, requests, options, horizon_s=horizon_s, tried=tried)


def _chosen(services: dict[str, Service], replay: Replay) -> str | None:
    """The service that the trace, preset or rate is for; None where none of these was given."""
    given = (replay.service, replay.trace, replay.preset, replay.rate_rps)
    if not replay.fits and all(each is None for each in given):
        return None
    if replay.service is None:
        if len(services) == 1:
            return next(iter(services))
        raise _wrong("--service", f"says which of {', '.join(sorted(services))} is meant")
    matching = [name for name in services if replay.service in (name, name.partition("/")[2])]
    if len(matching) != 1:
        problem = "is ambiguous" if matching else "is not among the services"
        raise _wrong("--service", f"{replay.service} {problem}; there are {', '.join(sorted(services))}")
    return matching[0]


def _arriving(
    services: dict[str, Service], chosen: str | None, replay: Replay
) -> tuple[dict[str, Requests], float, list[str]]:
    """The requests of each service, the end of arrivals, and what to say about them."""
    notes: list[str] = []
    arriving: dict[str, Requests] = {}
    horizon_s = DEFAULT_DURATION_S if replay.duration_s is None else replay.duration_s
    try:
        if chosen is not None and replay.trace is not None:
            arriving[chosen] = _of_trace(services[chosen], replay, notes)
            if replay.duration_s is None:
                horizon_s = arriving[chosen].span_s
        total = sum(len(requests) for requests in arriving.values())
        for name, service in sorted(services.items()):
            if name in arriving:
                continue
            asked = _asked(service, replay if name == chosen else replace(replay, preset=None, rate_rps=None))
            total += round(asked.rate_rps * horizon_s)
            if total > MAX_DRAWN:
                message = f"would make more than {MAX_DRAWN:,} requests; ask for a shorter time or a lower rate"
                raise _wrong("--duration", message)
            rng = np.random.default_rng([replay.seed, *name.encode()])
            cv = asked.interarrival_cv if replay.interarrival_cv is None else replay.interarrival_cv
            arriving[name] = Requests.drawn(
                asked.sizes, rate_rps=asked.rate_rps, duration_s=horizon_s, rng=rng, interarrival_cv=cv
            )
    except RequestsError as error:
        raise _wrong("input", str(error)) from None
    return arriving, horizon_s, notes


def _of_trace(service: Service, replay: Replay, notes: list[str]) -> Requests:
    """The trace's requests at the rate that is asked for."""
    trace = open_rated_trace(str(replay.trace))
    rate_rps = service.rate_rps if replay.rate_rps is None else replay.rate_rps
    if not rate_rps > 0:
        raise _wrong("--rate", f"{service.name} is planned for no requests; say at which rate the trace is replayed")
    grid_s = trace.arrivals.grid_s
    if grid_s is not None:
        notes.append(
            f"the trace was recorded every {grid_s:g} s: its arrivals are spread over these intervals at random"
        )
    if not math.isclose(rate_rps, trace.rate_rps, rel_tol=1e-3):
        notes.append(
            f"the trace's {trace.rate_rps:.3g} requests/s are replayed at {rate_rps:.3g}: its times are stretched"
        )
    rng = np.random.default_rng([replay.seed, 1])
    requests = Requests.of_trace(trace, rate_rps=rate_rps, duration_s=replay.duration_s, rng=rng)
    if len(requests) > MAX_DRAWN:
        raise _wrong("--duration", f"would make more than {MAX_DRAWN:,} requests; ask for a shorter time")
    return requests


def _asked(service: Service, replay: Replay) -> Service:
    """The service with the sizes and the rate that are to arrive."""
    rate_rps = service.rate_rps if replay.rate_rps is None else replay.rate_rps
    if replay.preset is None:
        return replace(service, rate_rps=rate_rps)
    try:
        return replace(service, rate_rps=rate_rps, sizes=preset(replay.preset).sizes)
    except UnknownPresetError as error:
        raise _wrong("--preset", str(error)) from None


def _wrong(where: str, message: str) -> InputError:
    return InputError([Mistake("arguments" if where.startswith("--") else where, None, where.strip("-"), message)])


def missed(service: ServiceMeasures) -> Iterator[str]:
    """What a service did not keep, as sentences."""
    words = {"timeToFirstToken": "time to first token", "timePerOutputToken": "time per output token"}
    for each in service.objectives:
        if each.attained:
            continue
        which = "the mean" if each.percentile is None else f"percentile {each.percentile:g}"
        yield (
            f"{words[each.objective]}: {which} is {shown_time(each.measured_s)}, the objective is "
            f"{shown_time(each.limit_s)}; {each.within_percent:.4g} % of the requests keep it"
        )
    if service.rejected or service.lost:
        yield f"{service.rejected:,} of {service.requests:,} requests were refused, {service.lost:,} lost"


def shown_time(time_s: float) -> str:
    """A time with three digits that matter."""
    if not math.isfinite(time_s):
        return "never" if time_s > 0 else "–"
    if time_s < 1:
        return f"{1e3 * time_s:.3g} ms"
    return f"{time_s:.3g} s" if time_s < 1000 else f"{time_s:,.0f} s"


@contextmanager
def told_progress() -> Iterator[Told]:
    """Shows how far the simulation is, on a terminal's standard error."""
    console = Console(stderr=True)
    columns = (TextColumn("simulating {task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        tasks: dict[str, Any] = {}

        def told(service: str, share: float) -> None:
            if service not in tasks:
                tasks[service] = shown.add_task(service, total=1.0)
            shown.update(tasks[service], completed=share)

        yield told
