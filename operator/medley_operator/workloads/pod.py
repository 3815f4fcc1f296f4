"""The pod template of a vLLM or SGLang replica."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from medley_operator.api.engine import EngineResources
from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.modelprofile import ModelProfile
from medley_operator.workloads import naming, sglang, vllm
from medley_operator.workloads.arguments import joined
from medley_operator.workloads.engine import EngineRuntime, Launch
from medley_operator.workloads.probes import grace_period_s, probes, settle_hook
from medley_operator.workloads.volumes import HF_HOME, Volumes, engine_volumes, model_location
from medley_planner.fleet import Parallelism

JsonObject = dict[str, Any]

_RUNTIMES: Mapping[str, Callable[[Launch], EngineRuntime]] = MappingProxyType(
    {"vllm": vllm.runtime, "sglang": sglang.runtime}
)


def engine_template(
    service: LLMService, pool: GPUPool, profile: ModelProfile, *, parallelism: Parallelism
) -> JsonObject:
    """The pod template of a replica, but for its labels."""
    runtime = _RUNTIMES[service.spec.engine.type](_launch(service, pool, profile, parallelism))
    volumes = engine_volumes(service, parallelism=parallelism, home=runtime.home)
    spec: JsonObject = {
        "automountServiceAccountToken": False,
        # A Service called `vllm` would otherwise become the variable VLLM_PORT, which vLLM takes for its own.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_period_s(service),
        "readinessGates": [{"conditionType": naming.GATE_SERVING}],
        "securityContext": _pod_security(runtime),
        "containers": [_container(service, pool, runtime, volumes, parallelism)],
        "volumes": volumes.volumes,
        **placement(pool),
    }
    return {"metadata": {"annotations": scrape_annotations(service)}, "spec": spec}


def placement(pool: GPUPool) -> JsonObject:
    """The node selector and tolerations of a pool, as fields of a pod; left out where empty."""
    made: JsonObject = {}
    if pool.spec.node_selector:
        made["nodeSelector"] = dict(sorted(pool.spec.node_selector.items()))
    if pool.spec.tolerations:
        made["tolerations"] = [
            toleration.model_dump(by_alias=True, exclude_none=True) for toleration in pool.spec.tolerations
        ]
    return made


def scrape_annotations(service: LLMService) -> dict[str, str]:
    """The annotations by which a Prometheus finds the engine's metrics."""
    return {
        "prometheus.io/scrape": "true",
        "prometheus.io/path": "/metrics",
        "prometheus.io/port": str(service.spec.engine.port),
    }


def _launch(service: LLMService, pool: GPUPool, profile: ModelProfile, parallelism: Parallelism) -> Launch:
    model = service.spec.model
    hub = model.effective_source.hugging_face
    architecture = profile.spec.architecture
    return Launch(
        model=model_location(service),
        revision=hub.revision if hub is not None else None,
        served_name=model.name,
        architecture=architecture,
        # Given even where it is the model's own, because the plan was made with it: one long request must fit in the
        # KV cache.
        context_tokens=model.max_context_tokens or architecture.max_context_tokens,
        gpu_type=pool.spec.gpu.type,
        resource_name=pool.spec.resource_name,
        parallelism=parallelism,
        port=service.spec.engine.port,
        drain_timeout_s=service.spec.disruption.drain_timeout_seconds,
    )


def _container(
    service: LLMService, pool: GPUPool, runtime: EngineRuntime, volumes: Volumes, parallelism: Parallelism
) -> JsonObject:
    engine = service.spec.engine
    container: JsonObject = {
        "name": naming.ENGINE_CONTAINER,
        "image": engine.image or runtime.image,
        "args": joined(runtime.arguments, engine.args or ()),
        "env": _environment(service, runtime),
        "ports": [{"name": naming.ENGINE_PORT, "containerPort": engine.port, "protocol": "TCP"}],
        "resources": _resources(engine.resources, pool.spec.resource_name, parallelism.gpus),
        "lifecycle": settle_hook(),
        "securityContext": _container_security(runtime),
        "volumeMounts": volumes.mounts,
        **probes(pool, path=runtime.health_path, port=naming.ENGINE_PORT, timeout_s=runtime.health_timeout_s),
    }
    if runtime.command:
        container["command"] = list(runtime.command)
    return container


def _environment(service: LLMService, runtime: EngineRuntime) -> list[JsonObject]:
    """Medley's variables, then the user's, who wins where both name one."""
    made: dict[str, JsonObject] = {
        name: {"name": name, "value": value} for name, value in sorted(runtime.environment.items())
    }
    hub = service.spec.model.effective_source.hugging_face
    if hub is not None:
        made["HF_HOME"] = {"name": "HF_HOME", "value": HF_HOME}
        if hub.token_secret is not None:
            secret = {"name": hub.token_secret.name, "key": hub.token_secret.key}
            made["HF_TOKEN"] = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": secret}}
    for variable in service.spec.engine.env or ():
        # Taken out first, so that the user's stands in the user's order: later variables may refer to earlier ones.
        made.pop(variable.name, None)
        made[variable.name] = variable.model_dump(by_alias=True, exclude_none=True)
    return list(made.values())


def _resources(resources: EngineResources | None, gpu_resource: str, gpus: int) -> JsonObject:
    given = resources.model_dump(by_alias=True, exclude_none=True) if resources is not None else {}
    return {part: {**given.get(part, {}), gpu_resource: str(gpus)} for part in ("requests", "limits")}


def _pod_security(runtime: EngineRuntime) -> JsonObject:
    made: JsonObject = {"seccompProfile": {"type": "RuntimeDefault"}}
    if runtime.user_id is not None:
        made |= {
            "runAsNonRoot": True,
            "runAsUser": runtime.user_id,
            "runAsGroup": runtime.user_id,
            # Gives the user the cache volume; a large one is not walked again at every start.
            "fsGroup": runtime.user_id,
            "fsGroupChangePolicy": "OnRootMismatch",
        }
    return made


def _container_security(runtime: EngineRuntime) -> JsonObject:
    """As strict as the engine allows: engines compile kernels into their root file system, so that stays writable."""
    made: JsonObject = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    if runtime.user_id is not None:
        made["runAsNonRoot"] = True
    return made
