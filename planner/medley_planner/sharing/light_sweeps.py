"""Good prices of what services share, before anything is proven, as far as mixes found without any search tell.

What the known mixes cost, less what there is at the prices, is an estimate of the bound from above, by little. Of all
prices tried, those with the highest are kept; next ones are tried between them and the master's dual prices, which are
too high as long as it knows few mixes. While it knows none that fit together, its dual prices are ceilings; then every
other service is searched at higher prices of what is wanted too much, which gives it more mixes to choose from.
"""

from __future__ import annotations

import numpy as np

from medley_planner.programme.sparse import Array
from medley_planner.sharing.master import Relaxed
from medley_planner.sharing.pricing import Pricing

_SWEEPS = 3
_HALFWAY, _FURTHEST = 0.5, 2.0
_AT_CEILING, _RAISED, _FIRST_RAISE, _MOST_RAISES = 0.1, 2.0, 0.002, 4


def light_sweeps(pricing: Pricing, prices: Array) -> Array:
    """The best prices tried, USD per hour and unit by shared limit; the mixes found on the way are in `pricing`.

    Args:
        pricing: The services.
        prices: To start from.
    """
    best, tried = prices, [prices]
    for _ in range(_SWEEPS):
        if not pricing.price(pricing.distinct, prices, 0):
            return prices
        best = tried[int(np.argmax(pricing.estimates(tried)))]
        relaxed = pricing.relaxed()
        if not relaxed.within:
            relaxed = _widened(pricing, prices, relaxed)
        duals = np.minimum(relaxed.prices, _FURTHEST * best + _FIRST_RAISE * pricing.ceilings)
        prices = best + _HALFWAY * (duals - best)
        tried.append(prices)
    return best


def _widened(pricing: Pricing, prices: Array, relaxed: Relaxed) -> Relaxed:
    """The master with more mixes, until they fit together."""
    for attempt in range(_MOST_RAISES):
        over = relaxed.prices >= _AT_CEILING * pricing.ceilings
        prices = np.where(over, np.maximum(_RAISED * prices, _FIRST_RAISE * pricing.ceilings), prices)
        pricing.search(pricing.distinct[attempt % 2 :: 2] or pricing.distinct, prices, 0)
        relaxed = pricing.relaxed()
        if relaxed.within:
            break
    return relaxed
