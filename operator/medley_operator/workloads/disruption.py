"""The PodDisruptionBudget of an LLMService."""

from __future__ import annotations

from typing import Any

from medley_operator.api.llmservice import LLMService
from medley_operator.workloads import naming
from medley_operator.workloads.ownership import owner_references


def pod_disruption_budget(llm: LLMService) -> dict[str, Any]:
    """The budget that lets others (node drains, upgrades) evict one replica of the service at a time.

    Pods that do not serve (they load, or drain) may always be evicted, so that they hold up no node drain; an evicted
    pod still finishes its requests within its grace period.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": llm.name,
            "namespace": llm.namespace,
            "labels": naming.service_labels(llm.name),
            "ownerReferences": owner_references(llm),
        },
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": naming.service_selector(llm.name)},
        },
    }
