"""Manifests of every engine, as files that a reviewer can read.

`MEDLEY_UPDATE_GOLDEN=1 pytest tests/golden/test_workload_golden.py` writes the outputs anew; the test then fails, so
that an update is never mistaken for a check.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.modelprofile import ModelProfile
from medley_operator.workloads import deployment, pod_disruption_budget, service
from medley_planner.fleet import Parallelism

FOLDER = Path(__file__).parent / "workloads"
INPUTS = sorted(FOLDER.glob("*.input.yaml"))
KUBERNETES_VERSION = "1.35"


def manifests(path: Path) -> list[dict[str, Any]]:
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    by_kind = {value["kind"]: value for value in given["objects"]}
    llm = LLMService.model_validate(by_kind["LLMService"])
    pool = GPUPool.model_validate(by_kind["GPUPool"])
    profile = ModelProfile.model_validate(by_kind["ModelProfile"])
    variant = given["variant"]
    assert variant["pool"] == pool.name
    made = deployment(llm, pool, profile, parallelism=_parallelism(variant), replicas=variant["replicas"])
    return [made, service(llm), pod_disruption_budget(llm)]


def _parallelism(variant: dict[str, Any]) -> Parallelism:
    return Parallelism(variant["tensorParallel"], variant.get("pipelineParallel", 1), variant.get("dataParallel", 1))


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.name.removesuffix(".input.yaml"))
def test_manifests_are_as_recorded(path: Path) -> None:
    made = manifests(path)
    text = yaml.safe_dump_all(made, sort_keys=False, width=120)
    recorded = path.with_name(path.name.replace(".input.", ".output."))
    if os.environ.get("MEDLEY_UPDATE_GOLDEN"):
        recorded.write_text(text, encoding="utf-8")
        pytest.fail(f"wrote {recorded.name}; run again without MEDLEY_UPDATE_GOLDEN")
    assert text == recorded.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.name.removesuffix(".input.yaml"))
def test_manifests_have_no_field_that_kubernetes_does_not_know(path: Path) -> None:
    for manifest in manifests(path):
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


def test_every_output_has_its_input() -> None:
    outputs = {path.name.replace(".output.", ".input.") for path in FOLDER.glob("*.output.yaml")}
    assert outputs == {path.name for path in INPUTS}
