"""The pod template of a `custom` engine: the user's own, with what Medley needs joined in."""

from __future__ import annotations

import copy
from typing import Any

from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.modelprofile import ModelProfile
from medley_operator.workloads import naming
from medley_operator.workloads.pod import placement, scrape_annotations
from medley_operator.workloads.probes import SETTLE_S, grace_period_s, probes, settle_hook
from medley_planner.fleet import Parallelism

JsonObject = dict[str, Any]


class PodTemplateError(ValueError):
    """A user's pod template cannot be used.

    Args:
        field: Path of the field within `spec.engine.podTemplate`.
        problem: What is wrong with it.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"spec.engine.podTemplate.{field}: {problem}")
        self.field = f"spec.engine.podTemplate.{field}"
        self.problem = problem


def custom_template(
    service: LLMService, pool: GPUPool, profile: ModelProfile, *, parallelism: Parallelism
) -> JsonObject:
    """The user's pod template with Medley's parts, but for the labels.

    Medley's are: the readiness gate, the pool's node selector and tolerations, the GPUs and variables of the engine's
    container. Where the user left them out, also: grace period, readiness and startup probe, the sleep before
    SIGTERM, scrape annotations. The variables MEDLEY_* say what the plan chose; `$(MEDLEY_TENSOR_PARALLEL)` in `args`
    works. MEDLEY_PIPELINE_PARALLEL and MEDLEY_DATA_PARALLEL are there where the service's `gpus` chooses such sizes.

    Raises:
        PodTemplateError: The template has no container, or a part of it has the wrong shape.
    """
    template = copy.deepcopy(service.spec.engine.template)
    spec = _object(template, "spec", "spec")
    _add_placement(spec, pool)
    gates = [gate for gate in _list(spec, "readinessGates", "spec.readinessGates") if not _is_own_gate(gate)]
    spec["readinessGates"] = [*gates, {"conditionType": naming.GATE_SERVING}]
    grace_s = spec.setdefault("terminationGracePeriodSeconds", grace_period_s(service))
    container = _engine_container(spec)
    _complete_container(container, service, pool, profile, parallelism)
    if isinstance(grace_s, int) and grace_s > SETTLE_S:
        # The API server refuses a sleep that is longer than the grace period.
        lifecycle = _object(container, "lifecycle", "spec.containers[engine].lifecycle")
        lifecycle.setdefault("preStop", settle_hook()["preStop"])
    metadata = _object(template, "metadata", "metadata")
    annotations = _object(metadata, "annotations", "metadata.annotations")
    return {
        "metadata": {
            "labels": _object(metadata, "labels", "metadata.labels"),
            "annotations": {**scrape_annotations(service), **annotations},
        },
        "spec": spec,
    }


def _add_placement(spec: JsonObject, pool: GPUPool) -> None:
    placed = placement(pool)
    if "nodeSelector" in placed:
        spec["nodeSelector"] = {**_object(spec, "nodeSelector", "spec.nodeSelector"), **placed["nodeSelector"]}
    given = _list(spec, "tolerations", "spec.tolerations")
    if "tolerations" in placed:
        spec["tolerations"] = [*given, *(item for item in placed["tolerations"] if item not in given)]


def _engine_container(spec: JsonObject) -> JsonObject:
    containers = _list(spec, "containers", "spec.containers")
    for index, container in enumerate(containers):
        if not isinstance(container, dict):
            raise PodTemplateError(f"spec.containers[{index}]", "must be an object")
    if not containers:
        raise PodTemplateError("spec.containers", "must hold the container that serves")
    named = (container for container in containers if container.get("name") == naming.ENGINE_CONTAINER)
    chosen: JsonObject = next(named, containers[0])
    return chosen


def _complete_container(
    container: JsonObject, service: LLMService, pool: GPUPool, profile: ModelProfile, parallelism: Parallelism
) -> None:
    port = service.spec.engine.port
    at = "spec.containers[engine]"
    resources = _object(container, "resources", f"{at}.resources")
    for part in ("requests", "limits"):
        amounts = _object(resources, part, f"{at}.resources.{part}")
        amounts[pool.spec.resource_name] = str(parallelism.gpus)
    own = _variables(service, pool, profile, parallelism)
    own_names = {variable["name"] for variable in own}
    given = [item for item in _list(container, "env", f"{at}.env") if item.get("name") not in own_names]
    container["env"] = [*own, *given]
    ports = _list(container, "ports", f"{at}.ports")
    if not any(item.get("containerPort") == port for item in ports):
        ports.append({"containerPort": port, "protocol": "TCP"})
    made = probes(pool, path="/health", port=port, timeout_s=5)
    if "readinessProbe" not in container:
        container["readinessProbe"] = made["readinessProbe"]
        # A readiness probe of the user's says how the engine shows its health; guessing another for its start could
        # restart it for ever.
        container.setdefault("startupProbe", made["startupProbe"])


def _variables(service: LLMService, pool: GPUPool, profile: ModelProfile, parallelism: Parallelism) -> list[JsonObject]:
    model = service.spec.model
    values = {
        "MEDLEY_GPU": pool.spec.gpu.type,
        "MEDLEY_MAX_CONTEXT_TOKENS": str(model.max_context_tokens or profile.spec.architecture.max_context_tokens),
        "MEDLEY_MODEL": model.name,
        "MEDLEY_POOL": pool.name,
        "MEDLEY_PORT": str(service.spec.engine.port),
        "MEDLEY_SERVICE": service.name,
        "MEDLEY_TENSOR_PARALLEL": str(parallelism.tensor),
    }
    # Only where the service may choose among them: another variable is another template, and replaces every replica.
    if service.spec.gpus.pipeline_parallel is not None:
        values["MEDLEY_PIPELINE_PARALLEL"] = str(parallelism.pipeline)
    if service.spec.gpus.data_parallel is not None:
        values["MEDLEY_DATA_PARALLEL"] = str(parallelism.data)
    return [{"name": name, "value": value} for name, value in sorted(values.items())]


def _is_own_gate(gate: Any) -> bool:
    return isinstance(gate, dict) and gate.get("conditionType") == naming.GATE_SERVING


def _object(parent: JsonObject, key: str, path: str) -> JsonObject:
    """The object under `key`, made where it is missing."""
    found = parent.get(key)
    if found is None:
        found = parent[key] = {}
    if not isinstance(found, dict):
        raise PodTemplateError(path, "must be an object")
    return found


def _list(parent: JsonObject, key: str, path: str) -> list[Any]:
    """The list under `key`, made where it is missing; of objects, or of anything for containers."""
    found = parent.get(key)
    if found is None:
        found = parent[key] = []
    if not isinstance(found, list):
        raise PodTemplateError(path, "must be a list")
    for index, item in enumerate(found):
        if not isinstance(item, dict):
            raise PodTemplateError(f"{path}[{index}]", "must be an object")
    return found
