"""The next prices of what services share: from the best ones towards the dual prices of the master programme.

The master's duals are too high as long as it knows few mixes, so steps are short, and none goes far above the best
prices. While it knows no mixes that fit together, its duals are ceilings and say nothing: then every other service is
searched at higher prices of what is wanted too much, which gives it more mixes to choose from, and the step is shorter.
"""

from __future__ import annotations

import numpy as np

from medley_planner.programme.sparse import Array
from medley_planner.sharing.master import Relaxed
from medley_planner.sharing.pricing import Pricing

_STEP, _SHORT_STEP, _FURTHEST = 0.5, 0.2, 2.0
_AT_CEILING, _RAISED, _FIRST_RAISE, _MOST_RAISES = 0.1, 2.0, 0.002, 12


def step(pricing: Pricing, prices: Array) -> tuple[Relaxed, Array]:
    """The relaxation of the master, and the next prices to try, USD per hour and unit by shared limit.

    Args:
        pricing: The services; searched at more prices where the master knows no mixes that fit together.
        prices: Those at which they were priced last.
    """
    relaxed, best = pricing.relaxed(), pricing.prices
    length, furthest = _STEP, _FURTHEST * best + _FIRST_RAISE * pricing.ceilings
    if not relaxed.within:
        relaxed, raised = _widened(pricing, prices, relaxed)
        length, furthest = _SHORT_STEP, np.maximum(furthest, raised)
    return relaxed, best + length * (np.minimum(relaxed.prices, furthest) - best)


def _widened(pricing: Pricing, prices: Array, relaxed: Relaxed) -> tuple[Relaxed, Array]:
    """The master with more mixes, until they fit together, and the prices at which the last ones were found."""
    for attempt in range(_MOST_RAISES):
        over = relaxed.prices >= _AT_CEILING * pricing.ceilings
        prices = np.where(over, np.maximum(_RAISED * prices, _FIRST_RAISE * pricing.ceilings), prices)
        pricing.search(pricing.distinct[attempt % 2 :: 2] or pricing.distinct, prices, 0)
        relaxed = pricing.relaxed()
        if relaxed.within:
            break
    return relaxed, prices
