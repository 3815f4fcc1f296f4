"""Mistakes that only show among other objects: each gives a searchable reason, the field, and the nearest name."""

from __future__ import annotations

from typing import Any

import pytest

from medley_operator.api.catalogue import catalogue_profile
from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import ConfigMapKeyReference, LLMService
from medley_operator.api.manifest import InvalidManifestError, parse, path_text
from medley_operator.api.modelprofile import ModelProfile
from medley_operator.api.problems import Problem, hint, nearest
from medley_operator.api.resolve import (
    ResolvedProfile,
    ResolvedService,
    Surroundings,
    resolve_pool,
    resolve_profile,
    resolve_service,
    same_nodes_problem,
)
from medley_operator.api.traces import TraceKey, histogram_of_config_map
from medley_planner.catalogue.gpus import GPUType
from medley_planner.catalogue.known_models import known_models
from medley_planner.workload.sizes import SizeHistogram

ARCHITECTURE: dict[str, Any] = {
    "parameters": 8_000_000_000,
    "layers": 32,
    "hiddenSize": 4096,
    "attentionHeads": 32,
    "keyValueHeads": 8,
    "headSize": 128,
    "maxContextTokens": 8192,
}


def pool(name: str = "l4", gpu: dict[str, Any] | None = None, **spec: Any) -> GPUPool:
    labels = spec.pop("labels", {})
    base = {"gpu": gpu or {"type": "L4"}, "gpusPerNode": 8, "pricePerGPUHour": 1}
    return parse(GPUPool, made("GPUPool", name, base | spec, labels))


def profile(name: str = "eight", model: str = "org/eight", **spec: Any) -> ModelProfile:
    return parse(ModelProfile, made("ModelProfile", name, {"model": model, "architecture": ARCHITECTURE} | spec))


def service(**spec: Any) -> LLMService:
    base = {
        "model": {"name": "org/eight"},
        "objectives": {"timePerOutputToken": {"milliseconds": 80}},
        "workload": {"rate": 4, "sizes": {"preset": "azure-conversation-2023"}},
    }
    return parse(LLMService, made("LLMService", "chat", base | spec))


def made(kind: str, name: str, spec: dict[str, Any], labels: dict[str, str] | None = None) -> dict[str, Any]:
    metadata = {"name": name, "labels": labels or {}}
    return {"apiVersion": "medley.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


AROUND = Surroundings(
    pools={
        "a100": pool("a100", {"type": "A100-80GB"}, labels={"tier": "big"}),
        "l4": pool("l4", labels={"tier": "small"}),
    },
    profiles={"eight": profile()},
)


def problems(asked: LLMService, around: Surroundings = AROUND) -> list[tuple[str, str]]:
    found = resolve_service(asked, around)
    assert not isinstance(found, ResolvedService)
    assert all(problem.message and not problem.message.endswith(".") for problem in found)
    return [(problem.reason, problem.field) for problem in found]


def only_problem(asked: LLMService, around: Surroundings = AROUND) -> Problem:
    found = resolve_service(asked, around)
    assert isinstance(found, tuple)
    (problem,) = found
    return problem


def test_a_service_that_fits_is_resolved() -> None:
    found = resolve_service(service(), AROUND)
    assert isinstance(found, ResolvedService)
    assert found.pools == ("a100", "l4")
    assert (found.model_profile.name, found.from_catalogue) == ("eight", False)
    assert found.sizes.mean_input_tokens == pytest.approx(1155, rel=0.01)


def test_pools_are_chosen_by_name_or_by_label() -> None:
    for gpus in ({"pools": ["l4"]}, {"poolSelector": {"matchLabels": {"tier": "small"}}}):
        found = resolve_service(service(gpus=gpus), AROUND)
        assert isinstance(found, ResolvedService)
        assert found.pools == ("l4",)


def test_an_unknown_pool_names_the_nearest() -> None:
    problem = only_problem(service(gpus={"pools": ["l4", "a10"]}))
    assert (problem.reason, problem.field) == ("UnknownPool", "spec.gpus.pools[1]")
    assert problem.message == "there is no GPUPool 'a10'; did you mean a100?"


def test_labels_that_no_pool_has() -> None:
    problem = only_problem(service(gpus={"poolSelector": {"matchLabels": {"tier": "none"}}}))
    assert (problem.reason, problem.field) == ("NoPoolMatches", "spec.gpus.poolSelector.matchLabels")
    assert "tier=none" in problem.message


def test_no_pool_at_all() -> None:
    assert problems(service(), Surroundings({}, AROUND.profiles)) == [("NoPoolMatches", "spec.gpus")]


def test_a_pool_that_cannot_be_used_is_told_where_it_is_named_and_passed_over_where_it_is_not() -> None:
    around = Surroundings({**AROUND.pools, "odd": pool("odd", {"type": "RTX-9999"})}, AROUND.profiles)
    assert problems(service(gpus={"pools": ["odd"]}), around) == [("InvalidPool", "spec.gpus.pools[0]")]
    found = resolve_service(service(), around)
    assert isinstance(found, ResolvedService)
    assert found.pools == ("a100", "l4")


def test_profiles_are_found_by_model_or_by_name() -> None:
    around = Surroundings(AROUND.pools, {**AROUND.profiles, "fork": profile("fork", "org/fork")})
    named = resolve_service(service(model={"name": "org/mine", "profile": "fork"}), around)
    assert isinstance(named, ResolvedService)
    assert named.model_source == "ModelProfile fork"


def test_a_missing_profile_names_the_nearest() -> None:
    by_model = only_problem(service(model={"name": "org/eigth"}))
    assert (by_model.reason, by_model.field) == ("ProfileNotFound", "spec.model.name")
    assert "did you mean org/eight?" in by_model.message
    by_name = only_problem(service(model={"name": "org/eight", "profile": "eigth"}))
    assert (by_name.reason, by_name.field) == ("ProfileNotFound", "spec.model.profile")
    assert "did you mean eight?" in by_name.message


def test_two_profiles_of_one_model_need_a_choice() -> None:
    around = Surroundings(AROUND.pools, {"eight": profile(), "again": profile("again")})
    problem = only_problem(service(), around)
    assert (problem.reason, problem.field) == ("AmbiguousProfile", "spec.model.profile")
    assert "again, eight" in problem.message


def test_an_unknown_preset_names_the_nearest() -> None:
    problem = only_problem(service(workload={"rate": 1, "sizes": {"preset": "azure-conversation"}}))
    assert (problem.reason, problem.field) == ("UnknownPreset", "spec.workload.sizes.preset")
    assert "azure-conversation-2023" in problem.message


def test_requests_longer_than_the_context() -> None:
    entries = [{"inputTokens": size, "outputTokens": 192, "weight": 1} for size in (8000, 8001)]
    sizes = {"histogram": entries}
    assert problems(service(workload={"rate": 1, "sizes": sizes})) == [
        ("ContextTooLong", "spec.workload.sizes.histogram[1]")
    ]
    assert problems(service(model={"name": "org/eight", "maxContextTokens": 9000})) == [
        ("ContextTooLong", "spec.model.maxContextTokens")
    ]


def test_parallelism_that_no_node_holds() -> None:
    around = Surroundings({"one": pool("one", gpusPerNode=1)}, AROUND.profiles)
    problem = only_problem(service(gpus={"tensorParallel": [4, 2]}), around)
    assert (problem.reason, problem.field) == ("TensorParallelTooLarge", "spec.gpus.tensorParallel")
    assert problem.message.startswith("2 and 4: ")


def test_bounds_on_pools_that_are_unknown_or_not_allowed_or_contradict() -> None:
    scaling = {"pools": [{"name": "l5"}, {"name": "a100", "minReplicas": 3}], "maxReplicas": 2}
    assert problems(service(gpus={"pools": ["l4"]}, scaling=scaling)) == [
        ("UnknownPool", "spec.scaling.pools[0].name"),
        ("PoolNotAllowed", "spec.scaling.pools[1].name"),
        ("ReplicaBoundsContradict", "spec.scaling.pools"),
    ]


def test_arguments_that_medley_sets() -> None:
    problem = only_problem(service(engine={"args": ["--seed", "1", "--tensor-parallel-size=2"]}))
    assert (problem.reason, problem.field) == ("ReservedArgument", "spec.engine.args[2]")


def test_all_problems_are_told_at_once() -> None:
    asked = service(model={"name": "x/y"}, gpus={"pools": ["z"]}, workload={"rate": 1, "sizes": {"preset": "nope"}})
    assert [reason for reason, _ in problems(asked)] == ["ProfileNotFound", "UnknownPreset", "UnknownPool"]


def test_a_pool_may_bring_its_own_figures() -> None:
    known = resolve_pool(pool())
    assert isinstance(known, GPUType)
    assert known.name == "L4"
    own = resolve_pool(pool(gpu={"type": "X1", "memoryGiB": 48, "memoryBandwidthGBps": 900, "teraflops": 200}))
    assert isinstance(own, GPUType)
    assert (own.memory_gib, own.memory_bandwidth_bytes_per_s, own.dense_flops_16bit) == (48, 9e11, 2e14)
    unknown = resolve_pool(pool(gpu={"type": "H100"}))
    assert isinstance(unknown, Problem)
    assert (unknown.reason, unknown.field) == ("UnknownGPUType", "spec.gpu.type")
    assert "H100-80GB" in unknown.message


def test_figures_of_a_pool_go_before_the_catalogues() -> None:
    given = {"type": "a100-80gb", "memoryGiB": 40, "memoryBandwidthGBps": 1555, "teraflops": 312}
    made_of = resolve_pool(pool(gpu=given))
    known = resolve_pool(pool(gpu={"type": "A100-80GB"}))
    assert isinstance(made_of, GPUType)
    assert isinstance(known, GPUType)
    assert made_of.name == "A100-80GB"
    assert made_of.memory_gib == 40
    assert made_of.link_bandwidth_bytes_per_s == known.link_bandwidth_bytes_per_s


def test_two_pools_on_the_same_nodes_count_twice() -> None:
    selector = {"nvidia.com/gpu.product": "NVIDIA-L4"}
    pools = {name: pool(name, nodeSelector=selector) for name in ("l4", "l4-again")}
    assert same_nodes_problem(pools["l4"], pools) is None
    problem = same_nodes_problem(pools["l4-again"], pools)
    assert problem is not None
    assert (problem.reason, problem.field) == ("SameNodes", "spec.nodeSelector")
    assert same_nodes_problem(pool("plain"), {"other": pool("other")}) is None


def test_a_profile_in_the_planners_terms() -> None:
    point = {
        "inputTokens": 2048,
        "outputTokens": 512,
        "requestsPerSecond": 3.4,
        "timePerOutputTokenMs": 41.5,
        "timeToFirstTokenMs": 300,
    }
    measurement = {"gpu": "h100-80gb", "tensorParallel": 2, "engine": "vllm", "points": [point]}
    architecture = ARCHITECTURE | {"dataType": "int4"}
    found = resolve_profile(profile(architecture=architecture, measurements=[measurement]))
    assert isinstance(found, ResolvedProfile)
    assert found.architecture.weight_bytes_per_parameter < 1
    assert found.architecture.key_value_bytes_per_element == 2
    (throughput,) = found.measurements
    assert throughput.gpu == "H100-80GB"
    assert throughput.time_per_output_token_s == pytest.approx(0.0415)
    assert (throughput.tensor_parallel, throughput.pipeline_parallel, throughput.data_parallel) == (2, 1, 1)


def test_a_measured_replica_may_have_stages_and_ranks() -> None:
    point = {
        "inputTokens": 2048,
        "outputTokens": 512,
        "requestsPerSecond": 3.4,
        "timePerOutputTokenMs": 41.5,
        "timeToFirstTokenMs": 300,
    }
    measurement = {"gpu": "L4", "tensorParallel": 1, "pipelineParallel": 2, "dataParallel": 4, "points": [point]}
    found = resolve_profile(profile(measurements=[measurement]))
    assert isinstance(found, ResolvedProfile)
    (throughput,) = found.measurements
    assert (throughput.tensor_parallel, throughput.pipeline_parallel, throughput.data_parallel) == (1, 2, 4)


def test_a_profile_whose_experts_cannot_be() -> None:
    architecture = ARCHITECTURE | {"experts": 8, "activeExperts": 7, "activeParameters": 1_000_000}
    found = resolve_profile(profile(architecture=architecture))
    assert isinstance(found, Problem)
    assert (found.reason, found.field) == ("InvalidProfile", "spec.architecture.activeParameters")


class TestTraces:
    reference = ConfigMapKeyReference(name="trace", key="requests.csv")
    asked = service(workload={"rate": 1, "sizes": {"traceConfigMap": {"name": "trace", "key": "requests.csv"}}})

    def test_a_trace_becomes_a_histogram(self) -> None:
        text = "arrival_s,input_tokens,output_tokens\n0,100,10\n1,200,20\n"
        sizes = histogram_of_config_map(self.reference, {"requests.csv": text})
        assert isinstance(sizes, SizeHistogram)
        around = Surroundings(AROUND.pools, AROUND.profiles, {TraceKey("default", "trace", "requests.csv"): sizes})
        found = resolve_service(self.asked, around)
        assert isinstance(found, ResolvedService)
        assert found.sizes.mean_input_tokens == 150

    @pytest.mark.parametrize(
        ("data", "reason", "field", "words"),
        [
            (None, "TraceNotFound", "name", "no ConfigMap 'trace'"),
            ({"request.csv": ""}, "TraceNotFound", "key", "did you mean request.csv?"),
            ({"requests.csv": "a,b\n1,2\n"}, "InvalidTrace", "", "line 2"),
        ],
    )
    def test_what_can_be_wrong_with_it(self, data: dict[str, str] | None, reason: str, field: str, words: str) -> None:
        found = histogram_of_config_map(self.reference, data)
        assert isinstance(found, Problem)
        assert found.reason == reason
        assert found.field == ".".join(filter(None, ("spec.workload.sizes.traceConfigMap", field)))
        assert words in found.message

    def test_a_config_map_that_was_not_read_is_not_there(self) -> None:
        assert problems(self.asked) == [("TraceNotFound", "spec.workload.sizes.traceConfigMap.name")]


def test_nearest_names() -> None:
    assert nearest("h100", ["H100-80GB", "H100-PCIe", "H200", "L4"])[0].startswith("H100")
    assert nearest("zzz", ["a", "b"]) == ()
    assert hint("zzz", ["b", "a"]) == "; there are a, b"
    assert hint("zzz", []) == "; there is none"


def test_a_model_without_a_profile_is_taken_from_the_catalogue() -> None:
    found = resolve_service(service(model={"name": "Qwen/Qwen3-8B"}), AROUND)

    assert isinstance(found, ResolvedService)
    assert found.from_catalogue
    assert found.model_source == "catalogue"
    assert found.profile.architecture == known_models()["Qwen/Qwen3-8B"]
    assert found.model_profile.spec.model == "Qwen/Qwen3-8B"


def test_the_catalogue_is_asked_for_the_repository_that_is_served() -> None:
    source = {"huggingFace": {"repository": "qwen/qwen3-8b"}}
    found = resolve_service(service(model={"name": "chat", "source": source}), AROUND)

    assert isinstance(found, ResolvedService)
    assert found.profile.architecture == known_models()["Qwen/Qwen3-8B"]
    assert found.model_profile.spec.model == "chat"

    other = {"huggingFace": {"repository": "org/fine-tuned"}}
    problem = only_problem(service(model={"name": "Qwen/Qwen3-8B", "source": other}))
    assert (problem.reason, problem.field) == ("ProfileNotFound", "spec.model.name")
    assert "nor 'org/fine-tuned'" in problem.message


def test_a_profile_goes_before_the_catalogue() -> None:
    around = Surroundings(AROUND.pools, {"own": profile("own", "Qwen/Qwen3-8B")})
    found = resolve_service(service(model={"name": "Qwen/Qwen3-8B"}), around)

    assert isinstance(found, ResolvedService)
    assert found.model_source == "ModelProfile own"
    assert found.profile.architecture.parameters == ARCHITECTURE["parameters"]


def test_a_model_that_nobody_knows_is_answered_with_the_nearest_of_profiles_and_catalogue() -> None:
    problem = only_problem(service(model={"name": "Qwen/Qwen3-8"}))

    assert (problem.reason, problem.field) == ("ProfileNotFound", "spec.model.name")
    assert "did you mean Qwen/Qwen3-8B" in problem.message
    assert "medley model" in problem.message


@pytest.mark.parametrize("name", sorted(known_models()))
def test_profiles_of_the_catalogue_resolve_to_the_architecture_that_they_were_made_of(name: str) -> None:
    made = catalogue_profile(service(model={"name": name}).spec.model)

    assert made is not None
    again = parse(ModelProfile, made.to_manifest())
    resolved = resolve_profile(again)
    assert isinstance(resolved, ResolvedProfile)
    assert resolved.architecture == known_models()[name]


@pytest.mark.parametrize(
    ("architecture", "field"),
    [
        ({"latentSize": 576}, "spec.architecture"),
        ({"windowLayers": 4}, "spec.architecture"),
        ({"windowTokens": 4096}, "spec.architecture"),
        ({"windowLayers": 33, "windowTokens": 4096}, "spec.architecture"),
        ({"constantLayers": 32}, "spec.architecture"),
        ({"bytesPerParameter": 0}, "spec.architecture.bytesPerParameter"),
        ({"dataType": "fp4"}, "spec.architecture.dataType"),
    ],
)
def test_impossible_architectures_are_refused_by_field(architecture: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidManifestError) as caught:
        profile(architecture=ARCHITECTURE | architecture)

    assert [path_text(wrong.path) for wrong in caught.value.errors] == [field]


def test_a_cache_of_its_own_kind_is_resolved() -> None:
    facts = ARCHITECTURE | {
        "keyValueHeads": 1, "latentSize": 576, "windowLayers": 16, "windowTokens": 4096, "constantLayers": 8,
        "stateBytesPerRequest": 1e6, "lookupParameters": 10**8, "dataType": "int4", "bytesPerParameter": 0.7,
    }  # fmt: skip
    resolved = resolve_profile(profile(architecture=facts))

    assert isinstance(resolved, ResolvedProfile)
    model = resolved.architecture
    assert model.key_value_bytes_per_token == 24 * 576 * 2
    assert model.cache_bytes(8192) == 8192 * 24 * 576 * 2 - 4096 * 16 * 576 * 2 + 1e6
    assert (model.weight_bytes_per_parameter, model.computes_in_8_bit) == (0.7, False)


MARGINS: dict[str, Any] = {
    "inputTokens": [{"upTo": 500, "weight": 20}, {"upTo": 2000, "weight": 60}, {"upTo": 7000, "weight": 20}],
    "outputTokens": [{"upTo": 100, "weight": 50}, {"upTo": 1000, "weight": 50}],
}


def with_margins(**changes: Any) -> LLMService:
    return service(workload={"rate": 4, "sizes": {"marginals": MARGINS | changes}})


def test_margins_are_fitted_to_their_prior() -> None:
    found = resolve_service(with_margins(meanInputTokens=1500, prior="azure-code-2023"), AROUND)

    assert isinstance(found, ResolvedService)
    assert sum(bucket.weight for bucket in found.sizes.buckets if bucket.input_tokens <= 500) == pytest.approx(0.2)
    assert sum(bucket.weight for bucket in found.sizes.buckets if bucket.output_tokens <= 100) == pytest.approx(0.5)
    assert found.sizes.mean_input_tokens == pytest.approx(1500, rel=1e-3)
    again = resolve_service(with_margins(meanInputTokens=1500, prior="azure-code-2023"), AROUND)
    assert isinstance(again, ResolvedService)
    assert again.sizes is found.sizes


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"prior": "nobody"}, "UnknownPreset", "prior"),
        ({"inputTokens": [{"upTo": 9, "weight": 1}, {"upTo": 5, "weight": 1}]}, "InvalidSizes", "inputTokens[1].upTo"),
        ({"outputTokens": [{"upTo": 9, "weight": 0}]}, "InvalidSizes", "outputTokens"),
        ({"meanOutputTokens": 5000}, "InvalidSizes", "outputTokens"),
        ({"inputTokens": [{"upTo": 9, "weight": 1}]}, "InvalidSizes", ""),
    ],
)
def test_margins_that_make_no_sense_are_refused_by_field(changes: dict[str, Any], reason: str, field: str) -> None:
    path = f"spec.workload.sizes.marginals.{field}".rstrip(".")

    assert problems(with_margins(**changes)) == [(reason, path)]
