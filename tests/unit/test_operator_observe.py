"""From API objects to the planner's input: what counts where, and who is left out."""

from typing import Any

from medley_operator.observe.fleet import Observation, Snapshot, observe
from medley_operator.observe.projections import node_view, pod_view, pool_view, profile_view, service_view
from medley_operator.report.pool_status import pool_status
from medley_planner.plan import plan
from medley_planner.result import Outcome

NOW_S = 1_800_000_000.0


def metadata(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "uid": f"uid-{name}", "resourceVersion": "1", "generation": 1, **more}


def node(name: str, *, gpus: int = 8, ready: bool = True, **labels: str) -> dict[str, Any]:
    return {
        "metadata": metadata(name, labels=labels),
        "spec": {},
        "status": {
            "allocatable": {"cpu": "8", "nvidia.com/gpu": str(gpus)},
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def pool(name: str, *, gpu_type: str = "L4", **selector: str) -> dict[str, Any]:
    return {
        "metadata": metadata(name),
        "spec": {"gpu": {"type": gpu_type}, "gpusPerNode": 8, "nodeSelector": selector, "pricePerGPUHour": 1.0},
    }


def pod_of_others(name: str, on: str, gpus: int) -> dict[str, Any]:
    limits = {"nvidia.com/gpu": str(gpus)}
    return {
        "metadata": metadata(name, namespace="other"),
        "spec": {"nodeName": on, "containers": [{"name": "main", "resources": {"limits": limits}}]},
        "status": {"phase": "Running"},
    }


PROFILE = {
    "metadata": metadata("small"),
    "spec": {
        "model": "small",
        "architecture": {
            "parameters": 1_000_000_000,
            "layers": 16,
            "hiddenSize": 2048,
            "attentionHeads": 16,
            "keyValueHeads": 8,
            "headSize": 128,
            "dataType": "bf16",
            "maxContextTokens": 8192,
        },
    },
}


def service(name: str = "chat", *, gpus: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": metadata(name, namespace="default"),
        "spec": {
            "model": {"name": "small"},
            "objectives": {"timePerOutputToken": {"milliseconds": 100}},
            "workload": {
                "rate": 1,
                "sizes": {"histogram": [{"inputTokens": 100, "outputTokens": 100, "weight": 1}]},
            },
            "gpus": gpus or {},
            **spec,
        },
    }


def seen(*, services: Any = (), pools: Any = (), nodes: Any = (), pods: Any = ()) -> Observation:
    snapshot = Snapshot(
        services=tuple(service_view(each) for each in services),
        pools=tuple(pool_view(each) for each in pools),
        profiles=(profile_view(PROFILE),),
        nodes=tuple(view for each in nodes if (view := node_view(each)) is not None),
        pods=tuple(view for each in pods if (view := pod_view(each)) is not None),
        deployments=(),
        traces={},
    )
    return observe(snapshot, now_s=NOW_S)


def gpus_of(observation: Observation) -> dict[str, int]:
    return {each.name: each.stock.gpus for each in observation.state.pools}


class TestStock:
    def test_pods_of_others_are_subtracted_and_nodes_that_are_not_ready_do_not_count(self) -> None:
        nodes = [node("a", gpu="l4"), node("b", gpu="l4", ready=False)]
        made = seen(pools=[pool("l4", gpu="l4")], nodes=nodes, pods=[pod_of_others("p", "a", 3)])
        assert gpus_of(made) == {"l4": 5}

    def test_a_node_counts_once_in_the_pool_that_selects_it_most_closely(self) -> None:
        nodes = [node("a", gpu="l4"), node("b", gpu="l4", zone="east")]
        pools = [pool("all", gpu="l4"), pool("east", gpu="l4", zone="east")]
        made = seen(pools=pools, nodes=nodes)
        assert gpus_of(made) == {"all": 8, "east": 8}
        told = {found.view.name: pool_status(found, now_s=NOW_S).conditions[0].message for found in made.pools}
        assert "GPUPool east" in told["all"]
        assert "count there" not in told["east"]

    def test_a_pool_that_cannot_be_planned_with_takes_no_nodes_from_others(self) -> None:
        nodes = [node("a", gpu="l4", zone="east")]
        pools = [pool("all", gpu="l4"), pool("odd", gpu_type="L5", gpu="l4", zone="east")]
        assert gpus_of(seen(pools=pools, nodes=nodes)) == {"all": 8}

    def test_two_pools_with_one_selector_are_told_apart_by_name_and_the_second_is_refused(self) -> None:
        made = seen(pools=[pool("one", gpu="l4"), pool("two", gpu="l4")], nodes=[node("a", gpu="l4")])
        assert gpus_of(made) == {"one": 8}
        (problem,) = [found.problem for found in made.pools if found.problem is not None]
        assert (problem.reason, problem.field) == ("SameNodes", "spec.nodeSelector")


class TestMoney:
    def test_the_fleets_cap_reaches_the_planner(self) -> None:
        empty = Snapshot(services=(), pools=(), profiles=(), nodes=(), pods=(), deployments=(), traces={})
        assert observe(empty, now_s=NOW_S, max_cost_per_hour=12.5).state.max_cost_usd_per_hour == 12.5
        assert observe(empty, now_s=NOW_S).state.max_cost_usd_per_hour is None


class TestPoolsThatCannotBePlannedWith:
    POOLS = (pool("good", gpu="l4"), pool("twin", gpu="l4"))

    def test_a_service_that_selects_one_has_the_others(self) -> None:
        chosen = service(gpus={"pools": ["good", "twin"]}, scaling={"pools": [{"name": "twin", "minReplicas": 1}]})
        made = seen(services=[chosen], pools=self.POOLS, nodes=[node("a", gpu="l4")])
        (planned,) = made.state.services
        assert planned.pools == ("good",)
        assert planned.replicas_by_pool == {}

    def test_others_are_planned_as_if_it_was_not_there(self) -> None:
        both = [service("first", gpus={"pools": ["twin", "good"]}), service("second", gpus={"pools": ["good"]})]
        made = seen(services=both, pools=self.POOLS, nodes=[node("a", gpu="l4")])
        assert [each.name for each in made.state.services] == ["default/first", "default/second"]
        assert [each.name for each in made.state.pools] == ["good"]
        assert plan(made.state).service("default/second").outcome is Outcome.PLANNED

    def test_a_service_that_names_a_pool_of_an_unknown_gpu_type_is_told_so(self) -> None:
        pools = [pool("good", gpu="l4"), pool("odd", gpu_type="L5", gpu="l5")]
        made = seen(services=[service(gpus={"pools": ["good", "odd"]})], pools=pools, nodes=[node("a", gpu="l4")])
        (problem,) = made.problems["default", "chat"]
        assert problem.field == "spec.gpus.pools[1]"
        assert "L4" in str(problem)
