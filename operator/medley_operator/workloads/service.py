"""The Service in front of all replicas of an LLMService."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medley_operator.api.llmservice import LLMService


def service(llm: LLMService) -> dict[str, Any]:
    """The Service, named as the LLMService, that sends requests to every serving replica."""
    raise NotImplementedError


def endpoint_url(llm: LLMService) -> str:
    """The URL under which clients in the cluster reach the service."""
    raise NotImplementedError
