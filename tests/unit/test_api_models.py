"""What the API models accept, refuse and fill in, beyond what the generated specs show."""

from __future__ import annotations

from typing import Any

import pytest

from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.llmservice_status import LLMServiceStatus
from medley_operator.api.manifest import InvalidManifestError, parse, parse_any, path_of, path_text

MINIMAL: dict[str, Any] = {
    "apiVersion": "medley.dev/v1alpha1",
    "kind": "LLMService",
    "metadata": {"name": "chat", "creationTimestamp": "2026-05-01T00:00:00Z", "managedFields": []},
    "spec": {
        "model": {"name": "org/model"},
        "objectives": {"timePerOutputToken": {"milliseconds": 80}},
        "workload": {"rate": 4, "sizes": {"preset": "azure-conversation-2023"}},
    },
}


def with_spec(**spec: Any) -> dict[str, Any]:
    return MINIMAL | {"spec": MINIMAL["spec"] | spec}


def errors(manifest: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidManifestError) as caught:
        parse_any(manifest)
    return {error.field: error.message for error in caught.value.errors}


def test_defaults_of_a_minimal_service() -> None:
    service = parse(LLMService, MINIMAL)
    assert service.key == "default/chat"
    assert service.spec.engine.type == "vllm"
    assert service.spec.engine.port == 8000
    assert service.spec.scaling.min_replicas == 1
    assert service.spec.scaling.headroom == 0.1
    assert service.spec.disruption.drain_timeout_seconds == 300
    assert service.spec.mode == "Auto"
    source = service.spec.model.effective_source.hugging_face
    assert source is not None
    assert source.repository == "org/model"


def test_a_service_survives_being_written_and_read_again() -> None:
    service = parse(LLMService, with_spec(gpus={"pools": ["l4"], "tensorParallel": [2, 1]}))
    assert parse(LLMService, service.to_manifest()) == service


def test_two_services_with_the_same_spec_are_equal_and_frozen() -> None:
    service = parse(LLMService, MINIMAL)
    assert service.spec == parse(LLMService, MINIMAL).spec
    with pytest.raises(ValueError, match="frozen"):
        service.spec.mode = "Paused"  # type: ignore[misc]


def test_a_null_is_an_absent_field() -> None:
    assert parse(LLMService, with_spec(gpus=None, scaling={"maxReplicas": None})).spec.scaling.max_replicas is None
    assert "spec.workload" in errors(with_spec(workload=None))


def test_python_names_are_not_the_api() -> None:
    found = errors(with_spec(scaling={"max_replicas": 3}))
    assert found == {"spec.scaling.max_replicas": "there is no such field; did you mean maxReplicas?"}


def test_an_unknown_field_of_a_list_item_names_the_nearest() -> None:
    sizes = {"histogram": [{"inputTokens": 1, "outputTokens": 1, "weight": 1}, {"inputToken": 1}]}
    found = errors(with_spec(workload={"rate": 1, "sizes": sizes}))
    assert "did you mean inputTokens" in found["spec.workload.sizes.histogram[1].inputToken"]


def test_a_broken_rule_names_the_field_and_what_to_do() -> None:
    found = errors(with_spec(scaling={"minReplicas": 3, "maxReplicas": 2}))
    assert found == {"spec.scaling": "minReplicas must not be larger than maxReplicas"}
    assert "start with a letter" in errors(MINIMAL | {"metadata": {"name": "1chat"}})["metadata.name"]


def test_another_version_or_kind_is_refused_by_name() -> None:
    assert errors(MINIMAL | {"apiVersion": "medley.dev/v1"}) == {
        "apiVersion": "must be medley.dev/v1alpha1, is 'medley.dev/v1'"
    }
    assert "did you mean LLMService?" in errors(MINIMAL | {"kind": "LLMServices"})["kind"]


def test_a_status_of_another_release_is_read_without_its_new_fields() -> None:
    manifest = MINIMAL | {"status": {"observedGeneration": 3, "observed": {"rate": 4.2}, "conditions": []}}
    assert parse(LLMService, manifest).status == LLMServiceStatus(observed_generation=3)


def test_a_pending_deadline_is_at_least_ten_minutes_and_grows_with_provisioning() -> None:
    def deadline(**spec: Any) -> int:
        base = {"gpu": {"type": "L4"}, "gpusPerNode": 1, "pricePerGPUHour": 1}
        manifest = {"apiVersion": "medley.dev/v1alpha1", "kind": "GPUPool", "metadata": {"name": "l4"}}
        return parse(GPUPool, manifest | {"spec": base | spec}).spec.pending_deadline_s

    assert deadline() == 600
    assert deadline(provisioningSeconds=400) == 800
    assert deadline(exhaustion={"pendingDeadlineSeconds": 30}) == 30


@pytest.mark.parametrize("path", [("spec", "gpus", "pools", 1), ("spec",), ("a", 0, "b", 12, "c")])
def test_paths_are_written_and_read(path: tuple[str | int, ...]) -> None:
    assert path_of(path_text(path)) == path
