"""Random manifests of the API, valid, broken on purpose, and wild; the same seed gives the same manifests.

- A *valid* manifest must be accepted.
- A *broken* one was valid before one named mistake was put in; it must be refused, and the refusal must name the field.
- A *wild* one has values in random places replaced by odd ones; the models and the API server must agree on it.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]
API_VERSION = "medley.dev/v1alpha1"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
POOLS = ("l4", "a10g", "a100", "h100")
GPU_TYPES = ("L4", "A10G", "A100-80GB", "H100-80GB", "L40S", "MI300X")
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, "", " ", "x", "5", "-1", "Ünïcödé", "a" * 300, "a\nb", "..", "l4",
    -1, 0, 1, 2, 3, 4.0, 1.5, -0.5, 10**7, 10**15, 10**30, 1e300, 1e-300,
    [], {}, [None], ["l4"], ["l4", "l4"], [1], [1, 1], [{}], {"x": 1}, {"name": "l4"}, {"": ""}, {"a b": "c"},
)  # fmt: skip


@dataclass(frozen=True)
class Generated:
    """A manifest and what is known of it.

    Args:
        manifest: The manifest.
        kind: `valid`, `broken` or `wild`.
        field: Of a broken one, the field that a refusal must name.
        mistake: Of a broken one, what was done to it.
    """

    manifest: Manifest
    kind: str
    field: str = ""
    mistake: str = ""

    def is_named_by(self, fields: Collection[str]) -> bool:
        """Whether one of these paths leads to the field that is wrong, or to something in it."""
        return any(field == self.field or field.startswith((f"{self.field}[", f"{self.field}.")) for field in fields)


def generate(seed: int, count: int) -> Iterator[Generated]:
    """So many manifests: a third each of valid, broken and wild ones, of all kinds of objects."""
    rng = random.Random(seed)
    for index in range(count):
        make, mistakes = rng.choice(
            (
                (llm_service, SERVICE_MISTAKES),
                (llm_service, SERVICE_MISTAKES),
                (gpu_pool, POOL_MISTAKES),
                (model_profile, PROFILE_MISTAKES),
            )
        )
        manifest = make(rng, f"spec-{index}")
        match index % 3:
            case 0:
                yield Generated(manifest, "valid")
            case 1:
                mistake = rng.choice(mistakes)
                mistake.make(manifest)
                yield Generated(manifest, "broken", mistake.field, mistake.name)
            case _:
                for _ in range(rng.choice((1, 1, 1, 2, 3))):
                    _replace_somewhere(rng, manifest)
                yield Generated(manifest, "wild")


def llm_service(rng: random.Random, name: str) -> Manifest:
    """A valid LLMService."""
    spec: Manifest = {"model": _model(rng), "objectives": _objectives(rng), "workload": _workload(rng)}
    for part, make in (("engine", _engine), ("gpus", _gpus), ("scaling", _scaling), ("disruption", _disruption)):
        if rng.random() < 0.6:
            spec[part] = make(rng)
    if rng.random() < 0.3:
        spec["mode"] = rng.choice(("Auto", "Recommend", "Paused"))
    if rng.random() < 0.3:
        spec["priority"] = rng.choice((-5, 0, 100))
    return _object("LLMService", name, spec)


def gpu_pool(rng: random.Random, name: str) -> Manifest:
    """A valid GPUPool."""
    gpu: Manifest = {"type": rng.choice(GPU_TYPES)}
    if rng.random() < 0.3:
        gpu = {"type": "Own-1.0", "memoryGiB": rng.choice((24, 80.5)), "memoryBandwidthGBps": 900, "teraflops": 200.5}
    spec: Manifest = {
        "gpu": gpu,
        "gpusPerNode": rng.choice((1, 2, 4, 8, 16)),
        "pricePerGPUHour": rng.choice((0, 1, 0.8048, 6.88)),
    }
    optional: Manifest = {
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4", "zone": "", "example.com/a_b.c": "X_1"},
        "tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"operator": "Exists"},
            {"key": "spot", "value": "true", "effect": "NoExecute", "tolerationSeconds": 30},
        ],
        "resourceName": rng.choice(("nvidia.com/gpu", "amd.com/gpu")),
        "limit": rng.choice((0, 8, 1000)),
        "provisioningSeconds": 300,
        "loadSeconds": 90,
        "capacityType": rng.choice(("OnDemand", "Spot", "Reserved")),
        "exhaustion": {"pendingDeadlineSeconds": 30, "retryAfterSeconds": 60},
    }
    spec |= _some(rng, optional)
    if spec.get("capacityType") == "Spot" and rng.random() < 0.5:
        spec["interruptionsPerHour"] = rng.choice((0, 0.05, 3))
    return _object("GPUPool", name, spec)


def model_profile(rng: random.Random, name: str) -> Manifest:
    """A valid ModelProfile, of a model of its own."""
    architecture: Manifest = {
        "parameters": 8_030_261_248,
        "layers": 32,
        "hiddenSize": 4096,
        "attentionHeads": 32,
        "keyValueHeads": rng.choice((1, 8, 32)),
        "headSize": 128,
        "maxContextTokens": 131_072,
    }
    if rng.random() < 0.4:
        architecture |= {"activeParameters": 3_000_000_000, "experts": 128, "activeExperts": 8}
    architecture |= _some(
        rng,
        {
            "dataType": rng.choice(("bf16", "fp8", "int4", "mxfp4", "nvfp4")),
            "keyValueDataType": "fp8",
            "bytesPerParameter": 1.07,
            "bytesPerExpertParameter": 0.53125,
            "lookupParameters": 525_336_576,
            "constantLayers": 8,
            "stateBytesPerRequest": 3_000_000,
        },
    )
    if rng.random() < 0.3:
        architecture |= {"windowLayers": 16, "windowTokens": 1024}
    if rng.random() < 0.3:
        architecture |= {"keyValueHeads": 1, "latentSize": 576}
    spec: Manifest = {"model": f"example/{name}", "architecture": architecture}
    if rng.random() < 0.5:
        point = {
            "inputTokens": 2048,
            "outputTokens": 512,
            "requestsPerSecond": 3.4,
            "timePerOutputTokenMs": 41.5,
            "timeToFirstTokenMs": 300,
        }
        spec["measurements"] = [
            {"gpu": "H100-80GB", "tensorParallel": 1, "points": [point, point | {"requestsPerSecond": 5}]},
            {"gpu": "L4", "tensorParallel": 2, "engine": "vllm", "points": [point], "source": "vllm bench, 2026-05"},
        ]
    return _object("ModelProfile", name, spec)


def _object(kind: str, name: str, spec: Manifest) -> Manifest:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _some(rng: random.Random, optional: Manifest) -> Manifest:
    return {key: copy.deepcopy(value) for key, value in optional.items() if rng.random() < 0.4}


def _model(rng: random.Random) -> Manifest:
    sources: list[Manifest] = [
        {"huggingFace": {}},
        {"huggingFace": {"repository": MODEL, "revision": "main", "tokenSecret": {"name": "hub", "key": "token"}}},
        {"persistentVolumeClaim": {"claimName": "weights", "path": "llama/8b"}},
        {"persistentVolumeClaim": {"claimName": "weights"}},
    ]
    return {"name": MODEL} | _some(
        rng, {"profile": "llama-3.1-8b", "source": rng.choice(sources), "maxContextTokens": 16_384}
    )


def _objectives(rng: random.Random) -> Manifest:
    both = {"timePerOutputToken": {"milliseconds": rng.choice((20, 80.5))}, "timeToFirstToken": {"milliseconds": 2000}}
    kept = rng.choice((("timePerOutputToken",), ("timeToFirstToken",), tuple(both)))
    return {name: both[name] for name in kept}


def _margins() -> Manifest:
    return {
        name: [{"upTo": 500, "weight": 3}, {"upTo": 2000, "weight": 0.5}] for name in ("inputTokens", "outputTokens")
    }


def _workload(rng: random.Random) -> Manifest:
    entries = [
        {
            "inputTokens": rng.randint(1, 8000),
            "outputTokens": rng.randint(1, 2000),
            "weight": rng.choice((1, 0.25, 700)),
        }
        for _ in range(rng.randint(1, 5))
    ]
    sizes: list[Manifest] = [
        {"preset": rng.choice(("azure-conversation-2023", "azure-code-2023", "mooncake-conversation-2024"))},
        {"histogram": entries},
        {"traceConfigMap": {"name": "trace", "key": "requests.csv"}},
        {"marginals": _margins() | _some(rng, {"meanInputTokens": 700, "requests": 5000, "prior": "azure-code-2023"})},
    ]
    return {"rate": rng.choice((0.5, 4, 32)), "sizes": rng.choice(sizes)} | _some(
        rng, {"interarrivalCV": rng.choice((0, 1, 2.5))}
    )


def _engine(rng: random.Random) -> Manifest:
    if rng.random() < 0.2:
        template = {
            "spec": {"containers": [{"name": "engine", "image": "example.com/engine:1", "anything": [1, None]}]}
        }
        return {"type": "custom", "podTemplate": template}
    optional: Manifest = {
        "type": rng.choice(("vllm", "sglang")),
        "image": "example.com/vllm:1",
        "args": ["--seed", "1"],
        "env": [
            {"name": "A", "value": ""},
            {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}},
            {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
        "port": rng.choice((80, 8000)),
        "cache": rng.choice(
            ({"emptyDir": {}}, {"emptyDir": {"sizeLimit": "100Gi"}}, {"persistentVolumeClaim": {"claimName": "cache"}})
        ),
        "resources": {"requests": {"cpu": "8", "memory": "32Gi"}, "limits": {"memory": "1.5Ti"}},
    }
    return _some(rng, optional)


def _gpus(rng: random.Random) -> Manifest:
    pools: list[Manifest] = [
        {},
        {"pools": rng.sample(POOLS, rng.randint(1, 4))},
        {"poolSelector": {"matchLabels": {"tier": "cheap", "example.com/team": ""}}},
    ]
    optional = {
        "maxCostPerHour": rng.choice((0.5, 100)),
        "maxSharePerPool": rng.choice((0.25, 1)),
        "spot": _some(rng, {"maxShare": rng.choice((0, 0.5, 1)), "survivableShare": rng.choice((0, 0.8, 1))}),
        "tensorParallel": rng.sample((1, 2, 4, 8, 16), rng.randint(1, 5)),
    }
    return rng.choice(pools) | _some(rng, optional)


def _scaling(rng: random.Random) -> Manifest:
    bounds = [{"name": "l4", "maxReplicas": 3}, {"name": "a100", "minReplicas": 0, "maxReplicas": 0}, {"name": "h100"}]
    optional = {
        "minReplicas": rng.randint(1, 3),
        "maxReplicas": rng.randint(3, 50),
        "headroom": rng.choice((0, 0.25, 0.999)),
        "noWaitShare": rng.choice((0, 0.9, 0.999)),
    }
    return _some(rng, optional | {"pools": bounds})


def _disruption(rng: random.Random) -> Manifest:
    return _some(
        rng, {"drainTimeoutSeconds": 60, "minSavingsPercent": rng.choice((0, 2.5, 100)), "stabilizationSeconds": 0}
    )


@dataclass(frozen=True)
class Mistake:
    """One mistake, put into a valid manifest in place."""

    name: str
    field: str
    make: Callable[[Manifest], None]


def _put(path: str, value: Any) -> Callable[[Manifest], None]:
    def make(manifest: Manifest) -> None:
        *parents, last = path.split(".")
        target = manifest
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = copy.deepcopy(value)

    return make


def _drop(path: str) -> Callable[[Manifest], None]:
    def make(manifest: Manifest) -> None:
        *parents, last = path.split(".")
        target = manifest
        for parent in parents:
            target = target[parent]
        del target[last]

    return make


def _bad(path: str, value: Any, field: str | None = None) -> Mistake:
    return Mistake(f"{path} = {value!r}", path if field is None else field, _put(path, value))


def _missing(path: str) -> Mistake:
    return Mistake(f"{path} missing", path, _drop(path))


_ENTRY = {"inputTokens": 10, "outputTokens": 10, "weight": 1}

SERVICE_MISTAKES: tuple[Mistake, ...] = (
    _missing("spec.model"),
    _missing("spec.model.name"),
    _missing("spec.workload"),
    _missing("spec.workload.rate"),
    _missing("spec.objectives"),
    _missing("spec.workload.sizes"),
    _bad("metadata.name", "1chat", "metadata.name"),
    _bad("metadata.name", "chat.one", "metadata.name"),
    _bad("metadata.name", "a" * 64, "metadata.name"),
    _bad("spec.workload.rate", 0),
    _bad("spec.workload.rate", -4),
    _bad("spec.workload.rate", "4"),
    _bad("spec.workload.rate", True),
    _bad("spec.workload.rate", 10**9),
    _bad("spec.workload.sizes", {}),
    _bad("spec.workload.sizes", {"preset": "azure-code-2023", "histogram": [_ENTRY]}),
    _bad("spec.workload.sizes", {"histogram": []}, "spec.workload.sizes.histogram"),
    _bad("spec.workload.sizes", {"preset": "azure-code-2023", "marginals": _margins()}),
    _bad(
        "spec.workload.sizes",
        {"marginals": _margins() | {"inputTokens": []}},
        "spec.workload.sizes.marginals.inputTokens",
    ),
    _bad(
        "spec.workload.sizes",
        {"marginals": _margins() | {"outputTokens": [{"upTo": 0, "weight": 1}]}},
        "spec.workload.sizes.marginals.outputTokens[0].upTo",
    ),
    _bad(
        "spec.workload.sizes",
        {"histogram": [_ENTRY, _ENTRY | {"weight": 0}]},
        "spec.workload.sizes.histogram[1].weight",
    ),
    _bad(
        "spec.workload.sizes",
        {"histogram": [_ENTRY | {"inputTokens": 1.5}]},
        "spec.workload.sizes.histogram[0].inputTokens",
    ),
    _bad("spec.workload.sizes", {"histogram": [_ENTRY] * 257}, "spec.workload.sizes.histogram"),
    _bad("spec.objectives", {}),
    _bad(
        "spec.objectives",
        {"timePerOutputToken": {"milliseconds": 0}},
        "spec.objectives.timePerOutputToken.milliseconds",
    ),
    _bad("spec.objectives", {"timePerOutputToken": {}}, "spec.objectives.timePerOutputToken.milliseconds"),
    _bad("spec.objectives", {"timePerOutputToken": 80}, "spec.objectives.timePerOutputToken"),
    _bad("spec.objectives.timeBetweenTokens", {"milliseconds": 50}),
    _bad("spec.engine", {"type": "tgi"}, "spec.engine.type"),
    _bad("spec.engine", {"type": "custom"}),
    _bad("spec.engine", {"type": "vllm", "podTemplate": {}}),
    _bad("spec.engine", {"type": "custom", "podTemplate": {}, "image": "example.com/x"}),
    _bad("spec.engine", {"port": 0}, "spec.engine.port"),
    _bad("spec.engine", {"port": 65_536}, "spec.engine.port"),
    _bad("spec.engine", {"port": "http"}, "spec.engine.port"),
    _bad("spec.engine", {"args": "--seed 1"}, "spec.engine.args"),
    _bad("spec.engine", {"args": [1]}, "spec.engine.args[0]"),
    _bad("spec.engine", {"env": [{"name": "A"}, {"name": "A"}]}, "spec.engine.env"),
    _bad("spec.engine", {"env": [{"name": "1A"}]}, "spec.engine.env[0].name"),
    _bad(
        "spec.engine",
        {"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]},
        "spec.engine.env[0]",
    ),
    _bad("spec.engine", {"cache": {}}, "spec.engine.cache"),
    _bad("spec.engine", {"resources": {"limits": {"cpu": 4}}}, "spec.engine.resources.limits.cpu"),
    _bad("spec.engine", {"resources": {"limits": {"memory": "32 GB"}}}, "spec.engine.resources.limits.memory"),
    _bad("spec.model.source", {}),
    _bad(
        "spec.model.source",
        {"persistentVolumeClaim": {"claimName": "x", "path": "/abs"}},
        "spec.model.source.persistentVolumeClaim.path",
    ),
    _bad(
        "spec.model.source",
        {"persistentVolumeClaim": {"claimName": "x", "path": "a/../b"}},
        "spec.model.source.persistentVolumeClaim.path",
    ),
    _bad(
        "spec.model.source",
        {"persistentVolumeClaim": {"claimName": "X"}},
        "spec.model.source.persistentVolumeClaim.claimName",
    ),
    _bad("spec.model.maxContextTokens", 0),
    _bad("spec.model.max_context_tokens", 4096),
    _bad("spec.model.name", ""),
    _bad("spec.model.name", "-x"),
    _bad("spec.gpus", {"pools": ["l4"], "poolSelector": {"matchLabels": {"a": "b"}}}),
    _bad("spec.gpus", {"pools": []}, "spec.gpus.pools"),
    _bad("spec.gpus", {"pools": ["l4", "l4"]}, "spec.gpus.pools"),
    _bad("spec.gpus", {"pools": ["L4"]}, "spec.gpus.pools[0]"),
    _bad("spec.gpus", {"poolSelector": {"matchLabels": {"a b": "c"}}}, "spec.gpus.poolSelector.matchLabels"),
    _bad("spec.gpus", {"poolSelector": {"matchLabels": {}}}, "spec.gpus.poolSelector.matchLabels"),
    _bad("spec.gpus", {"maxCostPerHour": 0}, "spec.gpus.maxCostPerHour"),
    _bad("spec.gpus", {"tensorParallel": [3]}, "spec.gpus.tensorParallel[0]"),
    _bad("spec.gpus", {"tensorParallel": [1, 1]}, "spec.gpus.tensorParallel"),
    _bad("spec.gpus", {"tensorParallel": [True]}, "spec.gpus.tensorParallel[0]"),
    _bad("spec.scaling", {"minReplicas": 5, "maxReplicas": 2}),
    _bad("spec.scaling", {"minReplicas": 0}, "spec.scaling.minReplicas"),
    _bad("spec.scaling", {"headroom": 1}, "spec.scaling.headroom"),
    _bad("spec.scaling", {"headroom": -0.1}, "spec.scaling.headroom"),
    _bad("spec.scaling", {"pools": [{"name": "l4"}, {"name": "l4"}]}, "spec.scaling.pools"),
    _bad("spec.scaling", {"pools": [{"name": "l4", "minReplicas": 2, "maxReplicas": 1}]}, "spec.scaling.pools[0]"),
    _bad("spec.disruption", {"drainTimeoutSeconds": 0}, "spec.disruption.drainTimeoutSeconds"),
    _bad("spec.disruption", {"minSavingsPercent": 101}, "spec.disruption.minSavingsPercent"),
    _bad("spec.scaling", {"noWaitShare": 1}, "spec.scaling.noWaitShare"),
    _bad("spec.scaling", {"noWaitShare": "0.9"}, "spec.scaling.noWaitShare"),
    _bad("spec.workload.interarrivalCV", -1),
    _bad("spec.workload.interarrivalCV", 1000),
    _bad("spec.gpus", {"maxSharePerPool": 0}, "spec.gpus.maxSharePerPool"),
    _bad("spec.gpus", {"maxSharePerPool": 1.5}, "spec.gpus.maxSharePerPool"),
    _bad("spec.gpus", {"spot": {"maxShare": -0.1}}, "spec.gpus.spot.maxShare"),
    _bad("spec.gpus", {"spot": {"maxShare": 50}}, "spec.gpus.spot.maxShare"),
    _bad("spec.gpus", {"spot": {"survivableShare": 1.1}}, "spec.gpus.spot.survivableShare"),
    _bad("spec.gpus", {"spot": 0.5}, "spec.gpus.spot"),
    _bad("spec.priority", 1.5),
    _bad("spec.priority", 10**12),
    _bad("spec.priority", "high"),
    _bad("spec.mode", "auto"),
    _bad("spec.replicas", 3),
)

_POOL: Manifest = {"gpu": {"type": "L4"}, "gpusPerNode": 8, "pricePerGPUHour": 1}

POOL_MISTAKES: tuple[Mistake, ...] = (
    _missing("spec.gpu"),
    _missing("spec.gpu.type"),
    _missing("spec.gpusPerNode"),
    _missing("spec.pricePerGPUHour"),
    _bad("metadata.name", "pool.one", "metadata.name"),
    _bad("spec.gpu", {"type": "Own", "memoryGiB": 24}),
    _bad("spec.gpu", {"type": "Own", "memoryGiB": 0, "memoryBandwidthGBps": 1, "teraflops": 1}, "spec.gpu.memoryGiB"),
    _bad("spec.gpu", {"type": "RTX 4090"}, "spec.gpu.type"),
    _bad("spec.gpu", "L4"),
    _bad("spec.gpusPerNode", 0),
    _bad("spec.gpusPerNode", 2.5),
    _bad("spec.pricePerGPUHour", -1),
    _bad("spec.pricePerGPUHour", "0.80"),
    _bad("spec.pricePerGpuHour", 1),
    _bad("spec.resourceName", "gpu"),
    _bad("spec.limit", -1),
    _bad("spec.nodeSelector", {"a b": "c"}),
    _bad("spec.nodeSelector", {"a": "b c"}, "spec.nodeSelector.a"),
    _bad("spec.nodeSelector", {"a": 1}, "spec.nodeSelector.a"),
    _bad("spec.tolerations", [{"operator": "Exists", "key": "a", "value": "b"}], "spec.tolerations[0]"),
    _bad("spec.tolerations", [{"value": "b"}], "spec.tolerations[0]"),
    _bad("spec.tolerations", [{"key": "a", "operator": "In"}], "spec.tolerations[0].operator"),
    _bad("spec.tolerations", [{"key": "a", "tolerationSeconds": 3}], "spec.tolerations[0]"),
    _bad("spec.capacityType", "spot"),
    _bad("spec.capacityType", "Preemptible"),
    _bad("spec", _POOL | {"interruptionsPerHour": 0.1}, "spec.interruptionsPerHour"),
    _bad(
        "spec",
        _POOL | {"capacityType": "Reserved", "interruptionsPerHour": 1},
        "spec.interruptionsPerHour",
    ),
    _bad("spec", _POOL | {"capacityType": "Spot", "interruptionsPerHour": -1}, "spec.interruptionsPerHour"),
    _bad("spec", _POOL | {"capacityType": "Spot", "interruptionsPerHour": 3601}, "spec.interruptionsPerHour"),
    _bad("spec.exhaustion", {"pendingDeadlineSeconds": 0}, "spec.exhaustion.pendingDeadlineSeconds"),
)

_MEASUREMENT: Manifest = {"gpu": "L4", "tensorParallel": 1, "points": [{}]}

PROFILE_MISTAKES: tuple[Mistake, ...] = (
    _missing("spec.model"),
    _missing("spec.architecture"),
    _missing("spec.architecture.parameters"),
    _missing("spec.architecture.maxContextTokens"),
    _bad("spec.architecture.layers", 0),
    _bad("spec.architecture.parameters", "8B"),
    _bad("spec.architecture.dataType", "fp32"),
    _bad("spec.architecture.keyValueHeads", 5, "spec.architecture"),
    _bad("spec.architecture.activeParameters", 10**13, "spec.architecture"),
    _bad("spec.architecture.windowLayers", 33, "spec.architecture"),
    _bad("spec.architecture.constantLayers", 32, "spec.architecture"),
    _bad("spec.architecture.bytesPerParameter", 9),
    _bad("spec.measurements", [_MEASUREMENT | {"points": []}], "spec.measurements[0].points"),
    _bad("spec.measurements", [_MEASUREMENT | {"tensorParallel": 3}], "spec.measurements[0].tensorParallel"),
    _bad("spec.measurements", [_MEASUREMENT | {"points": [{}]}], "spec.measurements[0].points[0].inputTokens"),
)


def _replace_somewhere(rng: random.Random, manifest: Manifest) -> None:
    """Replace, add or remove a value at a random place of the spec."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                places.append((value, key))
                walk(inner)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                places.append((value, index))
                walk(inner)

    walk(manifest["spec"])
    container, key = rng.choice(places)
    action = rng.random()
    if action < 0.15:
        del container[key]
    elif action < 0.3 and isinstance(container, dict):
        container[rng.choice(("extra", "name", "minReplicas", "value", "type"))] = copy.deepcopy(rng.choice(ODD_VALUES))
    else:
        container[key] = copy.deepcopy(rng.choice(ODD_VALUES))
