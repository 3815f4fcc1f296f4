"""Who owns what Medley makes: the LLMService, so that its deletion takes everything along, operator running or not."""

from __future__ import annotations

from typing import Any

from medley_operator.api.llmservice import LLMService


def owner_references(service: LLMService) -> list[dict[str, Any]]:
    """The owner references of a service's objects; empty for a service from a file, which has no uid.

    `blockOwnerDeletion` is left out: it would need the right to update the finalizers of LLMServices.
    """
    if not service.metadata.uid:
        return []
    return [
        {
            "apiVersion": service.api_version,
            "kind": service.kind,
            "name": service.name,
            "uid": service.metadata.uid,
            "controller": True,
        }
    ]
