"""A service without a ModelProfile in a cluster: the operator makes its replicas from the catalogue's facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest

from medley_operator.act.surroundings import ServiceSurroundings
from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.modelprofile import ModelProfile
from medley_operator.api.resolve import ResolvedService, Surroundings, resolve_service
from medley_operator.cache import ClusterCache
from medley_operator.kube import KubeClient
from medley_operator.observe.views import ProfileView
from medley_operator.workloads import deployment
from medley_planner.fleet import Parallelism

POOL = GPUPool.model_validate(
    {"metadata": {"name": "l4"}, "spec": {"gpu": {"type": "L4"}, "gpusPerNode": 8, "pricePerGPUHour": 0.8}}
)
PROFILE = ModelProfile.model_validate(
    {
        "metadata": {"name": "own"},
        "spec": {
            "model": "Qwen/Qwen3-8B",
            "architecture": {
                "parameters": 8_190_735_360,
                "layers": 36,
                "hiddenSize": 4096,
                "attentionHeads": 32,
                "keyValueHeads": 8,
                "headSize": 128,
                "maxContextTokens": 8192,
            },
        },
    }
)


@dataclass
class FakeCache:
    """As much of the cache as finding a profile needs."""

    profiles: tuple[ProfileView, ...]


def llm(name: str) -> LLMService:
    spec: dict[str, Any] = {
        "model": {"name": name},
        "objectives": {"timePerOutputToken": {"milliseconds": 60}},
        "workload": {"rate": 1, "sizes": {"preset": "azure-conversation-2023"}},
    }
    return LLMService.model_validate({"metadata": {"name": "chat", "namespace": "default"}, "spec": spec})


def surroundings(*profiles: ModelProfile) -> ServiceSurroundings:
    views = tuple(ProfileView(profile.name, "uid", 1, 1, profile, "") for profile in profiles)
    return ServiceSurroundings(cast("KubeClient", None), cast("ClusterCache", FakeCache(views)))


@pytest.mark.parametrize(("profiles", "context"), [((), "40960"), ((PROFILE,), "8192")])
def test_replicas_have_the_context_of_the_profile_or_else_of_the_catalogue(
    profiles: tuple[ModelProfile, ...], context: str
) -> None:
    service = llm("Qwen/Qwen3-8B")
    profile = surroundings(*profiles).profile(service)

    assert profile is not None
    made = deployment(service, POOL, profile, parallelism=Parallelism(), replicas=1)
    container = made["spec"]["template"]["spec"]["containers"][0]
    arguments = [*container.get("command", ()), *container["args"]]
    assert arguments[arguments.index("--max-model-len") + 1] == context


def test_what_is_planned_is_what_is_run() -> None:
    service = llm("Qwen/Qwen3-30B-A3B")
    resolved = resolve_service(service, Surroundings({"l4": POOL}, {}))

    assert isinstance(resolved, ResolvedService)
    assert resolved.from_catalogue
    assert surroundings().profile(service) == resolved.model_profile


def test_a_model_that_nobody_knows_has_no_profile() -> None:
    assert surroundings(PROFILE).profile(llm("org/unknown")) is None
