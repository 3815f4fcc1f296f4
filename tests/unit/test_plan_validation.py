"""Fleets with impossible values are refused, and the field is named."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from medley_planner.fleet import (
    Availability,
    CapacityType,
    FleetState,
    Objectives,
    Parallelism,
    PlanOptions,
    ReplicaBounds,
    Stock,
    Variant,
)
from medley_planner.plan import InvalidFleetError, plan
from planner_fleets import SMALL_AND_BIG, fleet, pool, service, small_and_big

SPOT = CapacityType.SPOT


def refusal(state: FleetState, options: PlanOptions | None = None) -> InvalidFleetError:
    with pytest.raises(InvalidFleetError) as caught:
        plan(state, options or PlanOptions(), capacity_of=SMALL_AND_BIG)
    return caught.value


@pytest.mark.parametrize(
    ("wishes", "field", "message"),
    [
        ({"rate": math.nan}, "rate_rps", "must be a finite number, at least 0, is nan"),
        ({"rate": -1.0}, "rate_rps", "must be a finite number, at least 0, is -1.0"),
        ({"rate": math.inf}, "rate_rps", "must be a finite number, at least 0, is inf"),
        ({"rate": 1e30}, "rate_rps", "must be at most 1e+06, is 1e+30"),
        ({"queueing_quantile": 1.0}, "queueing_quantile", "must be at least 0 and less than 1, is 1.0"),
        ({"queueing_quantile": math.nan}, "queueing_quantile", "must be at least 0 and less than 1, is nan"),
        ({"interarrival_cv": -1.0}, "interarrival_cv", "must be a finite number, at least 0, is -1.0"),
        ({"interarrival_cv": 1e4}, "interarrival_cv", "must be at most 100, is 10000.0"),
        ({"priority": 10**10}, "priority", "must be from -1e+09 to 1e+09, is 10000000000"),
        ({"availability": Availability(1.5)}, "availability.spot_max_share", "must be from 0 to 1, is 1.5"),
        ({"availability": Availability(math.nan)}, "availability.spot_max_share", "must be from 0 to 1, is nan"),
        (
            {"availability": Availability(pool_max_share=0.0)},
            "availability.pool_max_share",
            "must be above 0 and at most 1, is 0.0",
        ),
        (
            {"availability": Availability(survivable_share=-0.1)},
            "availability.survivable_share",
            "must be from 0 to 1, is -0.1",
        ),
        ({"pools": ("big", "big")}, "pools", "'big' occurs twice"),
        ({"tensor_parallel": (1, 1)}, "tensor_parallel", "1 occurs twice"),
        ({"pipeline_parallel": ()}, "pipeline_parallel", "must hold at least one size"),
        ({"data_parallel": (0,)}, "data_parallel", "must be from 1 to 16, is 0"),
        (
            {"corrections": {("big", Parallelism(2)): math.inf}},
            "corrections[big, tp2]",
            "must be a finite number above 0, is inf",
        ),
        ({"replicas": ReplicaBounds(0, 10**9)}, "replicas.maximum", "must be at most 1e+06, is 1000000000"),
        ({"headroom": 1.0}, "headroom", "must be at least 0 and less than 1, is 1.0"),
        ({"headroom": math.nan}, "headroom", "must be at least 0 and less than 1, is nan"),
        ({"max_cost_usd_per_hour": -1.0}, "max_cost_usd_per_hour", "must be a finite number, at least 0, is -1.0"),
        ({"max_context_tokens": 0}, "max_context_tokens", "must be at least 1, is 0"),
        ({"tensor_parallel": (3,)}, "tensor_parallel", "must be of (1, 2, 4, 8, 16), is 3"),
        ({"pools": ("smal",)}, "pools", "there is no pool 'smal'; did you mean 'small'?"),
        ({"pools": ("qqq",)}, "pools", "there is no pool 'qqq'"),
        ({"replicas": ReplicaBounds(-1)}, "replicas.minimum", "must be at least 0, is -1"),
        ({"replicas": ReplicaBounds(3, 2)}, "replicas.maximum", "must be at least the minimum of 3, is 2"),
        (
            {"replicas_by_pool": {"bigg": ReplicaBounds(1)}},
            "replicas_by_pool",
            "there is no pool 'bigg'; did you mean 'big'?",
        ),
        (
            {"replicas_by_pool": {"big": ReplicaBounds(1, 0)}},
            "replicas_by_pool[big].maximum",
            "must be at least the minimum of 1, is 0",
        ),
        ({"running": {Variant("big", 1): -1}}, "running[big/tp1]", "must be at least 0, is -1"),
        (
            {"running": {Variant("big", 3): 1}},
            "running[big/tp3]",
            "GPUs of a replica must be of (1, 2, 4, 8, 16), are 3",
        ),
    ],
)
def test_a_service_with_an_impossible_value(wishes: dict[str, object], field: str, message: str) -> None:
    error = refusal(fleet(service(**wishes), small_and_big()))
    assert (error.field, error.message) == (f"services[chat].{field}", message)
    assert str(error) == f"services[chat].{field}: {message}"


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan])
def test_an_impossible_objective(value: float) -> None:
    asked = replace(service(), objectives=Objectives(time_to_first_token_s=value))
    assert refusal(fleet(asked, small_and_big())).field == "services[chat].objectives.time_to_first_token_s"


def test_impossible_pools() -> None:
    for broken, field in (
        (pool("big", math.nan), "pools[big].price_usd_per_gpu_hour"),
        (pool("big", -1.0), "pools[big].price_usd_per_gpu_hour"),
        (pool("big", 1.0, load_time_s=math.inf), "pools[big].load_time_s"),
        (pool("big", 1e10), "pools[big].price_usd_per_gpu_hour"),
        (pool("big", 1.0, gpus_per_node=0), "pools[big].gpus_per_node"),
        (pool("big", 1.0, capacity_type=SPOT, interruptions_per_hour=-0.1), "pools[big].interruptions_per_hour"),
        (pool("big", 1.0, capacity_type=SPOT, interruptions_per_hour=math.nan), "pools[big].interruptions_per_hour"),
        (pool("big", 1.0, capacity_type=SPOT, interruptions_per_hour=1e5), "pools[big].interruptions_per_hour"),
        (pool("big", 1.0, interruptions_per_hour=0.1), "pools[big].interruptions_per_hour"),
        (pool("big", 1.0, Stock({1: 4})), "pools[big].stock"),
        (pool("big", 1.0, Stock(dict.fromkeys((1, 2, 4, 8, 16), -1))), "pools[big].stock"),
    ):
        assert refusal(fleet(service(), (broken,))).field == field


@pytest.mark.parametrize("cap", [math.nan, -1.0, 1e12])
def test_an_impossible_cap_of_the_fleet(cap: float) -> None:
    capped = replace(fleet(service(), small_and_big()), max_cost_usd_per_hour=cap)
    assert refusal(capped).field == "max_cost_usd_per_hour"


def test_names_that_occur_twice() -> None:
    assert refusal(fleet([service("a"), service("a")], small_and_big())).field == "services"
    assert refusal(fleet(service(), (*small_and_big(), pool("big", 1.0)))).message == "the name 'big' occurs twice"
    assert refusal(fleet(service(""), small_and_big())).message == "a name is empty"


@pytest.mark.parametrize(
    "options",
    [
        PlanOptions(slice_factor=0),
        PlanOptions(time_limit_s=0.0),
        PlanOptions(time_limit_s=math.nan),
        PlanOptions(relative_gap=-1.0),
        PlanOptions(switching_horizon_s=math.nan),
    ],
)
def test_impossible_options(options: PlanOptions) -> None:
    assert refusal(fleet(service(), small_and_big()), options).field.startswith("options.")
