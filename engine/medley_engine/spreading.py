"""Which data-parallel group computes a sequence. Pure.

All groups compute each step together, so a step takes as long as its slowest group, and where there are fewer
processors than groups, as long as all their work takes on these. A group's tokens after the prompt are computed three
at a time for the price of one (:data:`medley_engine.scheduler.DECODE_ROWS`), so there a sequence costs little in a
group that decodes already, and much in one that would otherwise compute nothing: as many groups as can compute abreast,
those first that have any, are filled to three sequences each before the next ones get one. Where every group has its
processor, the emptiest gets the sequence.
"""

from __future__ import annotations

from collections.abc import Mapping

from medley_engine.scheduler import DECODE_ROWS


def group_for(counts: Mapping[int, int], abreast: int) -> int:
    """The group that gets the next sequence, of ``counts`` (sequences by group) of which ``abreast`` can compute at the
    same time.
    """
    order = {group: place for place, group in enumerate(sorted(counts, key=lambda g: (not counts[g], g)))}
    return min(counts, key=lambda g: (counts[g] // DECODE_ROWS, order[g] // abreast, counts[g], g))
