"""Planned fleets against traces: what a plan attains in the simulator, and the cheapest fleet that attains as much.

A *case* is a trace, at a rate, with objectives. Its service is planned from what a user would know of it: its rate, its
histogram of sizes and how bursty it is. The plan is replayed with the trace's own arrivals.
"""

from __future__ import annotations

import gzip
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from medley_planner.assemble import from_split
from medley_planner.capacities.capacity import capacities
from medley_planner.catalogue.gpus import gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.fleet import FleetState, Objectives, PlanOptions, Pool, Service, Stock, Variant
from medley_planner.outlook import outlook
from medley_planner.plan import plan
from medley_planner.programme.memo import Memo
from medley_planner.programme.split import split
from medley_planner.result import ServicePlan
from medley_planner.simulator.fit import fit
from medley_planner.simulator.fit import replayed as replay
from medley_planner.simulator.measures import Attainment
from medley_planner.simulator.requests import Requests
from medley_planner.simulator.run import RunOptions
from medley_planner.workload.buckets import histogram_of
from medley_planner.workload.traces import Trace, read_trace

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"
"""Where the public traces lie: beside the checkout, as they are data and not part of it."""

NAMES = ("azure-conv-2023", "azure-code-2023", "mooncake-conversation-2024")

PRICES_USD_PER_GPU_HOUR: Mapping[str, float] = {
    "A10G": 1.006,
    "A100-80GB": 3.431,
    "H100-80GB": 6.880,
    "L4": 0.805,
    "L40S": 1.861,
}
"""On demand, us-east-1, January 2026; an eighth of the 8-GPU instance where there is no smaller one."""

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
SEED = 20231116


@dataclass(frozen=True)
class Case:
    """A trace at a multiple of its own rate, under objectives."""

    trace: str
    speed: float
    setting: str
    objectives: Objectives

    def __str__(self) -> str:
        return f"{self.trace} ×{self.speed:g} {self.setting}"


def objective_settings(trace: str) -> Mapping[str, Objectives]:
    """Three settings; prompts of the Mooncake trace have up to 123,000 tokens, so their first token takes longer."""
    first_s = 10.0 if trace.startswith("mooncake") else 1.0
    return {
        "strict": Objectives(0.05, 1.0 * first_s, 90.0, 90.0),
        "usual": Objectives(0.08, 2.0 * first_s, 95.0, 95.0),
        "relaxed": Objectives(0.12, 5.0 * first_s, 99.0, 99.0),
    }


def pools() -> tuple[Pool, ...]:
    """GPUs without end."""
    return tuple(
        Pool(name.lower(), gpu_type(name), price, Stock.of(4096))
        for name, price in sorted(PRICES_USD_PER_GPU_HOUR.items())
    )


@cache
def trace_of(name: str) -> Trace:
    """A trace by the name of its file."""
    with gzip.open(TRACES / f"{name}.csv.gz", "rt", encoding="utf-8") as lines:
        return read_trace(lines)


@cache
def requests_of(name: str, speed: float) -> Requests:
    """The trace's requests at a multiple of its rate."""
    trace = trace_of(name)
    return Requests.of_trace(trace, rate_rps=trace.rate_rps * speed, rng=np.random.default_rng(SEED))


def service_of(case: Case, **settings: float) -> Service:
    """The case's service; settings are fields of `Service`, and `rate`, a factor on the rate."""
    trace = trace_of(case.trace)
    factor = settings.pop("rate", 1.0)
    context = 131_072 if case.trace.startswith("mooncake") else 16_384
    return Service(
        name=case.trace,
        model=known_models()[MODEL],
        rate_rps=trace.rate_rps * case.speed * factor,
        sizes=histogram_of(trace),
        objectives=case.objectives,
        tensor_parallel=(1, 2, 4),
        max_context_tokens=context,
        **settings,
    )


@dataclass(frozen=True)
class Replayed:
    """A fleet and what it attains.

    Args:
        mix: Its replicas.
        cost_usd_per_hour: What they cost.
        objectives: What came of each; those of a replay that was given up are not complete.
        attained: Whether all were kept.
    """

    mix: tuple[tuple[Variant, int], ...]
    cost_usd_per_hour: float
    objectives: tuple[Attainment, ...]
    attained: bool

    def __str__(self) -> str:
        mix = " + ".join(f"{count}×{variant}".removesuffix("/tp1") for variant, count in self.mix)
        return f"{mix} for {self.cost_usd_per_hour:.2f} $/h"


MEMO = Memo()


def planned(case: Case, **settings: float) -> tuple[Service, ServicePlan]:
    """The case's service and its plan."""
    service = service_of(case, **settings)
    state = FleetState((service,), pools())
    return service, plan(state, PlanOptions(explain=False), memo=MEMO).services[0]


def replayed(case: Case, service: Service, service_plan: ServicePlan, options: RunOptions) -> Replayed:
    """What a plan attains on the case's own arrivals; a replay that cannot attain any more is given up."""
    requests = requests_of(case.trace, case.speed)
    state = FleetState((service,), pools())
    cost = service_plan.cost_usd_per_hour
    found = replay(state, service.name, service_plan, requests, options, horizon_s=requests.span_s)
    return Replayed(_mix(service_plan), cost, found.objectives if found else (), attained=found is not None)


def fitted(case: Case, options: RunOptions) -> Replayed | None:
    """The fleet that `medley simulate --fit` proposes; None where no factor on the rate suffices."""
    requests = requests_of(case.trace, case.speed)
    state = FleetState((service_of(case),), pools())
    found = fit(state, case.trace, requests, options, horizon_s=requests.span_s, memo=MEMO)
    if found is None:
        return None
    plan_of_it = found.service_plan
    return Replayed(_mix(plan_of_it), plan_of_it.cost_usd_per_hour, found.measures.objectives, attained=True)


def fitted_before(case: Case, options: RunOptions) -> Replayed | None:
    """The fleet that fits the first half of the trace, replayed on the second half, of which it knows nothing."""
    requests = requests_of(case.trace, case.speed)
    known = requests.until(requests.span_s / 2)
    later = slice(len(known), len(requests))
    unknown = Requests(
        requests.arrivals_s[later] - requests.arrivals_s[len(known)],
        requests.input_tokens[later],
        requests.output_tokens[later],
    )
    seen = Trace(known.arrivals_s - known.arrivals_s[0], known.input_tokens, known.output_tokens)
    service = replace(service_of(case), rate_rps=seen.rate_rps, sizes=histogram_of(seen))
    state = FleetState((service,), pools())
    found = fit(state, case.trace, known, options, horizon_s=known.span_s, memo=MEMO)
    if found is None:
        return None
    plan_of_it = found.service_plan
    kept = replay(state, case.trace, plan_of_it, unknown, options, horizon_s=unknown.span_s)
    return Replayed(_mix(plan_of_it), plan_of_it.cost_usd_per_hour, (), attained=kept is not None)


def _mix(service_plan: ServicePlan) -> tuple[tuple[Variant, int], ...]:
    return tuple((entry.variant, entry.replicas) for entry in service_plan.mix)


# The cheapest fleet that attains

PATH = tuple(np.geomspace(0.4, 16.0, 74).tolist())
"""Factors on the planned rate: fleets planned for more than they get, or for less."""


@dataclass(frozen=True)
class Search:
    """What a search found.

    Args:
        best: The cheapest fleet found that attains; None where none of the path does.
        factor: The factor on the rate with which the planner makes the cheapest fleet of the path that attains.
        on_path: That fleet.
        tried: Fleets that were simulated.
        local: Whether all fleets around the best one were tried.
    """

    best: Replayed | None
    factor: float
    on_path: Replayed | None
    tried: int
    local: bool


def cheapest_attaining(case: Case, options: RunOptions, *, most: int, known: Sequence[Replayed] = ()) -> Search:
    """The cheapest fleet that attains, by search in the simulator.

    1. *Along the plans*: the planner's own optimal fleets for the rate times each factor of `PATH`, without headroom.
       The cheapest that attains, of these and of those known, is the first fleet.
    2. *Around it*: all fleets that come from the best one by taking away at most two replicas and adding at most three,
       of variants of the fleets on the path, and cost less; from the cheapest upwards. The first that attains becomes
       the best one, and the search goes on around it, until none does. Fleets that are contained in one that failed are
       passed over, and fleets that would have to serve twice what the estimates say.

    Args:
        case: The case.
        options: How it is simulated.
        most: Fleets to simulate at most in the second part.
        known: Fleets that were simulated already.
    """
    found: dict[tuple[tuple[Variant, int], ...], Replayed] = {}
    factor, on_path = math.nan, None
    variants: set[Variant] = set()
    best = min((each for each in known if each.attained), key=lambda each: each.cost_usd_per_hour, default=None)
    for each in PATH:
        service, service_plan = planned(case, rate=each)
        mix = _mix(service_plan)
        if mix not in found:
            found[mix] = replayed(case, service, service_plan, options)
        if each <= 4.0:
            variants |= {variant for variant, _ in mix}
        if found[mix].attained and (best is None or found[mix].cost_usd_per_hour < best.cost_usd_per_hour - 1e-9):
            factor, best, on_path = each, found[mix], found[mix]
        if on_path is not None or (best and service_plan.cost_usd_per_hour > 1.3 * best.cost_usd_per_hour):
            break
    if best is None:
        return Search(None, factor, None, len(found), local=False)
    around = _Around(case, options, tuple(sorted(variants | {variant for variant, _ in best.mix})), found)
    final, local = around.descend(best, most)
    return Search(final, factor, on_path, len(found), local)


class _Around:
    """Fleets around a fleet."""

    def __init__(
        self,
        case: Case,
        options: RunOptions,
        variants: tuple[Variant, ...],
        found: dict[tuple[tuple[Variant, int], ...], Replayed],
    ) -> None:
        self._case = case
        self._options = options
        self._found = found
        self._service = service_of(case, rate=0.5)
        ready = outlook(FleetState((self._service,), pools()), PlanOptions(explain=False), capacities, MEMO)
        self._prepared = ready.prepared[self._service.name]
        problem = self._prepared.problem
        self._places = [problem.variants.index(variant) for variant in variants if variant in problem.variants]
        self._failed = [self._counts(mix) for mix, replay in found.items() if not replay.attained]

    def descend(self, best: Replayed, most: int) -> tuple[Replayed, bool]:
        tried = 0
        better: Replayed | None = best
        while better is not None:
            best, better = better, None
            for counts in self._cheaper(best):
                if any(all(a <= b for a, b in zip(counts, other, strict=True)) for other in self._failed):
                    continue
                if tried >= most:
                    return best, False
                replay = self._replay(counts)
                if replay is not None:
                    tried += 1
                if replay is not None and replay.attained:
                    better = replay
                    break
                self._failed.append(counts)
        return best, True

    def _counts(self, mix: tuple[tuple[Variant, int], ...]) -> tuple[int, ...]:
        by_variant = dict(mix)
        return tuple(by_variant.get(self._prepared.problem.variants[v], 0) for v in self._places)

    def _cheaper(self, best: Replayed) -> list[tuple[int, ...]]:
        prices = [self._prepared.problem.prices[v] for v in self._places]
        start = self._counts(best.mix)
        kinds = range(len(start))
        around: dict[tuple[int, ...], float] = {}
        for taken in range(3):
            for less in itertools.combinations_with_replacement(kinds, taken):
                for added in range(4):
                    for more in itertools.combinations_with_replacement(kinds, added):
                        counts = list(start)
                        for place in less:
                            counts[place] -= 1
                        for place in more:
                            counts[place] += 1
                        cost = sum(price * count for price, count in zip(prices, counts, strict=True))
                        if min(counts) >= 0 and sum(counts) and cost < best.cost_usd_per_hour - 1e-9:
                            around[tuple(counts)] = cost
        return sorted(around, key=lambda counts: (around[counts], counts))

    def _replay(self, counts: tuple[int, ...]) -> Replayed | None:
        """None where the fleet cannot serve half of the requests, by estimate."""
        full = [0] * len(self._prepared.problem.variants)
        for place, count in zip(self._places, counts, strict=True):
            full[place] = count
        parts = split(self._prepared.problem, full, MEMO)
        if not parts.serves_all:
            return None
        service_plan = from_split(self._prepared, full, parts, 0.0, None)
        mix = _mix(service_plan)
        if mix not in self._found:
            self._found[mix] = replayed(self._case, self._service, service_plan, self._options)
        return self._found[mix]
