"""Figures and mixes as people read them, the same in every sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from medley_planner.fleet import Variant
from medley_planner.result import MixEntry


def mix_text(mix: Iterable[MixEntry]) -> str:
    """`2×l4 + 1×a100/tp2`; a single GPU per replica goes without saying, and no replicas are `nothing`."""
    return counts_text((entry.variant, entry.replicas) for entry in mix)


def counts_text(counts: Iterable[tuple[Variant, int]]) -> str:
    """The same for replicas by variant."""
    return " + ".join(f"{replicas}×{variant_text(variant)}" for variant, replicas in counts) or "nothing"


def variant_text(variant: Variant) -> str:
    """`l4`, or `a100/tp2` where a replica takes several GPUs."""
    return variant.pool if variant == Variant(variant.pool, 1) else str(variant)


def money(usd_per_hour: float) -> str:
    """`5.07 $/h`; prices below a cent keep their digits."""
    cents = abs(usd_per_hour) >= 0.005 or usd_per_hour == 0
    return f"{usd_per_hour:.2f} $/h" if cents else f"{usd_per_hour:.2g} $/h"


def percent(share: float) -> str:
    """`61.3 %`."""
    return f"{100 * share:.1f} %"


def rate(requests_per_second: float) -> str:
    """`4 req/s`, four significant digits at most."""
    return f"{requests_per_second:.4g} req/s"


def plural(count: int, noun: str) -> str:
    """`1 GPU`, `2 GPUs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
