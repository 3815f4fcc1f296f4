"""Manifests that the operator makes: what must be in them, and what a change of the input may change."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.modelprofile import ModelProfile
from medley_operator.workloads import (
    PodTemplateError,
    deployment,
    endpoint_url,
    naming,
    pod_disruption_budget,
    service,
)
from medley_planner.fleet import Parallelism

SERVICE: dict[str, Any] = {
    "metadata": {"name": "chat", "namespace": "team-a", "uid": "u-1"},
    "spec": {
        "model": {"name": "org/model"},
        "objectives": {"timePerOutputToken": {"milliseconds": 100}},
        "workload": {"rate": 1, "sizes": {"preset": "azure-conversation-2023"}},
    },
}
POOL: dict[str, Any] = {
    "metadata": {"name": "l4"},
    "spec": {
        "gpu": {"type": "L4"},
        "gpusPerNode": 8,
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "pricePerGPUHour": 0.7,
    },
}
PROFILE = ModelProfile.model_validate(
    {
        "metadata": {"name": "model"},
        "spec": {
            "model": "org/model",
            "architecture": {
                "parameters": 8_030_261_248,
                "layers": 32,
                "hiddenSize": 4096,
                "attentionHeads": 32,
                "keyValueHeads": 8,
                "headSize": 128,
                "maxContextTokens": 131_072,
            },
        },
    }
)


def changed(base: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `base` with the field at a dotted path set."""
    made = copy.deepcopy(base)
    *parents, last = path.split(".")
    place = made
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    return made


def build(llm: dict[str, Any] = SERVICE, pool: dict[str, Any] = POOL, **variant: int) -> dict[str, Any]:
    return deployment(
        LLMService.model_validate(llm),
        GPUPool.model_validate(pool),
        PROFILE,
        parallelism=Parallelism(variant.get("tensor", 1), variant.get("pipeline", 1), variant.get("data", 1)),
        replicas=variant.get("replicas", 1),
    )


def name_of(*args: Any, **kwargs: Any) -> str:
    name: str = build(*args, **kwargs)["metadata"]["name"]
    return name


def engine(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"]["template"]["spec"]["containers"][0]
    return found


class TestRevision:
    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("spec.pricePerGPUHour", 9.5),
            ("spec.limit", 4),
            ("spec.provisioningSeconds", 400),
            ("spec.loadSeconds", 300),
            ("spec.gpusPerNode", 4),
            ("spec.exhaustion", {"retryAfterSeconds": 5}),
        ],
    )
    def test_a_pool_s_price_stock_and_times_move_no_replica(self, path: str, value: Any) -> None:
        assert name_of(pool=changed(POOL, path, value)) == name_of()

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("spec.workload.rate", 50),
            ("spec.objectives.timePerOutputToken.milliseconds", 30),
            ("spec.gpus", {"maxCostPerHour": 3}),
            ("spec.scaling", {"minReplicas": 4, "headroom": 0.5}),
            ("spec.mode", "Recommend"),
            ("metadata.uid", "another"),
        ],
    )
    def test_what_only_the_plan_looks_at_moves_no_replica(self, path: str, value: Any) -> None:
        assert name_of(changed(SERVICE, path, value)) == name_of()

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("spec.engine.image", "mirror.example/vllm:1"),
            ("spec.engine.args", ["--enable-prefix-caching"]),
            ("spec.engine.env", [{"name": "A", "value": "1"}]),
            ("spec.engine.type", "sglang"),
            ("spec.model.maxContextTokens", 4096),
            ("spec.model.source", {"huggingFace": {"revision": "abc"}}),
        ],
    )
    def test_what_runs_in_the_pod_is_another_deployment(self, path: str, value: Any) -> None:
        assert name_of(changed(SERVICE, path, value)) != name_of()

    def test_the_number_of_replicas_is_no_part_of_it(self) -> None:
        assert name_of(replicas=7) == name_of(replicas=1)

    def test_variants_differ(self) -> None:
        other_pool = changed(POOL, "metadata.name", "l4-spare")
        names = {name_of(), name_of(tensor=2), name_of(pipeline=2), name_of(data=2), name_of(pool=other_pool)}
        assert len(names) == 5

    def test_it_is_label_and_end_of_the_name(self) -> None:
        made = build()
        revision = made["metadata"]["labels"][naming.LABEL_REVISION]
        assert made["metadata"]["name"].endswith(f"-{revision}")
        assert made["spec"]["selector"]["matchLabels"][naming.LABEL_REVISION] == revision
        assert made["spec"]["template"]["metadata"]["labels"][naming.LABEL_REVISION] == revision


PARALLEL = {
    "vllm": "--tensor-parallel-size 2 --pipeline-parallel-size 2 --data-parallel-size 2",
    "sglang": "--tp-size 2 --dp-size 2 --pp-size 2",
}
"""How a dense model's replica of eight GPUs is started: its data parallel ranks are whole copies."""

PARALLEL_EXPERTS = {
    "vllm": "--tensor-parallel-size 2 --pipeline-parallel-size 2 --data-parallel-size 2 --enable-expert-parallel",
    "sglang": "--tp-size 4 --dp-size 2 --enable-dp-attention --ep-size 4 --pp-size 2",
}
"""The same with experts, which the ranks share."""


class TestParallelism:
    @pytest.mark.parametrize("engine_type", ["vllm", "sglang"])
    @pytest.mark.parametrize(("experts", "expected"), [(False, PARALLEL), (True, PARALLEL_EXPERTS)])
    def test_engines_are_told_all_sizes(self, engine_type: str, experts: bool, expected: dict[str, str]) -> None:
        values = PROFILE.model_dump(by_alias=True, exclude_none=True)
        if experts:
            values["spec"]["architecture"] |= {"experts": 64, "activeExperts": 4, "activeParameters": 2_000_000_000}
        made = deployment(
            LLMService.model_validate(changed(SERVICE, "spec.engine.type", engine_type)),
            GPUPool.model_validate(POOL),
            ModelProfile.model_validate(values),
            parallelism=Parallelism(2, 2, 2),
            replicas=1,
        )
        container = engine(made)
        assert f" {expected[engine_type]} " in " ".join(container["args"])
        assert {amounts["nvidia.com/gpu"] for amounts in container["resources"].values()} == {"8"}
        assert made["metadata"]["labels"]["medley.dev/pipeline-parallel"] == "2"
        assert made["metadata"]["labels"]["medley.dev/data-parallel"] == "2"

    def test_a_custom_engine_finds_the_sizes_that_its_service_may_choose(self) -> None:
        def variables(llm: dict[str, Any]) -> dict[str, str]:
            return {each["name"]: each["value"] for each in engine(build(llm, tensor=2, pipeline=2))["env"]}

        template = {"spec": {"containers": [{"name": "engine", "image": "mine"}]}}
        plain = changed(SERVICE, "spec.engine", {"type": "custom", "podTemplate": template})
        chosen = changed(plain, "spec.gpus.pipelineParallel", [1, 2])
        assert variables(chosen)["MEDLEY_TENSOR_PARALLEL"] == "2"
        assert variables(chosen)["MEDLEY_PIPELINE_PARALLEL"] == "2"
        assert "MEDLEY_DATA_PARALLEL" not in variables(chosen)
        assert "MEDLEY_PIPELINE_PARALLEL" not in variables(plain)


class TestPod:
    def test_the_gate_and_the_pool_s_placement_are_there(self) -> None:
        pod = build()["spec"]["template"]["spec"]
        assert {"conditionType": "medley.dev/serving"} in pod["readinessGates"]
        assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L4"}
        assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]

    @pytest.mark.parametrize("engine_type", ["vllm", "sglang"])
    def test_gpus_ports_and_parallelism_agree(self, engine_type: str) -> None:
        llm = changed(changed(SERVICE, "spec.engine.type", engine_type), "spec.engine.port", 9001)
        container = engine(build(llm, tensor=4))
        words = container["args"]
        flag = {"vllm": "--tensor-parallel-size", "sglang": "--tp-size"}[engine_type]
        assert words[words.index(flag) + 1] == "4"
        assert words[words.index("--port") + 1] == "9001"
        assert container["ports"][0]["containerPort"] == 9001
        for part in ("requests", "limits"):
            assert container["resources"][part]["nvidia.com/gpu"] == "4"
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}

    @pytest.mark.parametrize("engine_type", ["vllm", "sglang"])
    def test_pods_are_as_strict_as_the_engine_allows(self, engine_type: str) -> None:
        pod = build(changed(SERVICE, "spec.engine.type", engine_type))["spec"]["template"]["spec"]
        container = pod["containers"][0]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert bool(pod["securityContext"].get("runAsNonRoot")) == (engine_type == "vllm")

    def test_the_grace_period_holds_the_settling_the_drain_and_the_exit(self) -> None:
        llm = changed(SERVICE, "spec.disruption", {"drainTimeoutSeconds": 120})
        pod = build(llm)["spec"]["template"]["spec"]
        words = pod["containers"][0]["args"]
        settle_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert words[words.index("--shutdown-timeout") + 1] == "120"
        assert pod["terminationGracePeriodSeconds"] > settle_s + 120

    def test_slow_pools_get_a_longer_start(self) -> None:
        def startup_s(load_seconds: int) -> int:
            probe = engine(build(pool=changed(POOL, "spec.loadSeconds", load_seconds)))["startupProbe"]
            return int(probe["periodSeconds"] * probe["failureThreshold"])

        assert startup_s(10) >= 1800
        assert startup_s(7200) >= 4 * 7200

    def test_shared_memory_only_where_gpus_exchange(self) -> None:
        def mounted(tensor: int) -> set[str]:
            return {mount["mountPath"] for mount in engine(build(tensor=tensor))["volumeMounts"]}

        assert "/dev/shm" not in mounted(1)
        assert "/dev/shm" in mounted(2)

    def test_weights_of_a_claim_are_read_only_and_need_no_hub(self) -> None:
        source = {"persistentVolumeClaim": {"claimName": "weights", "path": "a/b"}}
        made = build(changed(SERVICE, "spec.model.source", source))
        volumes = {volume["name"]: volume for volume in made["spec"]["template"]["spec"]["volumes"]}
        assert volumes["model"]["persistentVolumeClaim"] == {"claimName": "weights", "readOnly": True}
        assert engine(made)["args"][0] == "/mnt/model/a/b"
        assert "cache" not in volumes
        assert not {"HF_HOME", "HF_TOKEN"} & {variable["name"] for variable in engine(made)["env"]}

    def test_the_users_environment_replaces_medley_s_and_no_name_comes_twice(self) -> None:
        llm = changed(SERVICE, "spec.engine.env", [{"name": "HF_HOME", "value": "/tmp/hf"}])
        environment = engine(build(llm))["env"]
        names = [variable["name"] for variable in environment]
        assert len(names) == len(set(names))
        assert {"name": "HF_HOME", "value": "/tmp/hf"} in environment

    def test_bfloat16_is_not_asked_of_gpus_without_it(self) -> None:
        old = engine(build(pool=changed(POOL, "spec.gpu.type", "T4")))["args"]
        assert old[old.index("--dtype") + 1] == "half"
        assert "--dtype" not in engine(build())["args"]

    def test_the_context_is_the_service_s_or_else_the_model_s(self) -> None:
        def context(llm: dict[str, Any]) -> str:
            words = engine(build(llm))["args"]
            return str(words[words.index("--max-model-len") + 1])

        assert context(SERVICE) == "131072"
        assert context(changed(SERVICE, "spec.model.maxContextTokens", 4096)) == "4096"


class TestCustom:
    def custom(self, template: Any) -> dict[str, Any]:
        return changed(changed(SERVICE, "spec.engine.type", "custom"), "spec.engine.podTemplate", template)

    def test_the_first_container_serves_where_none_is_called_engine(self) -> None:
        template = {"spec": {"containers": [{"name": "a", "image": "a"}, {"name": "b", "image": "b"}]}}
        made = build(self.custom(template), tensor=2)
        first, second = made["spec"]["template"]["spec"]["containers"]
        assert first["resources"]["limits"]["nvidia.com/gpu"] == "2"
        assert "resources" not in second

    def test_the_template_of_the_spec_is_left_as_it_is(self) -> None:
        llm = LLMService.model_validate(self.custom({"spec": {"containers": [{"name": "a", "image": "a"}]}}))
        before = copy.deepcopy(llm.spec.engine.pod_template)
        deployment(llm, GPUPool.model_validate(POOL), PROFILE, parallelism=Parallelism(1), replicas=1)
        assert llm.spec.engine.pod_template == before

    def test_a_short_grace_period_of_the_users_gets_no_longer_sleep(self) -> None:
        template = {"spec": {"terminationGracePeriodSeconds": 5, "containers": [{"name": "a", "image": "a"}]}}
        assert "lifecycle" not in engine(build(self.custom(template)))

    @pytest.mark.parametrize(
        ("template", "field"),
        [
            ({}, "spec.containers"),
            ({"spec": {"containers": []}}, "spec.containers"),
            ({"spec": {"containers": "engine"}}, "spec.containers"),
            ({"spec": {"containers": ["engine"]}}, "spec.containers[0]"),
            ({"spec": ["containers"]}, "spec"),
            ({"spec": {"containers": [{"name": "a", "resources": 3}]}}, "spec.containers[engine].resources"),
            ({"spec": {"containers": [{"name": "a"}], "tolerations": {}}}, "spec.tolerations"),
            ({"metadata": [], "spec": {"containers": [{"name": "a"}]}}, "metadata"),
        ],
    )
    def test_a_template_of_the_wrong_shape_names_the_field(self, template: Any, field: str) -> None:
        with pytest.raises(PodTemplateError) as caught:
            build(self.custom(template))
        assert caught.value.field == f"spec.engine.podTemplate.{field}"


class TestServiceAndBudget:
    def test_they_select_the_pods_of_every_variant(self) -> None:
        llm = LLMService.model_validate(SERVICE)
        selector = service(llm)["spec"]["selector"]
        assert pod_disruption_budget(llm)["spec"]["selector"]["matchLabels"] == selector
        for tensor in (1, 2):
            labels = build(tensor=tensor)["spec"]["template"]["metadata"]["labels"]
            assert selector.items() <= labels.items()

    def test_the_url_is_the_service_s(self) -> None:
        llm = LLMService.model_validate(changed(SERVICE, "spec.engine.port", 8080))
        assert endpoint_url(llm) == "http://chat.team-a.svc:8080"
        assert service(llm)["spec"]["ports"][0] == {
            "name": "http",
            "port": 8080,
            "targetPort": 8080,
            "protocol": "TCP",
        }

    def test_everything_is_owned_once_the_service_is_on_a_cluster(self) -> None:
        llm = LLMService.model_validate(SERVICE)
        for made in (build(), service(llm), pod_disruption_budget(llm)):
            (owner,) = made["metadata"]["ownerReferences"]
            assert (owner["kind"], owner["name"], owner["uid"]) == ("LLMService", "chat", "u-1")
        from_a_file = LLMService.model_validate(changed(SERVICE, "metadata.uid", ""))
        assert service(from_a_file)["metadata"]["ownerReferences"] == []
