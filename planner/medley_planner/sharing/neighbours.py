"""Mixes near a mix: a few replicas fewer of one or two variants, a few more of another.

Whether one of them can serve is first asked of the cuts that are known, all at once; only what passes is looked at
closely.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

Moves = npt.NDArray[np.float64]

_FEWER, _MORE = 2, 3


@functools.lru_cache(maxsize=64)
def moves(variants: int) -> Moves:
    """Changes to the numbers of replicas of so many variants, all whole, one in a row."""
    found = []
    ones = np.eye(variants)
    for v in range(variants):
        for fewer in range(1, _FEWER + 1):
            found.append(-fewer * ones[v])
            for w in range(variants):
                if w != v:
                    found += [more * ones[w] - fewer * ones[v] for more in range(1, _MORE + 1)]
        for u in range(v + 1, variants):
            for w in range(variants):
                if w not in (u, v):
                    found += [more * ones[w] - ones[u] - ones[v] for more in (1, 2)]
                    found += [ones[u] + ones[v] - fewer * ones[w] for fewer in (1, 2)]
    table = np.array(found).reshape(-1, variants)
    table.setflags(write=False)
    return table
