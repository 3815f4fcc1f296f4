"""Small phrases for people."""

from __future__ import annotations

from collections.abc import Mapping


def mix_words(replicas: Mapping[str, int]) -> str:
    """Replicas by Deployment as `2×chat-l4-tp1-… + 1×chat-a100-tp1-…`; `nothing` where there are none."""
    return " + ".join(f"{count}×{name}" for name, count in sorted(replicas.items()) if count) or "nothing"
