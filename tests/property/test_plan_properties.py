"""What holds for the plan of every fleet, on random ones."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace

import pulp
import pytest

from medley_planner.catalogue.gpus import gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.checking.check import check
from medley_planner.fleet import FleetState, Objectives, PlanOptions, Pool, ReplicaBounds, Service, Stock
from medley_planner.plan import plan
from medley_planner.programme.memo import Memo
from medley_planner.result import FleetPlan, Outcome
from medley_planner.workload.sizes import SizeHistogram
from planner_fleets import Rates, random_fleet, random_spread_fleet

FLEETS = 40
EXPLAINED_FLEETS = 16
"""Where plans are explained too, which takes longer than to make them."""

SEED = int(os.environ.get("MEDLEY_SEED", "20240614"))
QUICK = PlanOptions(explain=False)


def fleets(name: str, count: int = FLEETS) -> Iterator[tuple[str, random.Random, FleetState, Rates]]:
    for number in range(count):
        rng = random.Random(f"{name}/{SEED}/{number}")
        yield f"seed {SEED}, fleet {number}", rng, *random_fleet(rng)


def all_planned(fleet_plan: FleetPlan) -> bool:
    return all(each.outcome is Outcome.PLANNED for each in fleet_plan.services)


def without_caps(state: FleetState) -> FleetState:
    """Caps and bounds decide who is planned at all, which would hide what a change does to the price."""
    loose = {"max_cost_usd_per_hour": None, "replicas": ReplicaBounds(1), "replicas_by_pool": {}}
    return replace(state, services=tuple(replace(each, **loose) for each in state.services))


def test_every_plan_passes_the_check_and_costs_no_less_than_its_bound() -> None:
    for told, _, state, rates in fleets("sound"):
        found = plan(state, QUICK, capacity_of=rates)
        assert check(state, found, rates) == (), told
        assert found.lower_bound_usd_per_hour <= found.cost_usd_per_hour + 1e-9, told
        for each in found.services:
            if each.outcome is Outcome.PLANNED:
                assert 0 <= each.lower_bound_usd_per_hour <= each.cost_usd_per_hour + 1e-9, told
                assert each.served_share == 1.0, told


def test_the_order_of_services_and_pools_does_not_matter() -> None:
    for told, rng, state, rates in fleets("order", EXPLAINED_FLEETS):
        services, pools = list(state.services), list(state.pools)
        rng.shuffle(services)
        rng.shuffle(pools)
        shuffled = FleetState(tuple(services), tuple(pools))
        assert plan(shuffled, capacity_of=rates) == plan(state, capacity_of=rates), told


def test_a_memo_changes_nothing_but_the_time() -> None:
    memo = Memo()
    for told, _, state, rates in fleets("memo", EXPLAINED_FLEETS):
        fresh = plan(state, capacity_of=rates)
        assert plan(state, capacity_of=rates, memo=memo) == fresh, told
        assert plan(state, capacity_of=rates, memo=memo) == fresh, told
    assert memo.hits > 0


def test_planning_again_with_the_plan_running_changes_nothing() -> None:
    for told, _, state, rates in fleets("again"):
        found = plan(state, QUICK, capacity_of=rates)
        mixes = {each.name: {entry.variant: entry.replicas for entry in each.mix} for each in found.services}
        running = FleetState(tuple(replace(s, running=mixes[s.name]) for s in state.services), state.pools)
        again = plan(running, QUICK, capacity_of=rates)
        assert {each.name: each.mix for each in again.services} == {each.name: each.mix for each in found.services}, (
            told
        )


@pytest.mark.parametrize("raised", [1.1, 2.0])
def test_a_higher_price_never_makes_a_fleet_cheaper(raised: float) -> None:
    compared = 0
    for told, rng, state, rates in fleets("price"):
        loose = without_caps(state)
        dearer = rng.choice(loose.pools).name
        pools = tuple(
            replace(p, price_usd_per_gpu_hour=p.price_usd_per_gpu_hour * (raised if p.name == dearer else 1))
            for p in loose.pools
        )
        before, after = (
            plan(loose, QUICK, capacity_of=rates),
            plan(FleetState(loose.services, pools), QUICK, capacity_of=rates),
        )
        if all_planned(before):
            compared += 1
            assert all_planned(after), told
            assert after.cost_usd_per_hour >= before.cost_usd_per_hour - 2e-3, told
    assert compared >= 10


def test_more_requests_never_cost_less() -> None:
    compared = 0
    for told, rng, state, rates in fleets("rate"):
        loose = without_caps(state)
        busier = rng.choice(loose.services).name
        services = tuple(replace(s, rate_rps=s.rate_rps * (1.5 if s.name == busier else 1)) for s in loose.services)
        before, after = (
            plan(loose, QUICK, capacity_of=rates),
            plan(FleetState(services, loose.pools), QUICK, capacity_of=rates),
        )
        if all_planned(after):
            compared += 1
            assert all_planned(before), told
            assert after.cost_usd_per_hour >= before.cost_usd_per_hour - 2e-3, told
    assert compared >= 10


def test_more_stock_never_costs_more_and_never_serves_less() -> None:
    compared = 0
    for told, rng, state, rates in fleets("stock"):
        loose = without_caps(state)
        more = rng.choice(loose.pools).name
        pools = tuple(
            replace(
                p,
                stock=Stock({k: n + 4 * (k <= 4) for k, n in p.stock.gpus_in_groups_of.items()})
                if p.name == more
                else p.stock,
            )
            for p in loose.pools
        )
        before, after = (
            plan(loose, QUICK, capacity_of=rates),
            plan(FleetState(loose.services, pools), QUICK, capacity_of=rates),
        )
        decided = [s for s in loose.services if before.service(s.name).outcome is not Outcome.NO_GPU_FITS]
        served = [sum(s.rate_rps * each.service(s.name).served_share for s in decided) for each in (before, after)]
        assert served[1] >= served[0] - 1e-6, told
        if all_planned(before):
            compared += 1
            assert after.cost_usd_per_hour <= before.cost_usd_per_hour + 2e-3, told
    assert compared >= 10


def test_the_nearest_cap_is_the_lowest_that_will_do() -> None:
    compared = 0
    for told, _, state, rates in fleets("cap"):
        loose = without_caps(state)
        for service in loose.services:
            alone = FleetState((replace(service, max_cost_usd_per_hour=0.01),), state.pools)
            refused = plan(alone, QUICK, capacity_of=rates).services[0]
            if refused.outcome is not Outcome.CAP_TOO_LOW:
                continue
            compared += 1
            cap = refused.nearest_feasible_cap_usd_per_hour
            assert cap is not None, told
            for tried, outcome in ((cap, Outcome.PLANNED), (cap - 0.005, Outcome.CAP_TOO_LOW)):
                capped = FleetState((replace(service, max_cost_usd_per_hour=tried),), state.pools)
                assert plan(capped, QUICK, capacity_of=rates).services[0].outcome is outcome, f"{told}, cap {tried}"
    assert compared >= 10


def rescaled(state: FleetState, factor: float) -> FleetState:
    """The same fleet in another currency."""
    pools = tuple(replace(p, price_usd_per_gpu_hour=p.price_usd_per_gpu_hour * factor) for p in state.pools)
    services = tuple(replace(s, max_cost_usd_per_hour=_times(s.max_cost_usd_per_hour, factor)) for s in state.services)
    return FleetState(services, pools, _times(state.max_cost_usd_per_hour, factor))


def _times(amount: float | None, factor: float) -> float | None:
    return None if amount is None else amount * factor


@pytest.mark.parametrize("factor", [0.5, 8.0])
def test_the_currency_does_not_matter(factor: float) -> None:
    for told, _, state, rates in fleets("currency"):
        before = plan(state, QUICK, capacity_of=rates)
        after = plan(rescaled(state, factor), QUICK, capacity_of=rates)
        assert [each.outcome for each in after.services] == [each.outcome for each in before.services], told
        assert after.cost_usd_per_hour == pytest.approx(before.cost_usd_per_hour * factor, abs=2e-3 * factor), told


def renamed(state: FleetState, rates: Rates, prefix: str) -> tuple[FleetState, Rates]:
    """The same fleet with other names of services, pools and GPU types, in the same order."""

    def name(old: str) -> str:
        return f"{prefix}-{old}"

    pools = tuple(replace(p, name=name(p.name), gpu=replace(p.gpu, name=name(p.gpu.name))) for p in state.pools)
    services = tuple(
        replace(
            s,
            name=name(s.name),
            pools=None if s.pools is None else tuple(map(name, s.pools)),
            replicas_by_pool={name(pool): bounds for pool, bounds in s.replicas_by_pool.items()},
        )
        for s in state.services
    )
    table = {(name(gpu), *rest): by_size for (gpu, *rest), by_size in rates.table.items()}
    places = {name(gpu): count for gpu, count in rates.places.items()}
    return replace(state, services=services, pools=pools), Rates(table, places)


def test_names_do_not_matter() -> None:
    for told, _, state, rates in fleets("names"):
        before = plan(state, QUICK, capacity_of=rates)
        other_state, other_rates = renamed(state, rates, "z")
        after = plan(other_state, QUICK, capacity_of=other_rates)
        assert after.cost_usd_per_hour == before.cost_usd_per_hour, told
        for one, other in zip(before.services, after.services, strict=True):
            assert other.name == f"z-{one.name}", told
            assert other.outcome is one.outcome, told
            mixes = [
                [(e.variant.pool.removeprefix("z-"), e.variant.gpus, e.replicas) for e in p.mix] for p in (one, other)
            ]
            assert mixes[0] == mixes[1], told


def test_one_pool_more_never_costs_more() -> None:
    compared = 0
    for told, rng, state, rates in fleets("pool"):
        loose = without_caps(state)
        bounds = {"pools": None, "replicas_by_pool": {}}
        loose = replace(loose, services=tuple(replace(s, **bounds) for s in loose.services))
        left_out = rng.choice(loose.pools).name
        fewer = replace(loose, pools=tuple(p for p in loose.pools if p.name != left_out))
        before, after = plan(fewer, QUICK, capacity_of=rates), plan(loose, QUICK, capacity_of=rates)
        if fewer.pools and all_planned(before):
            compared += 1
            assert all_planned(after), told
            assert after.cost_usd_per_hour <= before.cost_usd_per_hour + 2e-3, told
    assert compared >= 5


def fractional_cost(state: FleetState, rates: Rates) -> float:
    """What replicas in fractions would cost for demand, capacity and stock: a linear programme of this test alone."""
    model = pulp.LpProblem("fractions", pulp.LpMinimize)
    price: list[pulp.LpAffineExpression] = []
    used: dict[tuple[str, int], list[pulp.LpAffineExpression]] = {}
    for s, service in enumerate(state.services):
        for_bucket: dict[int, list[pulp.LpVariable]] = {b: [] for b in range(len(service.sizes.buckets))}
        for pool in state.pools:
            for size in service.tensor_parallel or (1, 2, 4, 8, 16):
                capacities = rates.table.get((pool.gpu.name, size), {})
                if size > pool.gpus_per_node:
                    continue
                replicas = model.add_variable(f"n_{s}_{pool.name}_{size}", 0)
                price.append(pool.price_usd_per_gpu_hour * size * replicas)
                used.setdefault((pool.name, size), []).append(size * replicas)
                load = []
                for b, bucket in enumerate(service.sizes.buckets):
                    rate_rps = capacities.get((bucket.input_tokens, bucket.output_tokens), 0.0)
                    if rate_rps > 0:
                        share = model.add_variable(f"x_{s}_{b}_{pool.name}_{size}", 0, 1)
                        for_bucket[b].append(share)
                        demand_rps = service.rate_rps * bucket.weight
                        load.append(demand_rps / (rate_rps * (1 - service.headroom)) * share)
                model += pulp.lpSum(load) <= replicas
        for shares in for_bucket.values():
            model += pulp.lpSum(shares) == 1
    for pool in state.pools:
        for group, gpus in pool.stock.gpus_in_groups_of.items():
            model += (
                pulp.lpSum(e for (name, size), es in used.items() if name == pool.name and size >= group for e in es)
                <= gpus
            )
    model += pulp.lpSum(price)
    model.solve(pulp.HiGHS(msg=False))
    assert model.sol_status == pulp.LpSolutionOptimal
    return float(pulp.value(model.objective) or 0.0)


def test_no_plan_costs_less_than_replicas_in_fractions_would() -> None:
    compared = 0
    for told, _, state, rates in fleets("fractions"):
        found = plan(state, QUICK, capacity_of=rates)
        if all_planned(found):
            compared += 1
            least = fractional_cost(state, rates)
            assert least <= found.cost_usd_per_hour + 1e-6, told
            assert found.lower_bound_usd_per_hour >= least - 1e-4, told
    assert compared >= 10


def test_plans_with_spread_losses_queues_roles_and_caps_pass_the_check_and_stay() -> None:
    for number in range(FLEETS):
        rng = random.Random(f"spread/{SEED}/{number}")
        state, rates = random_spread_fleet(rng)
        told = f"seed {SEED}, fleet {number}"
        found = plan(state, QUICK, capacity_of=rates)
        assert check(state, found, rates) == (), told
        assert found.lower_bound_usd_per_hour <= found.expected_usd_per_hour + 1e-9, told
        if all_planned(found):
            mixes = {each.name: {entry.variant: entry.replicas for entry in each.mix} for each in found.services}
            running = replace(state, services=tuple(replace(s, running=mixes[s.name]) for s in state.services))
            again = plan(running, QUICK, capacity_of=rates)
            assert [each.mix for each in again.services] == [each.mix for each in found.services], told


@pytest.mark.parametrize("field", ["time_per_output_token_s", "time_to_first_token_s"])
def test_a_stricter_objective_never_costs_less(field: str) -> None:
    """With the planner's own estimates of a known model on known GPUs."""
    compared = 0
    pools = tuple(
        Pool(name, gpu_type(name), price, Stock.of(512))
        for name, price in (("L4", 0.8), ("A100-80GB", 3.4), ("H100-80GB", 6.9))
    )
    model = known_models()["meta-llama/Llama-3.1-8B-Instruct"]
    memo = Memo()
    for number in range(6):
        rng = random.Random(f"{field}/{SEED}/{number}")
        sizes = SizeHistogram.of(*((rng.randint(50, 6000), rng.randint(10, 800), rng.random()) for _ in range(4)))
        loose = Objectives(time_per_output_token_s=0.2, time_to_first_token_s=4.0)
        costs = []
        for factor in (1.0, 0.5, 0.2, 0.1):
            wanted = replace(loose, **{field: getattr(loose, field) * factor})
            asked = Service("chat", model, 4.0 + number, sizes, wanted, max_context_tokens=16_384)
            found = plan(FleetState((asked,), pools), QUICK, memo=memo).services[0]
            if found.outcome is Outcome.PLANNED:
                costs.append(found.cost_usd_per_hour)
        compared += len(costs) - 1
        assert costs == sorted(costs), f"seed {SEED}, number {number}"
    assert compared >= 6
