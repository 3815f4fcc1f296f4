"""The Deployment of one variant of a service at one revision of its pod template."""

from __future__ import annotations

from typing import Any

from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.modelprofile import ModelProfile
from medley_operator.workloads import naming
from medley_operator.workloads.custom import custom_template
from medley_operator.workloads.ownership import owner_references
from medley_operator.workloads.pod import engine_template
from medley_operator.workloads.probes import startup_deadline_s
from medley_planner.fleet import Parallelism

JsonObject = dict[str, Any]

_SHORTEST_PROGRESS_DEADLINE_S = 600


def deployment(
    service: LLMService, pool: GPUPool, profile: ModelProfile, *, parallelism: Parallelism, replicas: int
) -> JsonObject:
    """The Deployment that runs `replicas` replicas of `service` on GPUs of `pool`, shared as `parallelism` says.

    Its name ends on a digest of the pod template: another image or argument is another Deployment, to which replicas
    are moved. The number of replicas, the price and the limits of a pool are no part of the template.

    Raises:
        PodTemplateError: A custom engine's pod template cannot be used; names the field.
    """
    template = pod_template(service, pool, profile, parallelism=parallelism)
    labels: dict[str, str] = template["metadata"]["labels"]
    revision = labels[naming.LABEL_REVISION]
    own_labels = {**naming.variant_labels(service.name, pool.name, parallelism), naming.LABEL_REVISION: revision}
    deadline_s = pool.spec.provisioning_seconds + startup_deadline_s(pool)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": naming.deployment_name(service.name, pool.name, parallelism, revision),
            "namespace": service.namespace,
            "labels": own_labels,
            "ownerReferences": owner_references(service),
        },
        "spec": {
            "replicas": replicas,
            # Templates never change, so there is no old ReplicaSet to keep. A `kubectl rollout restart` adds before
            # it removes.
            "revisionHistoryLimit": 0,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "progressDeadlineSeconds": max(_SHORTEST_PROGRESS_DEADLINE_S, deadline_s),
            "selector": {"matchLabels": dict(own_labels)},
            "template": template,
        },
    }


def pod_template(service: LLMService, pool: GPUPool, profile: ModelProfile, *, parallelism: Parallelism) -> JsonObject:
    """The pod template of a variant, with its labels and its revision.

    Raises:
        PodTemplateError: A custom engine's pod template cannot be used; names the field.
    """
    build = custom_template if service.spec.engine.type == "custom" else engine_template
    template = build(service, pool, profile, parallelism=parallelism)
    metadata = template["metadata"]
    labels = {
        **metadata.get("labels", {}),
        **naming.variant_labels(service.name, pool.name, parallelism),
    }
    metadata["labels"] = labels
    metadata["labels"] = {**labels, naming.LABEL_REVISION: naming.revision(template)}
    return template
