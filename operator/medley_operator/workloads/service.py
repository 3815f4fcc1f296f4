"""The Service in front of all replicas of an LLMService."""

from __future__ import annotations

from typing import Any

from medley_operator.api.llmservice import LLMService
from medley_operator.workloads import naming
from medley_operator.workloads.ownership import owner_references


def service(llm: LLMService) -> dict[str, Any]:
    """The Service, named as the LLMService, that sends requests to every serving replica on whatever GPU.

    Its endpoints are the Ready pods, and a pod is Ready only while its gate is open.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": llm.name,
            "namespace": llm.namespace,
            "labels": naming.service_labels(llm.name),
            "ownerReferences": owner_references(llm),
        },
        "spec": {
            "type": "ClusterIP",
            "selector": naming.service_selector(llm.name),
            "ports": [
                {
                    "name": naming.ENGINE_PORT,
                    "port": llm.spec.engine.port,
                    # By number: a custom pod template need not name its port.
                    "targetPort": llm.spec.engine.port,
                    "protocol": "TCP",
                }
            ],
        },
    }


def endpoint_url(llm: LLMService) -> str:
    """The URL under which clients in the cluster reach the service, without the API's path."""
    return f"http://{llm.name}.{llm.namespace}.svc:{llm.spec.engine.port}"
