"""From a plan to a simulation: engines as the estimates say, stretched where capacities are measured; and the fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medley_planner.capacities.step_time import StepTime
from medley_planner.catalogue.gpus import gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.fleet import FleetState, Objectives, Parallelism, PlanOptions, Pool, Service, Stock, Variant
from medley_planner.plan import plan
from medley_planner.simulator.engine import EngineLimits, StepTimes
from medley_planner.simulator.fit import fit
from medley_planner.simulator.replay import NothingToSimulateError, planned_run, replica_kind, simulate
from medley_planner.simulator.requests import Requests
from medley_planner.simulator.run import RunOptions, StepBudget
from medley_planner.workload.sizes import SizeHistogram

MODEL = known_models()["meta-llama/Llama-3.1-8B-Instruct"]
POOLS = (
    Pool("l40s", gpu_type("L40S"), 1.861, Stock.of(64)),
    Pool("h100", gpu_type("H100-80GB"), 6.88, Stock.of(64)),
)
SIZES = SizeHistogram.of((500, 100, 0.6), (3000, 300, 0.4))
OPTIONS = PlanOptions(explain=False)
ONE = Variant("l40s", 1)


def service(**more: object) -> Service:
    objectives = more.pop("objectives", Objectives(0.06, 1.0, 90.0, 90.0))
    rate_rps = more.pop("rate_rps", 8.0)
    return Service("chat", MODEL, rate_rps, SIZES, objectives, max_context_tokens=8192, **more)


def drawn(rate_rps: float, *, seed: int = 1, duration_s: float = 150.0, cv: float = 1.0) -> Requests:
    rng = np.random.default_rng(seed)
    return Requests.drawn(SIZES, rate_rps=rate_rps, duration_s=duration_s, rng=rng, interarrival_cv=cv)


def test_steps_take_what_the_estimates_say() -> None:
    times = StepTime(MODEL, gpu_type("L40S"), Parallelism(tensor=2))
    steps = StepTimes.of(times.step_s, max_step_tokens=2048)
    for batch, context, chunk, prompt in ((1, 100, 0, 0), (40, 900, 0, 0), (0, 0, 2048, 4000), (30, 2000, 700, 700)):
        expected = times.step_s(*(np.array([float(value)]) for value in (batch, context, chunk, prompt)))[0]
        found = (
            steps.fixed_s[batch + chunk]
            + batch * steps.per_sequence_s
            + batch * context * steps.per_cached_token_s
            + chunk * steps.per_prompt_token_s
            + chunk * prompt / 2 * steps.per_pair_s
        )
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("factor", [0.5, 1.6])
def test_engines_are_stretched_to_a_corrected_capacity(factor: float) -> None:
    """A plan that counts on more or less than the estimate is simulated with engines that are faster or slower."""
    plain = service(tensor_parallel=(1,), queueing_quantile=0.9)
    corrected = replace(plain, corrections={("L40S", Parallelism()): factor})
    kinds = {}
    for name, each in (("plain", plain), ("corrected", corrected)):
        state = FleetState((each,), POOLS[:1])
        fleet_plan = plan(state, OPTIONS)
        kinds[name] = replica_kind(each, POOLS[0], ONE, fleet_plan.service("chat").shares)
        assert simulate(state, fleet_plan, {"chat": drawn(8.0)}, horizon_s=150.0).attained
    stretch = kinds["corrected"].steps.fixed_s[1] / kinds["plain"].steps.fixed_s[1]
    assert (stretch > 1) == (factor < 1)
    assert kinds["corrected"].steps.per_pair_s == pytest.approx(kinds["plain"].steps.per_pair_s * stretch)


def test_the_advised_step_budget_makes_steps_smaller() -> None:
    strict = service(objectives=Objectives(0.05))
    default = replica_kind(strict, POOLS[0], ONE, ())
    advised = replica_kind(strict, POOLS[0], ONE, (), step_budget=StepBudget.ADVISED)
    assert default.steps.max_step_tokens == 2048
    assert advised.steps.max_step_tokens < 2048


def test_limits_are_those_of_the_replica() -> None:
    alone = replica_kind(service(), POOLS[1], Variant("h100", 1), ())
    staged = replica_kind(service(), POOLS[1], Variant("h100", 1, pipeline_parallel=2, data_parallel=2), ())
    assert alone.limits.max_sequences == 256
    assert staged.limits.max_sequences == 128
    assert staged.units == 4
    assert staged.price_usd_per_hour == 4 * alone.price_usd_per_hour
    small = replica_kind(service(), POOLS[1], Variant("h100", 1), (), limits=EngineLimits(10**6, max_sequences=8))
    assert small.limits.max_sequences == 8


def test_a_plan_with_room_for_queueing_keeps_its_objectives_and_half_of_it_does_not() -> None:
    state = FleetState((service(queueing_quantile=0.9),), POOLS)
    fleet_plan = plan(state, OPTIONS)
    requests = drawn(8.0)
    found = simulate(state, fleet_plan, {"chat": requests}, horizon_s=150.0)
    assert found.attained
    assert found.cost_usd_per_hour == pytest.approx(fleet_plan.cost_usd_per_hour)
    twice = simulate(state, fleet_plan, {"chat": drawn(20.0)}, horizon_s=150.0)
    assert not twice.attained


def test_the_fit_plans_for_more_until_bursts_are_served() -> None:
    state = FleetState((service(),), POOLS)
    requests = drawn(8.0, cv=5.0, duration_s=200.0)
    seen: list[tuple[float, float, bool]] = []
    told = seen.append
    found = fit(
        state,
        "chat",
        requests,
        RunOptions(),
        horizon_s=200.0,
        queueing_quantiles=(0.9,),
        tried=lambda factor, cost, kept: told((factor, cost, kept)),
    )
    assert found is not None
    assert found.measures.attained
    assert found.rate_rps == pytest.approx(8.0 * found.factor)
    assert [kept for *_, kept in seen] == [False] * (found.tried - 1) + [True]
    costs = [cost for _, cost, _ in seen]
    assert costs == sorted(costs)
    assert found.factor > 1
    either = fit(state, "chat", requests, RunOptions(), horizon_s=200.0)
    assert either is not None
    assert either.service_plan.cost_usd_per_hour <= found.service_plan.cost_usd_per_hour
    calm = fit(state, "chat", drawn(8.0, cv=0.5, duration_s=200.0), RunOptions(), horizon_s=200.0)
    assert calm is not None
    assert calm.factor < found.factor


def test_a_fit_that_stock_does_not_allow_is_none() -> None:
    scarce = tuple(replace(pool, stock=Stock.of(1)) for pool in POOLS[:1])
    state = FleetState((service(rate_rps=2.0),), scarce)
    assert fit(state, "chat", drawn(30.0), RunOptions(), horizon_s=150.0) is None


def test_a_service_without_replicas_is_named() -> None:
    state = FleetState((service(),), POOLS)
    chat = plan(state, OPTIONS).service("chat")
    with pytest.raises(NothingToSimulateError, match="chat has no replica"):
        planned_run(service(), replace(chat, mix=()), POOLS, drawn(1.0), RunOptions())
    with pytest.raises(NothingToSimulateError, match="no pool of the fleet"):
        planned_run(service(), chat, POOLS, drawn(1.0), RunOptions(), mix={Variant("gone", 1): 1})
