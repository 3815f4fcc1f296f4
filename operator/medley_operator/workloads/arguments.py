"""Command-line arguments of engines: those that Medley sets, and how a user's are joined to them."""

from __future__ import annotations


def reserved_arguments(engine: str) -> frozenset[str]:
    """The arguments that Medley alone sets for an engine (`vllm`, `sglang`); a user who sets one is told so, with the field that does it."""
    raise NotImplementedError
