"""What is wrong with an object that the API server accepted: a searchable reason, the field, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

UNKNOWN_POOL = "UnknownPool"
NO_POOL_MATCHES = "NoPoolMatches"
POOL_NOT_ALLOWED = "PoolNotAllowed"
INVALID_POOL = "InvalidPool"
UNKNOWN_GPU_TYPE = "UnknownGPUType"
PROFILE_NOT_FOUND = "ProfileNotFound"
AMBIGUOUS_PROFILE = "AmbiguousProfile"
INVALID_PROFILE = "InvalidProfile"
UNKNOWN_PRESET = "UnknownPreset"
TRACE_NOT_FOUND = "TraceNotFound"
INVALID_TRACE = "InvalidTrace"
INVALID_SIZES = "InvalidSizes"
CONTEXT_TOO_LONG = "ContextTooLong"
TENSOR_PARALLEL_TOO_LARGE = "TensorParallelTooLarge"
RESERVED_ARGUMENT = "ReservedArgument"
BOUNDS_CONTRADICT = "ReplicaBoundsContradict"
SAME_NODES = "SameNodes"

LEAST_LIKENESS = 0.5
"""Names less alike than this (difflib's ratio) are not offered."""

AS_GOOD_AS_THE_BEST = 0.1
"""Names that are less alike than the best one by more than this are not offered beside it."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an object.

    Args:
        reason: One word to search for; the reason of the condition.
        field: Path of the field to change, such as `spec.gpus.pools[1]`.
        message: What is wrong and what would be right, as a sentence for people, without the field.
    """

    reason: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def nearest(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """At most three of the known names that look like `name`, nearest first: by their beginning, then by likeness."""
    folded = {candidate.casefold(): candidate for candidate in sorted(known, reverse=True)}
    wanted = name.casefold()
    longer = [candidate for candidate in sorted(folded) if wanted and candidate.startswith(wanted)]
    likeness = {name: difflib.SequenceMatcher(None, name, wanted).ratio() for name in folded}
    least = max(LEAST_LIKENESS, max(likeness.values(), default=0.0) - AS_GOOD_AS_THE_BEST)
    alike = [name for name in sorted(folded, key=lambda name: (-likeness[name], name)) if likeness[name] >= least]
    return tuple(folded[candidate] for candidate in dict.fromkeys(longer + alike))[:3]


def hint(name: str, known: Iterable[str]) -> str:
    """`; did you mean x or y?`, or what there is where nothing looks alike, to be put after a message."""
    names = sorted(set(known))
    if not names:
        return "; there is none"
    alike = nearest(name, names)
    if alike:
        return f"; did you mean {' or '.join(alike)}?"
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"; there are {shown}"
