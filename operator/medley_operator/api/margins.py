"""Request sizes by their margins: how long inputs are and how long outputs are, each as a histogram of its own."""

from __future__ import annotations

from pydantic import Field

from medley_operator.api.base import ATOMIC_LIST, ApiModel, DnsLabel, Integer, Number
from medley_operator.api.modelprofile import MAX_TOKENS


class MarginCell(ApiModel):
    """Requests of a range of sizes."""

    up_to: Integer = Field(ge=1, le=MAX_TOKENS)
    """Largest size of the cell, in tokens; it begins above that of the cell before."""
    weight: Number = Field(ge=0, le=1e15)
    """Requests in the cell, in any unit."""


class Margins(ApiModel):
    """Input and output sizes measured apart, as Prometheus has them, and how they depend on each other."""

    input_tokens: tuple[MarginCell, ...] = Field(min_length=1, max_length=64, json_schema_extra=ATOMIC_LIST)
    """Input sizes, by rising upTo."""
    output_tokens: tuple[MarginCell, ...] = Field(min_length=1, max_length=64, json_schema_extra=ATOMIC_LIST)
    """Output sizes of the same requests, by rising upTo."""
    mean_input_tokens: Number | None = Field(None, gt=0, le=MAX_TOKENS)
    """Mean input size, where it is known. Default: what the prior makes of the cells."""
    mean_output_tokens: Number | None = Field(None, gt=0, le=MAX_TOKENS)
    """Mean output size, where it is known. Default: what the prior makes of the cells."""
    requests: Integer | None = Field(None, ge=0, le=1_000_000_000_000)
    """Requests that were measured; with fewer than 200 the prior counts for the rest. Default: enough."""
    prior: DnsLabel = "azure-conversation-2023"
    """Preset that says how inputs and outputs depend on each other."""
