"""The PodDisruptionBudget of an LLMService."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medley_operator.api.llmservice import LLMService


def pod_disruption_budget(llm: LLMService) -> dict[str, Any]:
    """The budget that lets others (node drains, upgrades) evict one replica of the service at a time."""
    raise NotImplementedError
