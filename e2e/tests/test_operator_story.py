"""The operator on a real control plane with simulated GPU nodes, under the chart's own roles:
what it does when things change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from medley_cluster.cluster import Cluster
from medley_cluster.waiting import wait_until
from medley_scenarios.installation import CHECKOUT, OperatorProcess
from medley_scenarios.pod_watch import PodWatch
from medley_scenarios.steps import (
    MODEL,
    NAMESPACE,
    POOLS,
    change,
    condition,
    create,
    delete_services,
    events,
    get,
    gpu_pool,
    is_draining,
    llm,
    mix,
    pods,
    pods_by_pool,
    set_price,
    wait_condition,
    wait_settled,
)

pytestmark = pytest.mark.cluster

A100 = {"pools": ["a100"], "tensorParallel": [1]}
"""One variant only, so that fewer replicas are fewer of one Deployment."""

SAMPLES = CHECKOUT / "manifests" / "samples"


@pytest.fixture(scope="module")
def operator(medley: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """One operator for all tests of this file that do not end it."""
    process = OperatorProcess(medley, tmp_path_factory.mktemp("operator") / "operator.log")
    process.start()
    yield process
    process.stop()


@pytest.fixture
def operated(medley: Cluster, operator: OperatorProcess) -> Iterator[Cluster]:
    """A cluster with an operator that had no unforeseen error by the end, and sample pools at their prices."""
    yield medley
    medley.reset_engine_metrics()  # busy engines would hold their drains up, and a later pod may get the same address
    delete_services(medley)
    medley.kubectl("apply", "-f", str(SAMPLES / "gpupools.yaml"))
    assert operator.running, operator.log_tail()
    assert "Traceback" not in operator.log.read_text(), operator.log_tail(80)


def revisions(cluster: Cluster) -> set[str]:
    """The revisions of the pods of `chat`."""
    return {pod["metadata"]["labels"]["medley.dev/revision"] for pod in pods(cluster, "chat")}


def test_apply_leads_to_serving_replicas_and_an_explanation(operated: Cluster) -> None:
    create(operated, llm("chat"))
    service = wait_settled(operated, "chat")
    plan = service["status"]["plan"]
    assert pods_by_pool(operated, "chat") == mix(service)
    assert plan["outcome"] == "Planned"
    assert 0 < plan["lowerBound"] <= plan["costPerHour"]
    assert plan["reason"]
    assert plan["rejected"]
    total = sum(mix(service).values())
    assert service["status"]["replicas"]["summary"] == f"{total}/{total}"
    assert service["status"]["endpoint"] == "http://chat.default.svc:8000"
    slices = operated.api.get(
        f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices",
        labelSelector="kubernetes.io/service-name=chat",
    )["items"]
    addresses = {address for item in slices for end in item["endpoints"] for address in end["addresses"]}
    assert addresses == {pod["status"]["podIP"] for pod in pods(operated, "chat")}
    assert {"Planned", "TransitionStarted", "ReplicaServing", "TransitionCompleted"} <= events(operated, "chat").keys()


def test_more_load_adds_replicas_before_any_goes(operated: Cluster) -> None:
    create(operated, llm("chat", pools=["a10g"]))
    before = mix(wait_settled(operated, "chat"))
    with PodWatch(operated) as watch:
        watch.mark()
        change(operated, "chat", {"workload": {"rate": 16}})
        after = mix(wait_settled(operated, "chat"))
        assert watch.of("chat").fewest_ready == before["a10g"]
    assert after["a10g"] > before["a10g"]
    assert pods_by_pool(operated, "chat") == after


def test_a_price_moves_replicas_and_never_serves_less(operated: Cluster) -> None:
    create(operated, llm("chat", rate=8, pools=["a100", "h100"]))
    before = mix(wait_settled(operated, "chat"))
    (dear,) = before
    (cheap,) = {"a100", "h100"} - before.keys()
    with PodWatch(operated) as watch:
        watch.mark()
        set_price(operated, dear, 50.0)
        wait_until(lambda: mix(get(operated, "chat")).keys() == {cheap}, 30, "the plan moved to the other pool")
        after = mix(wait_settled(operated, "chat"))
        assert watch.of("chat").fewest_ready == min(sum(before.values()), sum(after.values()))
    assert pods_by_pool(operated, "chat") == after
    last = get(operated, "chat")["status"]["lastTransition"]
    assert last["outcome"] == "Completed"


def test_another_image_is_a_migration_between_deployments(operated: Cluster) -> None:
    create(operated, llm("chat", rate=16, gpus=A100))
    before = wait_settled(operated, "chat")
    old = revisions(operated)
    with PodWatch(operated) as watch:
        watch.mark()
        change(operated, "chat", {"engine": {"image": "vllm/vllm-openai:next"}})
        after = wait_settled(operated, "chat")
        assert watch.of("chat").fewest_ready == sum(mix(before).values())
    assert mix(after) == mix(before)
    assert len(revisions(operated)) == 1
    assert not revisions(operated) & old


def test_in_a_full_pool_another_image_takes_one_replica_at_a_time(operated: Cluster) -> None:
    nodes = operated.add_gpu_nodes("a100", 1, gpus_per_node=3, zone="small")
    product = operated.api.get(f"{POOLS}/a100")["spec"]["nodeSelector"]
    create(operated, gpu_pool("small", "A100-80GB", {**product, "topology.kubernetes.io/zone": "small"}))
    try:
        create(operated, llm("chat", rate=16, gpus={"pools": ["small"], "tensorParallel": [1]}))
        before = mix(wait_settled(operated, "chat"))
        assert before == {"small": 3}
        with PodWatch(operated) as watch:
            watch.mark()
            change(operated, "chat", {"engine": {"image": "vllm/vllm-openai:next"}})
            wait_settled(operated, "chat", timeout_s=120)
            assert watch.of("chat").fewest_ready == 2
        assert pods_by_pool(operated, "chat") == before
    finally:
        delete_services(operated)
        operated.api.delete(f"{POOLS}/small")
        operated.remove_nodes(*nodes)


def test_a_drain_waits_for_requests_and_is_called_off_when_the_pod_is_wanted_again(operated: Cluster) -> None:
    create(operated, llm("chat", rate=16, gpus=A100))
    many = mix(wait_settled(operated, "chat"))["a100"]
    for pod in pods(operated, "chat"):
        operated.set_engine_metrics(pod["status"]["podIP"], running=2)
    change(operated, "chat", {"workload": {"rate": 4}})
    few = wait_condition(operated, "chat", "Progressing", status="True", reason="Draining")
    surplus = many - mix(few)["a100"]
    wait_until(lambda: sum(map(is_draining, pods(operated, "chat"))) == surplus, 20, "the surplus drains")
    assert len(pods(operated, "chat")) == many
    change(operated, "chat", {"workload": {"rate": 16}})
    assert mix(wait_settled(operated, "chat"))["a100"] == many
    assert not any(map(is_draining, pods(operated, "chat")))
    assert "DrainCancelled" in events(operated, "chat")
    change(operated, "chat", {"workload": {"rate": 4}})
    wait_until(lambda: sum(map(is_draining, pods(operated, "chat"))) == surplus, 20, "the surplus drains again")
    for pod in pods(operated, "chat"):
        operated.set_engine_metrics(pod["status"]["podIP"], running=0)
    wait_settled(operated, "chat")
    assert len(pods(operated, "chat")) == many - surplus
    assert "0 requests in flight" in events(operated, "chat")["Drained"]


def test_a_drain_is_bounded_by_its_timeout(operated: Cluster) -> None:
    create(operated, llm("chat", rate=16, gpus=A100, disruption={"stabilizationSeconds": 0, "drainTimeoutSeconds": 5}))
    wait_settled(operated, "chat")
    busy = [pod["status"]["podIP"] for pod in pods(operated, "chat")]
    for address in busy:
        operated.set_engine_metrics(address, running=3)
    change(operated, "chat", {"workload": {"rate": 4}})
    service = wait_settled(operated, "chat")
    assert len(pods(operated, "chat")) == sum(mix(service).values())
    for address in busy:
        operated.set_engine_metrics(address, running=0)
    wait_until(lambda: "DrainTimedOut" in events(operated, "chat"), 5, "the event was posted")
    assert "3 requests in flight" in events(operated, "chat")["DrainTimedOut"]


def test_a_pool_that_loses_its_nodes_is_planned_around(operated: Cluster) -> None:
    create(operated, llm("chat", rate=8, pools=["a100", "h100"]))
    wait_settled(operated, "chat")
    pool = next(iter(mix(get(operated, "chat"))))
    nodes = [name for name in operated.ready_nodes() if name.startswith(f"sim-{pool}-")]
    try:
        operated.fail_nodes(*nodes)
        wait_until(lambda: pool not in mix(get(operated, "chat")), 30, "the plan goes around the lost pool")
        service = wait_settled(operated, "chat")
        assert pods_by_pool(operated, "chat").keys() >= mix(service).keys()
    finally:
        operated.fail_nodes(*nodes, reason=None)


def test_a_cap_that_cannot_be_met_is_explained_and_what_runs_goes_on(operated: Cluster) -> None:
    create(operated, llm("chat", rate=8))
    before = {pod["metadata"]["uid"] for pod in pods(operated, wait_settled(operated, "chat")["metadata"]["name"])}
    change(operated, "chat", {"gpus": {"maxCostPerHour": 0.5}})
    service = wait_condition(operated, "chat", "Planned", status="False", reason="CostCapTooLow")
    nearest = service["status"]["plan"]["nearestFeasibleCostCap"]
    assert nearest > 0.5
    assert condition(service, "Ready")["status"] == "True"
    assert {pod["metadata"]["uid"] for pod in pods(operated, "chat")} == before
    change(operated, "chat", {"gpus": {"maxCostPerHour": nearest}})
    assert wait_settled(operated, "chat")["status"]["plan"]["costPerHour"] <= nearest


def test_pods_that_stay_pending_mark_their_pool_exhausted(operated: Cluster) -> None:
    promised = gpu_pool("promised", "H100-80GB", {"medley.dev/test": "no-such-node"})
    promised["spec"] |= {"limit": 8, "exhaustion": {"pendingDeadlineSeconds": 3, "retryAfterSeconds": 600}}
    create(operated, promised)
    try:
        create(operated, llm("chat", pools=["promised", "a10g"]))
        wait_until(lambda: "exhausted" in operated.api.get(f"{POOLS}/promised").get("status", {}), 30, "no more is had")
        service = wait_settled(operated, "chat")
        assert mix(service).keys() == {"a10g"}
        assert pods_by_pool(operated, "chat").keys() == {"a10g"}
        reasons = {item["reason"] for item in service["status"]["plan"]["rejected"] if item["pool"] == "promised"}
        assert reasons == {"PoolExhausted"}
    finally:
        delete_services(operated)
        operated.api.delete(f"{POOLS}/promised")


@pytest.mark.parametrize(
    ("spec", "reason", "named"),
    [
        ({"gpus": {"pools": ["a10"]}}, "UnknownPool", ("spec.gpus.pools[0]", "a10g")),
        ({"model": {"name": f"{MODEL}x"}}, "ProfileNotFound", ("spec.model.name", MODEL)),
        (
            {"workload": {"rate": 1, "sizes": {"traceConfigMap": {"name": "nowhere", "key": "trace.csv"}}}},
            "TraceNotFound",
            ("spec.workload.sizes.traceConfigMap.name", "nowhere"),
        ),
    ],
)
def test_what_a_service_names_must_exist(
    operated: Cluster, spec: dict[str, Any], reason: str, named: tuple[str, ...]
) -> None:
    create(operated, llm("chat", **spec))
    message = condition(wait_condition(operated, "chat", "Planned", status="False", reason=reason), "Planned")[
        "message"
    ]
    assert all(word in message for word in named)
    assert pods(operated, "chat") == []


def test_sizes_come_from_a_trace_in_a_config_map(operated: Cluster) -> None:
    config_maps = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
    rows = "".join(f"{second},{300 + second},{100 + second}\n" for second in range(50))
    traces = {"long.csv": f"arrival_s,input_tokens,output_tokens\n{rows}", "odd.csv": "a,b,c\n1,2,3\n"}
    metadata = {"name": "traces", "namespace": NAMESPACE}
    operated.api.post(config_maps, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": traces})
    try:
        sizes = {"traceConfigMap": {"name": "traces", "key": "long.csv"}}
        create(operated, llm("chat", workload={"rate": 4, "sizes": sizes}))
        assert mix(wait_settled(operated, "chat"))
        sizes = {"traceConfigMap": {"name": "traces", "key": "odd.csv"}}
        change(operated, "chat", {"workload": {"rate": 4, "sizes": sizes}})
        refused = wait_condition(operated, "chat", "Planned", status="False", reason="InvalidTrace")
        assert "spec.workload.sizes.traceConfigMap" in condition(refused, "Planned")["message"]
        assert pods(operated, "chat"), "what runs is kept"
    finally:
        operated.api.delete(f"{config_maps}/traces")


def test_recommend_shows_a_plan_and_touches_nothing(operated: Cluster) -> None:
    create(operated, llm("chat", mode="Recommend"))
    wait_condition(operated, "chat", "Planned", status="True", reason="RecommendOnly")
    assert get(operated, "chat")["status"]["recommended"]["entries"]
    assert pods(operated, "chat") == []
    change(operated, "chat", {"mode": "Auto"})
    wait_settled(operated, "chat")
    before = {pod["metadata"]["uid"] for pod in pods(operated, "chat")}
    change(operated, "chat", {"mode": "Recommend", "workload": {"rate": 32}})
    wait_condition(operated, "chat", "Planned", status="True", reason="RecommendOnly")
    assert {pod["metadata"]["uid"] for pod in pods(operated, "chat")} == before


def test_paused_neither_plans_nor_acts_but_lets_restarted_replicas_serve(operated: Cluster) -> None:
    create(operated, llm("chat", pools=["a10g"]))
    wait_settled(operated, "chat")
    change(operated, "chat", {"mode": "Paused", "workload": {"rate": 32}})
    wait_condition(operated, "chat", "Planned", status="Unknown", reason="Paused")
    count = len(pods(operated, "chat"))
    victim = pods(operated, "chat")[0]["metadata"]
    operated.api.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{victim['name']}")
    wait_until(
        lambda: (
            victim["uid"] not in {pod["metadata"]["uid"] for pod in pods(operated, "chat")}
            and get(operated, "chat")["status"]["replicas"]["serving"] == count
        ),
        30,
        "the replacement serves",
    )
    assert len(pods(operated, "chat")) == count


def test_replicas_that_somebody_scaled_are_brought_back(operated: Cluster) -> None:
    create(operated, llm("chat", pools=["a10g"]))
    wanted = pods_by_pool(operated, wait_settled(operated, "chat")["metadata"]["name"])
    deployment = operated.get_json("deployments", "-n", NAMESPACE, "-l", "medley.dev/service=chat")["items"][0]
    name = deployment["metadata"]["name"]
    operated.kubectl("scale", "deployment", name, "-n", NAMESPACE, f"--replicas={wanted['a10g'] + 3}")

    def brought_back() -> bool:
        found = operated.get_json("deployment", name, "-n", NAMESPACE)
        lowered = found["spec"]["replicas"] == deployment["spec"]["replicas"]
        return lowered and found["metadata"]["generation"] > deployment["metadata"]["generation"] + 1

    wait_until(brought_back, 40, "the Deployment is as it was")
    wait_until(lambda: pods_by_pool(operated, "chat") == wanted, 40, "there are as many as planned")
    wait_settled(operated, "chat")


def test_a_service_of_somebody_else_is_left_alone(operated: Cluster) -> None:
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "taken", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "theirs"}, "ports": [{"name": "http", "port": 8000, "targetPort": 1234}]},
    }
    operated.kubectl("apply", "-f", "-", stdin=json.dumps(foreign))
    try:
        create(operated, llm("taken"))
        wait_condition(operated, "taken", "Progressing", status="False", reason="ActionRefused")
        spec = operated.api.get(f"/api/v1/namespaces/{NAMESPACE}/services/taken")["spec"]
        assert spec["selector"] == {"app": "theirs"}
        assert "conflict" in condition(get(operated, "taken"), "Progressing")["message"]
    finally:
        operated.api.delete(f"/api/v1/namespaces/{NAMESPACE}/services/taken")


def test_deletion_leaves_nothing(operated: Cluster) -> None:
    create(operated, llm("chat"))
    wait_settled(operated, "chat")
    operated.kubectl("delete", "llmservice", "chat", "-n", NAMESPACE)
    kinds = "deployments,replicasets,pods,services,poddisruptionbudgets"
    wait_until(
        lambda: not operated.get_json(kinds, "-A", "-l", "app.kubernetes.io/managed-by=medley")["items"],
        30,
        "everything of the service is gone",
    )
