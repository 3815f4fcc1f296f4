"""How many requests per second one replica sustains within the objectives, and why not where it cannot.

The user's own measurements come first, the roofline where there are none.
"""

from __future__ import annotations

from dataclasses import dataclass

FITS = ""
MEMORY_TOO_SMALL = "MemoryTooSmall"
CONTEXT_TOO_LONG = "ContextTooLong"
OBJECTIVE_NOT_MET = "ObjectiveNotMet"
HEADS_NOT_DIVISIBLE = "HeadsNotDivisible"

MEASURED = "measured"
MEASURED_SCALED = "measured, scaled"
ROOFLINE = "roofline"


@dataclass(frozen=True)
class Capacity:
    """What one replica can do with requests of one size.

    Args:
        requests_per_second: The largest rate within the objectives; 0 where there is none.
        reason: Why there is none, as a word to search for: `MemoryTooSmall`, `ContextTooLong`, `ObjectiveNotMet`,
            `HeadsNotDivisible`; empty where there is one.
        detail: The reason as a sentence with figures; empty where there is none to give.
        source: `measured`, `measured, scaled` or `roofline`.
    """

    requests_per_second: float
    reason: str
    detail: str
    source: str
