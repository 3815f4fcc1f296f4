"""Specs to the planner's values, and plans to statuses."""

from __future__ import annotations

from typing import Any

import pytest

from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.llmservice_status import PlanStatus
from medley_operator.api.manifest import parse
from medley_operator.api.modelprofile import ModelProfile
from medley_operator.api.resolve import ResolvedService, Surroundings, resolve_pool, resolve_service
from medley_operator.api.translate import (
    declared_stock,
    mix_text,
    node_stock,
    plan_status,
    planner_pool,
    planner_service,
)
from medley_planner.catalogue.gpus import GPUType
from medley_planner.fleet import Availability, CapacityType, Objectives, ReplicaBounds, Stock, Variant
from medley_planner.result import Alternative, Binding, MixEntry, Outcome, Rejection, ServicePlan


def pool(**spec: Any) -> GPUPool:
    base = {"gpu": {"type": "L4"}, "gpusPerNode": 8, "pricePerGPUHour": 0.8}
    manifest = {"apiVersion": "medley.dev/v1alpha1", "kind": "GPUPool", "metadata": {"name": "l4"}}
    return parse(GPUPool, manifest | {"spec": base | spec})


def resolved(**spec: Any) -> ResolvedService:
    base = {
        "model": {"name": "org/eight"},
        "objectives": {"timePerOutputToken": {"milliseconds": 80}},
        "workload": {"rate": 4, "sizes": {"histogram": [{"inputTokens": 100, "outputTokens": 10, "weight": 3}]}},
    }
    architecture = {
        "parameters": 8_000_000_000,
        "layers": 32,
        "hiddenSize": 4096,
        "attentionHeads": 32,
        "keyValueHeads": 8,
        "headSize": 128,
        "maxContextTokens": 8192,
    }
    head = {"apiVersion": "medley.dev/v1alpha1", "metadata": {"name": "chat", "namespace": "web"}}
    service = parse(LLMService, head | {"kind": "LLMService", "spec": base | spec})
    profile = parse(
        ModelProfile,
        head | {"kind": "ModelProfile", "spec": {"model": "org/eight", "architecture": architecture}},
    )
    found = resolve_service(service, Surroundings({"l4": pool()}, {"eight": profile}))
    assert isinstance(found, ResolvedService)
    return found


def test_spread_room_and_priority_in_the_planners_terms() -> None:
    spread = {"maxSharePerPool": 0.6, "spot": {"maxShare": 0.5, "survivableShare": 0.8}}
    made = planner_service(
        resolved(
            gpus=spread,
            scaling={"noWaitShare": 0.95},
            workload={
                "rate": 4,
                "interarrivalCV": 2.5,
                "sizes": {"histogram": [{"inputTokens": 1, "outputTokens": 1, "weight": 1}]},
            },
            priority=7,
        )
    )
    assert made.availability == Availability(spot_max_share=0.5, pool_max_share=0.6, survivable_share=0.8)
    assert (made.queueing_quantile, made.interarrival_cv, made.priority) == (0.95, 2.5, 7)
    plain = planner_service(resolved())
    assert plain.availability == Availability()
    assert (plain.queueing_quantile, plain.interarrival_cv, plain.priority) == (0.0, 1.0, 0)


def test_capacity_types_in_the_planners_terms() -> None:
    gpu = resolve_pool(pool())
    assert isinstance(gpu, GPUType)
    spot = planner_pool(pool(capacityType="Spot", interruptionsPerHour=0.25), gpu, Stock.of(8))
    assert (spot.capacity_type, spot.interruptions_per_hour) == (CapacityType.SPOT, 0.25)
    plain = planner_pool(pool(), gpu, Stock.of(8))
    assert (plain.capacity_type, plain.interruptions_per_hour) == (CapacityType.ON_DEMAND, 0.0)


def test_money_is_told_apart_in_the_status_where_there_is_any() -> None:
    spot = MixEntry(Variant("l4", 1), 2, 2, 1.6, 0.5, risk_usd_per_hour=0.012345)
    held = MixEntry(Variant("a100", 1), 1, 1, 0.0, 0.5, reserved_usd_per_hour=3.5)
    made = ServicePlan(
        "web/chat", Outcome.PLANNED, "", (held, spot), 1.6, reserved_usd_per_hour=3.5, risk_usd_per_hour=0.012345
    )
    status = plan_status(made, {"l4": "L4"}).to_manifest()
    assert (status["costPerHour"], status["reservedPerHour"], status["interruptionCostPerHour"]) == (1.6, 3.5, 0.0123)
    rows = {row["pool"]: row for row in status["entries"]}
    assert rows["a100"]["reservedPerHour"] == 3.5 and "interruptionCostPerHour" not in rows["a100"]
    assert rows["l4"]["interruptionCostPerHour"] == 0.0123 and "reservedPerHour" not in rows["l4"]


def test_the_nearest_share_is_in_the_status() -> None:
    made = ServicePlan("web/chat", Outcome.SPOT_SHARE_TOO_LOW, "", nearest_feasible_share=0.75)
    assert plan_status(made, {}).to_manifest()["nearestFeasibleShare"] == 0.75


def test_a_service_in_the_planners_terms() -> None:
    running = {Variant("l4", 2): 3}
    made = planner_service(
        resolved(
            objectives={"timePerOutputToken": {"milliseconds": 80}, "timeToFirstToken": {"milliseconds": 1500}},
            gpus={"tensorParallel": [4, 1], "maxCostPerHour": 9.5},
            scaling={"minReplicas": 2, "maxReplicas": 7, "headroom": 0.2, "pools": [{"name": "l4", "maxReplicas": 3}]},
            engine={"type": "sglang"},
        ),
        running=running,
        pinned=True,
    )
    assert made.name == "web/chat"
    assert made.rate_rps == 4
    assert made.objectives == Objectives(time_per_output_token_s=0.08, time_to_first_token_s=1.5)
    assert made.tensor_parallel == (1, 4)
    assert (made.pipeline_parallel, made.data_parallel) == ((1,), (1,))
    assert made.max_cost_usd_per_hour == 9.5
    assert made.replicas == ReplicaBounds(2, 7)
    assert made.replicas_by_pool == {"l4": ReplicaBounds(0, 3)}
    assert made.headroom == 0.2
    assert made.engine == "sglang"
    assert made.pools == ("l4",)
    assert made.running == running
    assert made.pinned


def test_objectives_may_be_at_percentiles_and_replicas_may_have_stages_and_ranks() -> None:
    made = planner_service(
        resolved(
            objectives={
                "timePerOutputToken": {"milliseconds": 80, "percentile": 95},
                "timeToFirstToken": {"milliseconds": 1500, "percentile": 99.5},
            },
            gpus={"pipelineParallel": [2, 1], "dataParallel": [8]},
        )
    )
    assert made.objectives == Objectives(0.08, 1.5, 95, 99.5)
    assert (made.tensor_parallel, made.pipeline_parallel, made.data_parallel) == ((), (1, 2), (8,))


def test_an_objective_that_is_not_given_is_none() -> None:
    assert planner_service(resolved()).objectives.time_to_first_token_s is None


def test_a_pool_loads_as_long_as_nodes_and_models_take() -> None:
    gpu = resolve_pool(pool())
    assert isinstance(gpu, GPUType)
    made = planner_pool(
        pool(provisioningSeconds=200, loadSeconds=60), gpu, Stock.of(8), exhausted="nothing for an hour"
    )
    assert made.load_time_s == 260
    assert made.price_usd_per_gpu_hour == 0.8
    assert made.exhausted == "nothing for an hour"


@pytest.mark.parametrize(
    ("limit", "free", "may_grow", "in_ones", "in_eights"),
    [
        (None, (8, 3), True, 11, 8),  # what the nodes hold
        (6, (8, 3), True, 6, 0),  # a limit below it
        (24, (8, 3), True, 24, 16),  # a limit beyond it: 13 more, one full node and one of 5
        (24, (8, 3), False, 11, 8),  # the same while exhausted
        (24, (), True, 24, 24),  # no nodes yet
        (None, (), True, 0, 0),
    ],
)
def test_stock_of_known_nodes(
    limit: int | None, free: tuple[int, ...], may_grow: bool, in_ones: int, in_eights: int
) -> None:
    stock = node_stock(pool(limit=limit), free, may_grow=may_grow)
    assert stock.gpus == in_ones
    assert stock.in_groups_of(8) == in_eights


def test_the_order_of_nodes_does_not_matter() -> None:
    assert node_stock(pool(limit=9), (1, 8)) == node_stock(pool(limit=9), (8, 1))


def test_stock_without_a_cluster() -> None:
    assert declared_stock(pool(limit=12)).gpus == 12
    assert declared_stock(pool(limit=12)).in_groups_of(8) == 8
    unlimited = declared_stock(pool(gpusPerNode=6))
    assert unlimited.gpus >= 100_000
    assert unlimited.in_groups_of(4) > 0
    assert unlimited.in_groups_of(8) == 0


MIX = (
    MixEntry(Variant("a100", 2), replicas=1, gpus=2, cost_usd_per_hour=6.8625, utilisation=0.87654321),
    MixEntry(Variant("l4", 1), replicas=2, gpus=2, cost_usd_per_hour=1.6, utilisation=0.5),
)


def service_plan(**changes: Any) -> ServicePlan:
    fields: dict[str, Any] = {
        "name": "web/chat",
        "outcome": Outcome.PLANNED,
        "reason": "because",
        "mix": MIX,
        "cost_usd_per_hour": 8.462512345,
        "lower_bound_usd_per_hour": 8.4,
        "gap": 0.0073861,
        "binding": (Binding("stock", "l4", "2 of 2 GPUs"),),
        "alternatives": (Alternative("only h100", (), None, None, "no stock"),),
        "rejected": (Rejection(Variant("h100", 1), "NoStock", "none free"),),
        "capacity_source": ((Variant("l4", 1), "roofline"),),
    }
    return ServicePlan(**(fields | changes))


def test_a_plan_as_a_status_reads_back_and_is_rounded() -> None:
    status = plan_status(service_plan(), {"a100": "A100-80GB", "l4": "L4"})
    assert status.mix == "1×a100/tp2 + 2×l4"
    assert status.cost_per_hour == 8.4625
    assert status.gap_percent == 0.74
    assert status.entries[0].utilisation == 0.8765
    manifest = status.to_manifest()
    assert manifest["entries"][1]["gpu"] == "L4"
    assert manifest["alternatives"] == [{"name": "only h100", "detail": "no stock"}]
    assert PlanStatus.model_validate(manifest) == status


def test_noise_in_the_figures_gives_the_same_status() -> None:
    one = plan_status(service_plan(), {})
    other = plan_status(service_plan(cost_usd_per_hour=8.462512345 + 1e-9, gap=0.0073861 - 1e-9), {})
    assert one == other


def test_the_nearest_cap_is_rounded_up_so_that_it_is_enough() -> None:
    assert plan_status(service_plan(nearest_feasible_cap_usd_per_hour=8.46251), {}).nearest_feasible_cost_cap == 8.4626
    assert plan_status(service_plan(nearest_feasible_cap_usd_per_hour=8.4625), {}).nearest_feasible_cost_cap == 8.4625


def test_long_sentences_and_lists_fit_the_schema() -> None:
    many = tuple(Rejection(Variant(f"pool-{index}", 1), "CostsMore", "x" * 5000) for index in range(400))
    status = plan_status(service_plan(rejected=many, reason="y" * 5000), {})
    assert PlanStatus.model_validate(status.to_manifest()) == status
    assert status.reason.endswith("…")


def test_an_empty_mix_has_a_name() -> None:
    assert mix_text(()) == "nothing"
