"""Plans against exhaustive enumeration where replicas must be spread and queue, compute parts, or money is short.

Spot, reserved and on-demand pools; shares of spot and of every pool; losses to survive; headroom for queueing; replicas
that compute a part of requests; caps of services and of the fleet. The enumeration shares nothing with the planner but
the fleet and the formula of queueing headroom, which has tests of its own: it tries every mix that fits the stock, and
asks a linear programme of its own how much of the demand the mix serves, and what is left of it after each loss.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import highspy
import numpy as np
import pytest

from medley_planner.fleet import CapacityType, FleetState, PlanOptions, Role, Service, Variant
from medley_planner.plan import plan
from medley_planner.programme.headroom import queue_of, usable_replicas
from medley_planner.result import FleetPlan, Outcome, SolverStatus
from planner_fleets import Rates, random_spread_fleet

FLEETS = int(os.environ.get("MEDLEY_SPREAD_FLEETS", "120"))
SEED = int(os.environ.get("MEDLEY_SEED", "20240429"))
QUICK = PlanOptions(explain=False)
USD = 2e-3
PARTS = (Role.PREFILL, Role.DECODE)

Mix = tuple[int, ...]


class Enumerated:
    """A service and all there is to know about its mixes."""

    def __init__(self, state: FleetState, service: Service, rates: Rates) -> None:
        self.service = service
        self.pools = {pool.name: pool for pool in state.pools}
        roles = list(Role) if service.disaggregated else [Role.SHARED]
        variants = sorted(Variant(pool, 1, role=role) for pool in self.pools for role in roles)
        self.capacities = {v: self._capacities(v, rates) for v in variants}
        self.variants = [v for v in variants if any(each.requests_per_second > 0 for each in self.capacities[v])]
        self.loads = [
            [self._load(bucket.weight, self.capacities[v][b].requests_per_second) for v in self.variants]
            for b, bucket in enumerate(service.sizes.buckets)
        ]

    def _capacities(self, variant: Variant, rates: Rates):
        sizes = [(bucket.input_tokens, bucket.output_tokens) for bucket in self.service.sizes.buckets]
        gpu = self.pools[variant.pool].gpu
        return rates(gpu=gpu, parallelism=variant.parallelism, role=variant.role, sizes=sizes)

    def _load(self, weight: float, rps: float) -> float:
        return self.service.rate_rps * weight / (rps * (1 - self.service.headroom)) if rps > 0 else math.inf

    def kind(self, v: int) -> CapacityType:
        return self.pools[self.variants[v].pool].capacity_type

    def bill(self, mix: Mix) -> float:
        """What a mix adds to the bill."""
        return sum(
            n * self.pools[self.variants[v].pool].price_usd_per_gpu_hour
            for v, n in enumerate(mix)
            if self.kind(v) is not CapacityType.RESERVED
        )

    def expected(self, mix: Mix) -> float:
        """The same with what interruptions cost: each time, a replacement's price while it loads."""
        risk = 0.0
        for v, n in enumerate(mix):
            pool = self.pools[self.variants[v].pool]
            if self.kind(v) is CapacityType.SPOT:
                risk += n * pool.price_usd_per_gpu_hour * pool.interruptions_per_hour * pool.load_time_s / 3600
        return self.bill(mix) + risk

    @functools.cache  # noqa: B019 (a test's object; it dies with the test)
    def usable(self, v: int, n: int) -> float:
        if self.service.queueing_quantile == 0:
            return float(n)
        capacities = self.capacities[self.variants[v]]
        queue = queue_of(
            [self.service.rate_rps * bucket.weight for bucket in self.service.sizes.buckets],
            [each.requests_per_second for each in capacities],
            [each.concurrency for each in capacities],
            interarrival_cv=self.service.interarrival_cv,
            quantile=self.service.queueing_quantile,
        )
        return usable_replicas(n, queue)

    @functools.cache  # noqa: B019
    def served(self, mix: Mix) -> float:
        """The largest share of every size's requests that a mix serves, at most 1."""
        roles = [variant.role for variant in self.variants]
        return largest_share(self.loads, roles, [self.usable(v, n) for v, n in enumerate(mix)])

    def nowhere(self) -> bool:
        return any(
            not any(
                math.isfinite(load) and v.role in (Role.SHARED, part)
                for load, v in zip(row, self.variants, strict=True)
            )
            for row in self.loads
            for part in PARTS
        )

    def in_stock(self) -> Iterator[Mix]:
        most = [self.pools[variant.pool].stock.gpus for variant in self.variants]
        for mix in itertools.product(*(range(n + 1) for n in most)):
            if fits([(self, mix)], self.pools):
                yield mix

    def spread(self, mix: Mix, service: Service) -> bool:
        """Whether bounds, the cap and the shares of replicas hold."""
        rules, every = service.availability, sum(mix)
        cap, most = service.max_cost_usd_per_hour, service.replicas.maximum
        spot = sum(n for v, n in enumerate(mix) if self.kind(v) is CapacityType.SPOT)
        return (
            every >= service.replicas.minimum
            and (most is None or every <= most)
            and (cap is None or self.bill(mix) <= cap + 1e-6)
            and spot <= rules.spot_max_share * every + 1e-9
            and all(self.in_pool(mix, pool) <= rules.pool_max_share * every + 1e-9 for pool in self.pools)
        )

    def in_pool(self, mix: Mix, pool: str) -> int:
        return sum(n for n, variant in zip(mix, self.variants, strict=True) if variant.pool == pool)

    def survives(self, mix: Mix, share: float) -> bool:
        return all(
            self.served(tuple(0 if v.pool == name else n for n, v in zip(mix, self.variants, strict=True)))
            >= share - 1e-7
            for name, pool in self.pools.items()
            if share > 0 and pool.capacity_type is CapacityType.SPOT and self.in_pool(mix, name) > 0
        )

    def mixes(self, service: Service | None = None) -> list[Mix]:
        """All mixes in stock that do what the service (or another one of the same demand) asks for."""
        asked = service or self.service
        return [
            mix
            for mix in self.in_stock()
            if self.spread(mix, asked)
            and self.served(mix) > 1 - 1e-7
            and self.survives(mix, asked.availability.survivable_share)
        ]


def largest_share(loads: Sequence[Sequence[float]], roles: Sequence[Role], usable: Sequence[float]) -> float:
    """max t ≤ 1 with Σ_{v computes i} x[b,v] = t for all b, i and Σ_b ℓ·x ≤ usable, by HiGHS on arrays."""
    cells = [(b, v) for b, row in enumerate(loads) for v, load in enumerate(row) if math.isfinite(load) and usable[v]]
    buckets, variants = len(loads), len(usable)
    rows: list[dict[int, float]] = [{} for _ in range(2 * buckets + variants)]
    for column, (b, v) in enumerate(cells):
        for i, part in enumerate(PARTS):
            if roles[v] in (Role.SHARED, part):
                rows[2 * b + i][column] = 1.0
        rows[2 * buckets + v][column] = loads[b][v]
    if not all(rows[: 2 * buckets]):
        return 0.0
    for row in rows[: 2 * buckets]:
        row[len(cells)] = -1.0
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(cells) + 1, len(rows)
    model.sense_ = highspy.ObjSense.kMaximize
    model.col_cost_ = np.array([0.0] * len(cells) + [1.0])
    model.col_lower_, model.col_upper_ = np.zeros(len(cells) + 1), np.ones(len(cells) + 1)
    model.row_lower_ = np.array([0.0] * (2 * buckets) + [-np.inf] * variants)
    model.row_upper_ = np.array([0.0] * (2 * buckets) + [float(each) for each in usable])
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.cumsum([0] + [len(row) for row in rows])
    model.a_matrix_.index_ = np.array([column for row in rows for column in row])
    model.a_matrix_.value_ = np.array([value for row in rows for value in row.values()])
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    highs.passModel(model)
    highs.run()
    assert highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return float(highs.getInfo().objective_function_value)


def fits(mixes: Sequence[tuple[Enumerated, Mix]], pools) -> bool:
    return all(sum(each.in_pool(mix, name) for each, mix in mixes) <= pool.stock.gpus for name, pool in pools.items())


def together(services: Sequence[Enumerated], mixes: Sequence[Sequence[Mix]]) -> Iterator[tuple[float, float]]:
    """What all combinations of mixes that fit the stock add to the bill, and what they cost as expected."""
    for chosen in itertools.product(*mixes):
        pairs = list(zip(services, chosen, strict=True))
        if fits(pairs, services[0].pools):
            yield sum(each.bill(mix) for each, mix in pairs), sum(each.expected(mix) for each, mix in pairs)


def compare(state: FleetState, rates: Rates) -> str:
    """Check the plan of one fleet against enumeration; what kind of fleet it was."""
    found = plan(state, QUICK, capacity_of=rates)
    assert found.status is SolverStatus.OPTIMAL
    services = [Enumerated(state, service, rates) for service in state.services]
    mixes = [[] if each.nowhere() else each.mixes() for each in services]
    cap = math.inf if state.max_cost_usd_per_hour is None else state.max_cost_usd_per_hour
    combined = list(together(services, mixes))
    affordable = [expected for bill, expected in combined if bill <= cap + 1e-6]
    if affordable:
        assert all(each.outcome is Outcome.PLANNED for each in found.services)
        assert found.expected_usd_per_hour == pytest.approx(min(affordable), abs=USD)
        assert found.lower_bound_usd_per_hour <= min(affordable) + 1e-6
        return "planned"
    if combined:
        assert Outcome.FLEET_CAP_TOO_LOW in {each.outcome for each in found.services}
        assert found.nearest_feasible_cap_usd_per_hour == pytest.approx(min(bill for bill, _ in combined), abs=1e-3)
        return "fleet cap"
    assert any(each.outcome is not Outcome.PLANNED for each in found.services)
    return "+".join(sorted({compare_alone(each, found) for each in services}))


def compare_alone(each: Enumerated, found: FleetPlan) -> str:
    """That a service which cannot be planned even alone says why, and what would do."""
    its_plan = found.service(each.service.name)
    rules, outcome, nearest = each.service.availability, its_plan.outcome, its_plan.nearest_feasible_share
    if each.nowhere():
        assert outcome is Outcome.NO_GPU_FITS
    elif outcome is Outcome.CAP_TOO_LOW:
        uncapped = each.mixes(replace(each.service, max_cost_usd_per_hour=None))
        least = min(each.bill(mix) for mix in uncapped)
        assert its_plan.nearest_feasible_cap_usd_per_hour == pytest.approx(least, abs=1e-3)
    elif outcome in NEAREST:
        field, looser = NEAREST[outcome]
        assert nearest is not None
        for share, feasible in ((nearest, True), (nearest - 0.01 * looser, False)):
            shares = replace(rules, **{field: share})
            assert bool(each.mixes(replace(each.service, availability=shares))) is feasible, f"{field} {share}"
    else:
        assert nearest is None
    return outcome.value


NEAREST = {
    Outcome.SPOT_SHARE_TOO_LOW: ("spot_max_share", 1),
    Outcome.POOL_SHARE_TOO_LOW: ("pool_max_share", 1),
    Outcome.SURVIVABLE_SHARE_TOO_HIGH: ("survivable_share", -1),
}


def test_plans_cost_what_exhaustive_enumeration_finds(capsys: pytest.CaptureFixture[str]) -> None:
    kinds: dict[str, int] = {}
    for number in range(FLEETS):
        rng = random.Random(f"spread/{SEED}/{number}")
        state, rates = random_spread_fleet(rng)
        try:
            kind = compare(state, rates)
        except Exception as error:
            raise AssertionError(f"seed {SEED}, fleet {number}: {state} {rates}") from error
        kinds[kind] = kinds.get(kind, 0) + 1
    with capsys.disabled():
        sys.stdout.write(f"\nseed {SEED}: {FLEETS} fleets: {dict(sorted(kinds.items(), key=lambda item: -item[1]))}\n")
    assert kinds["planned"] >= FLEETS // 4
    assert kinds.get("fleet cap", 0) >= FLEETS // 80
