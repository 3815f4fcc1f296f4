"""Conditions, by the Kubernetes API conventions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medley_operator.api.base import Integer, StatusModel


class Condition(StatusModel):
    """One aspect of an object's state, by the Kubernetes API conventions."""

    type: str = Field(min_length=1, max_length=316)
    """The aspect, such as Ready or Planned."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds: True, False, or Unknown."""
    reason: str = Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    """Why, as one word to search for."""
    message: str = Field("", max_length=32768)
    """Why, as a sentence for people."""
    last_transition_time: str = Field(max_length=64, json_schema_extra={"format": "date-time"})
    """When `status` last changed."""
    observed_generation: Integer | None = Field(None, ge=0)
    """The generation of the object's spec that this was judged on."""
