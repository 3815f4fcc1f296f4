"""The parts of an object's metadata that Medley reads."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from medley_operator.api.base import ApiModel, Integer, ObjectName


class ObjectMeta(ApiModel):
    """Metadata of an object. Fields that Medley does not read are ignored."""

    model_config = ConfigDict(extra="ignore")

    name: ObjectName
    """The object's name."""
    namespace: str = Field("", max_length=63)
    """The object's namespace; empty for cluster-scoped objects."""
    uid: str = ""
    """Given by the API server; empty in a file."""
    generation: Integer = 0
    """Counts changes of the spec."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations."""
