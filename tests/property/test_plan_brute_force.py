"""Plans against exhaustive enumeration on small random fleets: services that share stock, caps, bounds, groups of GPUs.

The enumeration shares nothing with the planner but the fleet: it tries every mix that fits the stock, asks a linear
programme of its own whether the mix serves the demand, and tries every combination of the services' mixes.
More replicas never serve less, so only the smallest mixes that serve everything within the bounds have to be combined.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import replace

import highspy
import numpy as np
import pytest

from medley_planner.fleet import FleetState, PlanOptions, Pool, Service, Variant
from medley_planner.plan import plan
from medley_planner.result import FleetPlan, Outcome, SolverStatus
from planner_fleets import Rates, random_fleet

FLEETS = int(os.environ.get("MEDLEY_FLEETS", "850"))
KINDS = ("together", "scarce", "short", "cap", "bounds", "nowhere")
SEED = int(os.environ.get("MEDLEY_SEED", "20240429"))

RUNNING_FLEETS = 150
MOST_COMBINATIONS = 3_000
"""Combinations of mixes that are tried where stock is short; each service's mixes cost a linear programme."""

Mix = tuple[int, ...]


class Enumerated:
    """A service and all there is to know about its mixes."""

    def __init__(self, state: FleetState, service: Service, rates: Rates) -> None:
        self.service = service
        self.pools = {pool.name: pool for pool in state.pools}
        self.variants = [
            Variant(pool.name, size)
            for pool in sorted(state.pools, key=lambda each: each.name)
            for size in service.tensor_parallel or (1, 2, 4, 8, 16)
            if size <= pool.gpus_per_node
        ]
        self.loads = [self._loads(bucket, rates) for bucket in service.sizes.buckets]
        usable = [v for v in range(len(self.variants)) if any(math.isfinite(row[v]) for row in self.loads)]
        self.variants = [self.variants[v] for v in usable]
        self.loads = [[row[v] for v in usable] for row in self.loads]

    def _loads(self, bucket, rates: Rates) -> list[float]:
        size = (bucket.input_tokens, bucket.output_tokens)
        room = 1 - self.service.headroom
        found = []
        for variant in self.variants:
            rps = rates(gpu=self.pools[variant.pool].gpu, parallelism=variant.parallelism, sizes=[size])[0]
            rps = rps.requests_per_second * room
            found.append(self.service.rate_rps * bucket.weight / rps if rps > 0 else math.inf)
        return found

    def price(self, mix: Mix) -> float:
        return sum(n * self.unit_price(v) for v, n in enumerate(mix))

    def unit_price(self, v: int) -> float:
        variant = self.variants[v]
        return variant.tensor_parallel * self.pools[variant.pool].price_usd_per_gpu_hour

    def gpus(self, mix: Mix, pool: str, at_least: int) -> int:
        return sum(
            n * variant.tensor_parallel
            for n, variant in zip(mix, self.variants, strict=True)
            if variant.pool == pool and variant.tensor_parallel >= at_least
        )

    def nowhere(self) -> bool:
        """Whether some size is served by no variant at all."""
        return any(all(math.isinf(load) for load in row) for row in self.loads)

    @functools.cache  # noqa: B019 (a test's object; it dies with the test)
    def served(self, mix: Mix) -> float:
        return served_share(self.loads, [b.weight for b in self.service.sizes.buckets], mix)

    def serves(self, mix: Mix) -> bool:
        return self.served(mix) > 1 - 1e-7

    def affordable(self) -> list[Mix]:
        """All mixes within stock, cap and upper bounds."""
        most = [self._most(v, True) for v in range(len(self.variants))]
        mixes = itertools.product(*(range(n + 1) for n in most))
        return [mix for mix in mixes if fits([(self, mix)], self.pools) and self._within_maxima(mix, True)]

    def mixes(self, *, cap: bool = True, stock: bool = True) -> list[Mix]:
        """The smallest mixes that serve everything within bounds."""
        most = [self._most(v, stock) for v in range(len(self.variants))]
        found: list[Mix] = []
        for mix in sorted(itertools.product(*(range(n + 1) for n in most)), key=sum):
            if any(all(a <= b for a, b in zip(small, mix, strict=True)) for small in found):
                continue
            if self._reaches_minima(mix) and (not stock or fits([(self, mix)], self.pools)) and self.serves(mix):
                found.append(mix)
        return [mix for mix in found if self._within_maxima(mix, cap)]

    def _most(self, v: int, stock: bool) -> int:
        size = self.variants[v].tensor_parallel
        if stock:
            return groups(self.pools[self.variants[v].pool], size) // size
        return math.ceil(sum(row[v] for row in self.loads if math.isfinite(row[v]))) + self.service.replicas.minimum + 1

    def _reaches_minima(self, mix: Mix) -> bool:
        bounds = self.service.replicas_by_pool.items()
        return sum(mix) >= self.service.replicas.minimum and all(self._in(mix, p) >= b.minimum for p, b in bounds)

    def _within_maxima(self, mix: Mix, cap: bool) -> bool:
        total, limit = self.service.replicas.maximum, self.service.max_cost_usd_per_hour
        if (total is not None and sum(mix) > total) or (cap and limit is not None and self.price(mix) > limit + 1e-6):
            return False
        bounds = self.service.replicas_by_pool.items()
        return all(b.maximum is None or self._in(mix, p) <= b.maximum for p, b in bounds)

    def _in(self, mix: Mix, pool: str) -> int:
        return sum(n for n, variant in zip(mix, self.variants, strict=True) if variant.pool == pool)


def served_share(loads: list[list[float]], weights: list[float], mix: Mix) -> float:
    """The largest share of requests that a mix serves, by a linear programme on the arrays of HiGHS."""
    cells = [(b, v) for b, row in enumerate(loads) for v, load in enumerate(row) if math.isfinite(load) and mix[v] > 0]
    if not cells:
        return 0.0
    rows = len(loads) + len(mix)
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(cells), rows
    model.sense_ = highspy.ObjSense.kMaximize
    model.col_cost_ = np.array([weights[b] for b, _ in cells])
    model.col_lower_, model.col_upper_ = np.zeros(len(cells)), np.ones(len(cells))
    model.row_lower_ = np.full(rows, -np.inf)
    model.row_upper_ = np.array([1.0] * len(loads) + [float(n) for n in mix])
    model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    model.a_matrix_.start_ = np.arange(0, 2 * len(cells) + 1, 2)
    model.a_matrix_.index_ = np.array([i for b, v in cells for i in (b, len(loads) + v)])
    model.a_matrix_.value_ = np.array([x for b, v in cells for x in (1.0, loads[b][v])])
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    highs.passModel(model)
    highs.run()
    assert highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return float(highs.getInfo().objective_function_value)


def groups(pool: Pool, size: int) -> int:
    return min(gpus for k, gpus in pool.stock.gpus_in_groups_of.items() if k <= size)


def fits(mixes: list[tuple[Enumerated, Mix]], pools: dict[str, Pool]) -> bool:
    return all(
        sum(each.gpus(mix, name, size) for each, mix in mixes) <= groups(pool, size)
        for name, pool in pools.items()
        for size in (1, 2, 4)
    )


def combinations(services: list[Enumerated], mixes: list[list[Mix]], pools: dict[str, Pool]) -> Iterator[float]:
    """The prices of all combinations of mixes that fit the stock."""
    for chosen in itertools.product(*mixes):
        if fits(list(zip(services, chosen, strict=True)), pools):
            yield sum(each.price(mix) for each, mix in zip(services, chosen, strict=True))


def compare(state: FleetState, rates: Rates) -> str:
    """Check the plan of one fleet against enumeration; what kind of fleet it was."""
    found = plan(state, PlanOptions(explain=False), capacity_of=rates)
    assert found.status is SolverStatus.OPTIMAL
    deciding, kinds = [], set()
    for service in sorted(state.services, key=lambda each: each.name):
        each = Enumerated(state, service, rates)
        kind = compare_alone(each, found)
        if kind in ("alone", "stock"):
            deciding.append(each)
        else:
            kinds.add(kind)
    if deciding:
        kinds.add(compare_together(deciding, found, state))
    return "+".join(sorted(kinds))


def compare_alone(each: Enumerated, found: FleetPlan) -> str:
    """Why the service cannot be planned even alone, and that the plan says so; `alone` where it can be."""
    its_plan = found.service(each.service.name)
    if each.nowhere():
        assert its_plan.outcome is Outcome.NO_GPU_FITS
        return "nowhere"
    if mixes := each.mixes():
        best = min(each.price(mix) for mix in mixes)
        assert its_plan.lower_bound_usd_per_hour == pytest.approx(best, abs=1e-4)
        return "alone"
    if uncapped := each.mixes(cap=False):
        assert its_plan.outcome is Outcome.CAP_TOO_LOW
        nearest = min(each.price(mix) for mix in uncapped)
        assert its_plan.nearest_feasible_cap_usd_per_hour == pytest.approx(nearest, abs=1e-3)
        return "cap"
    assert its_plan.outcome in (Outcome.STOCK_SHORT, Outcome.REPLICA_BOUNDS)
    return "stock" if its_plan.outcome is Outcome.STOCK_SHORT else "bounds"


def compare_together(deciding: list[Enumerated], found: FleetPlan, state: FleetState) -> str:
    """The services that each could be planned alone, under the stock they share: the same price, or both short."""
    pools = {pool.name: pool for pool in state.pools}
    best = min(combinations(deciding, [each.mixes() for each in deciding], pools), default=math.inf)
    plans = [found.service(each.service.name) for each in deciding]
    if math.isinf(best):
        assert any(its_plan.outcome is Outcome.STOCK_SHORT for its_plan in plans)
        return compare_served(deciding, found, pools)
    assert all(its_plan.outcome is Outcome.PLANNED for its_plan in plans)
    assert sum(its_plan.cost_usd_per_hour for its_plan in plans) == pytest.approx(best, abs=1e-6)
    bounds = sum(its_plan.lower_bound_usd_per_hour for its_plan in plans)
    return "scarce" if best > bounds + 1e-4 else "together"


def compare_served(deciding: list[Enumerated], found: FleetPlan, pools: dict[str, Pool]) -> str:
    """Where stock is short: as many requests are served as any combination of mixes could."""
    boxes = [each.affordable() for each in deciding]
    if math.prod(len(box) for box in boxes) > MOST_COMBINATIONS:
        return "short, too large to enumerate"
    most = max(
        sum(each.served(mix) * each.service.rate_rps for each, mix in zip(deciding, chosen, strict=True))
        for chosen in itertools.product(*boxes)
        if fits(list(zip(deciding, chosen, strict=True)), pools)
    )
    served = sum(found.service(each.service.name).served_share * each.service.rate_rps for each in deciding)
    assert served == pytest.approx(most, rel=1e-5, abs=1e-6)
    return "short"


def test_plans_cost_what_exhaustive_enumeration_finds(capsys: pytest.CaptureFixture[str]) -> None:
    kinds: dict[str, int] = {}
    for number in range(FLEETS):
        rng = random.Random(f"{SEED}/{number}")
        state, rates = random_fleet(rng)
        try:
            kind = compare(state, rates)
        except AssertionError as error:
            raise AssertionError(f"seed {SEED}, fleet {number}: {state}") from error
        kinds[kind] = kinds.get(kind, 0) + 1
    with capsys.disabled():
        sys.stdout.write(f"\nseed {SEED}: {FLEETS} fleets: {dict(sorted(kinds.items(), key=lambda item: -item[1]))}\n")
    compared = {kind: sum(n for name, n in kinds.items() if kind in name.split("+")) for kind in KINDS}
    assert compared["together"] + compared["scarce"] >= 500
    assert compared["scarce"] >= 30
    assert compared["short"] >= 30
    assert compared["cap"] + compared["bounds"] + compared["nowhere"] >= 30


def test_changes_to_what_runs_cost_what_exhaustive_enumeration_finds() -> None:
    """With replicas running, price and switching cost together are what no other combination of mixes undercuts."""
    compared = 0
    for number in range(RUNNING_FLEETS):
        rng = random.Random(f"running/{SEED}/{number}")
        state, rates = random_fleet(rng)
        pools = {pool.name: pool for pool in state.pools}
        services = [Enumerated(state, service, rates) for service in state.services]
        mixes = [[] if each.nowhere() else each.mixes() for each in services]
        now = tuple(tuple(rng.randint(0, 2) for _ in each.variants) for each in services)
        best = min(
            (
                sum(changed_cost(each, mix, runs) for each, mix, runs in zip(services, chosen, now, strict=True))
                for chosen in itertools.product(*mixes)
                if fits(list(zip(services, chosen, strict=True)), pools)
            ),
            default=math.inf,
        )
        if math.isinf(best):
            continue
        compared += 1
        running = [dict(zip(each.variants, runs, strict=True)) for each, runs in zip(services, now, strict=True)]
        changed = tuple(replace(each.service, running=runs) for each, runs in zip(services, running, strict=True))
        found = plan(FleetState(changed, state.pools), PlanOptions(explain=False), capacity_of=rates)
        planned = [
            tuple(
                {e.variant: e.replicas for e in found.service(each.service.name).mix}.get(v, 0) for v in each.variants
            )
            for each in services
        ]
        cost = sum(changed_cost(each, mix, runs) for each, mix, runs in zip(services, planned, now, strict=True))
        assert cost == pytest.approx(best, abs=2e-3), f"seed {SEED}, fleet {number}: {state} running {running}"
    assert compared >= 60, f"seed {SEED}"


def changed_cost(each: Enumerated, mix: Mix, runs: Mix) -> float:
    """USD per hour with what loading the added replicas costs, spread over an hour; nothing where nothing runs."""
    added = [max(0, n - r) for n, r in zip(mix, runs, strict=True)] if any(runs) else [0] * len(mix)
    load_s = [each.pools[variant.pool].load_time_s for variant in each.variants]
    return each.price(mix) + sum(n * each.unit_price(v) * load_s[v] / 3600 for v, n in enumerate(added))
