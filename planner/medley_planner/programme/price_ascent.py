"""A cut that some numbers of replicas break, found without a solver: prices of replicas' time, raised one at a time.

By `serving.py`, replicas with usable loads U cannot serve where for some prices y ≥ 0

    D(y) = Σ_b min_v y[v]·ℓ[b,v] − Σ_v y[v]·U[v] > 0

D is concave, and along one price it is a broken line: bucket b is served by v while y[v] < m[b]/ℓ[b,v], m[b] being what
it costs with the others, so that its slope is Σ ℓ[b,v] over these buckets less U[v]. It is highest where that sum falls
to U[v]. Setting each price to that in turn only ever raises D. Where it stops, another direction may still lead
upwards: a cut found is proof that replicas cannot serve, none found is proof of nothing.

Prices of variants without replicas stay as they are: from what replicas cost, the cut is near to the objective.
"""

from __future__ import annotations

import numpy as np

from medley_planner.programme.sparse import Array

_PASSES = 2
_UNUSED = 1e-9


def raised_prices(loads: Array, usable: Array, near: Array) -> Array:
    """Prices y with a higher D(y) than those to start from, (variants,).

    Args:
        loads: ℓ, (variants, buckets), a huge number where a variant cannot serve; at least one bucket.
        usable: U, (variants,).
        near: Prices to start from, all positive, (variants,).
    """
    prices = near.copy()
    costs = loads * prices[:, None]
    used = np.flatnonzero(usable > _UNUSED)
    by_others = np.delete(costs, used, axis=0).min(axis=0, initial=np.inf)
    costs = costs[used]
    for _ in range(_PASSES if len(used) > 1 else 1):
        for place, v in enumerate(used.tolist()):
            costs[place] = by_others
            served_below = costs.min(axis=0) / loads[v]
            order = np.argsort(-served_below, kind="stable")
            taken = np.cumsum(loads[v][order])
            last = min(int(np.searchsorted(taken, usable[v])), len(order) - 1)
            prices[v] = served_below[order[last]]
            costs[place] = prices[v] * loads[v]
    return prices
