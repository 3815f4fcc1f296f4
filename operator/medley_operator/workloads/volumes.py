"""Volumes of an engine's pod: weights, the cache of downloads, the user's home, shared memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from medley_operator.api.llmservice import LLMService
from medley_planner.fleet import Parallelism

MODEL_PATH = "/mnt/model"
CACHE_PATH = "/mnt/cache"
HF_HOME = f"{CACHE_PATH}/huggingface"

SHARED_MEMORY_LIMIT = "8Gi"
"""Bound on /dev/shm, through which the processes of one replica pass tensors. Pages count only once they are written,
against the container's memory limit; the container runtime's own 64 MiB stops NCCL."""

JsonObject = dict[str, Any]


@dataclass
class Volumes:
    """Volumes of a pod, and where its engine mounts them; filled in order."""

    volumes: list[JsonObject] = field(default_factory=list)
    mounts: list[JsonObject] = field(default_factory=list)

    def add(self, name: str, path: str, source: JsonObject, *, read_only: bool = False) -> None:
        """Adds a volume that the engine sees at `path`."""
        self.volumes.append({"name": name, **source})
        self.mounts.append({"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})})


def engine_volumes(service: LLMService, *, parallelism: Parallelism, home: str) -> Volumes:
    """The volumes of a pod of the service.

    Args:
        service: The service.
        parallelism: How the replica's GPUs share the work; more than one exchange through shared memory.
        home: Where the engine's user has its home; empty where the image has one.
    """
    made = Volumes()
    weights = service.spec.model.effective_source.persistent_volume_claim
    if weights is not None:
        claim = {"claimName": weights.claim_name, "readOnly": True}
        made.add("model", MODEL_PATH, {"persistentVolumeClaim": claim}, read_only=True)
    else:
        made.add("cache", CACHE_PATH, _cache(service))
    if home:
        made.add("home", home, {"emptyDir": {}})
    if parallelism.gpus > 1:
        made.add("shared-memory", "/dev/shm", _shared_memory())  # noqa: S108
    return made


def model_location(service: LLMService) -> str:
    """What the engine loads: the mounted folder, or the repository on the hub."""
    source = service.spec.model.effective_source
    if source.persistent_volume_claim is not None:
        return "/".join(filter(None, (MODEL_PATH, source.persistent_volume_claim.path.strip("/"))))
    repository = source.hugging_face.repository if source.hugging_face is not None else None
    return repository or service.spec.model.name


def _cache(service: LLMService) -> JsonObject:
    cache = service.spec.engine.cache
    if cache is not None and cache.persistent_volume_claim is not None:
        return {"persistentVolumeClaim": {"claimName": cache.persistent_volume_claim.claim_name}}
    limit = cache.empty_dir.size_limit if cache is not None and cache.empty_dir is not None else None
    return {"emptyDir": {} if limit is None else {"sizeLimit": limit}}


def _shared_memory() -> JsonObject:
    return {"emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY_LIMIT}}
