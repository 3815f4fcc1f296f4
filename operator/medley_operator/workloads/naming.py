"""Names, labels, annotations and the readiness gate: every word that Medley writes on cluster objects, in one place.

The operator finds its objects again by these words alone, so a change here is a migration of every running service.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from medley_planner.fleet import Parallelism

GROUP = "medley.dev"
"""The API group, and the prefix of Medley's own labels and annotations."""

FIELD_OWNER = "medley"
"""The one field manager of server-side apply."""

LABEL_NAME = "app.kubernetes.io/name"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_SERVICE = "medley.dev/service"
LABEL_POOL = "medley.dev/pool"
LABEL_TENSOR_PARALLEL = "medley.dev/tensor-parallel"
LABEL_PIPELINE_PARALLEL = "medley.dev/pipeline-parallel"
"""Left out where it is 1, as the next one: replicas that run keep their labels."""
LABEL_DATA_PARALLEL = "medley.dev/data-parallel"
LABEL_REVISION = "medley.dev/revision"

MANAGED_BY = "medley"
"""The value of `app.kubernetes.io/managed-by`."""

ANNOTATION_DRAINING = "medley.dev/draining"
"""On a pod: the id of the transition that drains it."""

ANNOTATION_DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
"""On a pod: the ReplicaSet controller deletes the pod with the lowest value first; unset is 0."""

GATE_SERVING = "medley.dev/serving"
"""The pod condition type, and readiness gate, that lets a pod be an endpoint."""

ENGINE_CONTAINER = "engine"
"""The container that answers requests, and that gets the GPUs."""

ENGINE_PORT = "http"
"""The name of the engine's port."""

MAX_LABEL_LENGTH = 63
"""Longest label value, and longest DNS label, in characters."""

_DIGEST_CHARACTERS = 10


def deployment_name(service: str, pool: str, parallelism: Parallelism, revision: str) -> str:
    """The name of the Deployment of a service's variant at a revision: a DNS label, unique in the namespace.

    Dots become dashes, because pods take their host names from it; the revision, which covers the labels, keeps such
    names apart.
    """
    sizes = str(parallelism).replace("/", "-")
    return shortened(f"{service}-{pool}-{sizes}-{revision}".replace(".", "-"))


def service_labels(service: str) -> dict[str, str]:
    """The labels of every object of a service."""
    return {LABEL_NAME: shortened(service), LABEL_MANAGED_BY: MANAGED_BY, LABEL_SERVICE: shortened(service)}


def variant_labels(service: str, pool: str, parallelism: Parallelism) -> dict[str, str]:
    """The labels of a variant's Deployments and pods, but for the revision."""
    labels = {
        **service_labels(service),
        LABEL_COMPONENT: ENGINE_CONTAINER,
        LABEL_POOL: shortened(pool),
        LABEL_TENSOR_PARALLEL: str(parallelism.tensor),
    }
    for label, size in ((LABEL_PIPELINE_PARALLEL, parallelism.pipeline), (LABEL_DATA_PARALLEL, parallelism.data)):
        if size > 1:
            labels[label] = str(size)
    return labels


def service_selector(service: str) -> dict[str, str]:
    """The labels by which a service's pods are found."""
    return {LABEL_SERVICE: shortened(service)}


def revision(template: Mapping[str, Any]) -> str:
    """A digest of a pod template: equal for templates that say the same, whatever the order of their keys."""
    canonical = json.dumps(template, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return _digest(canonical)


def shortened(name: str, limit: int = MAX_LABEL_LENGTH) -> str:
    """`name` where it fits in `limit` characters, else its beginning and a digest of all of it.

    Two different names stay different (to 40 bits), and what a DNS label or a label's value must not end on is cut
    off before the digest.
    """
    if len(name) <= limit:
        return name
    head = name[: limit - _DIGEST_CHARACTERS - 1].rstrip("-._")
    return f"{head}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]
