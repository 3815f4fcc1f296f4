"""Variants that need not be looked at: whatever they do, another one of the problem does as well for no more money.

Leaving them out does not change the cost of the optimum; it makes integer programmes small. v may go where some w ≠ v
has:

- *same pool, smaller replicas*: m = g[v] / g[w] replicas of w serve every bucket that one of v serves, ℓ[b][w] ≤
  m·ℓ[b][v]. They hold the same GPUs at the same price, and smaller groups fit on nodes wherever a larger one did.
  The count of replicas grows, so neither the service nor the pool may have an upper bound on it, nor any pool or spot
  a share of it.
- *another pool, no stock to share*: c[w] ≤ c[v] and ℓ[b][w] ≤ ℓ[b][v] for all b, so that replicas are swapped one for
  one. No limit on stock may concern w, its pool no upper bound, the pool of v no lower bound; w adds no more to the
  bill, and nothing is said of how replicas are spread over pools.

In both, v must not run: what runs costs nothing to keep, and the argument above would forget that.
Of two variants that dominate each other, the first stays. Both compute the same part of requests, and where room is
kept for queueing, the replicas of w hold as many requests and see no burstier ones: usable to as large a share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medley_planner.fleet import Availability
from medley_planner.programme.problem import ServiceProblem, StockLimit
from medley_planner.programme.sparse import Array


def undominated(service: ServiceProblem, stock: Sequence[StockLimit]) -> tuple[int, ...]:
    """Indices of the variants that an optimum may need."""
    scarce = {limit.pool for limit in stock}
    loads = np.array(service.loads, dtype=np.float64).reshape(len(service.loads), len(service.variants))
    kept = list(range(len(service.variants)))
    for v in reversed(range(len(service.variants))):
        if service.running[v] == 0 and any(_dominates(service, w, v, scarce, loads) for w in kept if w != v):
            kept.remove(v)
    return tuple(kept)


def _dominates(service: ServiceProblem, w: int, v: int, scarce: set[str], loads: Array) -> bool:
    if service.variants[w].role is not service.variants[v].role:
        return False
    if service.variants[w].pool == service.variants[v].pool:
        return _as_smaller_replicas(service, w, v, loads)
    return _one_for_one(service, w, v, scarce) and bool((loads[:, w] <= loads[:, v]).all())


def _as_smaller_replicas(service: ServiceProblem, w: int, v: int, loads: Array) -> bool:
    replicas, rest = divmod(service.gpus[v], service.gpus[w])
    if rest or service.replicas_max is not None or _pool_maximum(service, w) is not None:
        return False
    if min(service.availability.spot_max_share, service.availability.pool_max_share) < 1.0:
        return False
    return _queues_as_well(service, w, v, replicas) and bool((loads[:, w] <= replicas * loads[:, v]).all())


def _one_for_one(service: ServiceProblem, w: int, v: int, scarce: set[str]) -> bool:
    if service.variants[w].pool in scarce or _pool_maximum(service, w) is not None or _pool_minimum(service, v) > 0:
        return False
    if service.availability != Availability():
        return False
    cheaper = all(each[w] <= each[v] for each in (service.prices, service.billed, service.switching))
    return cheaper and _queues_as_well(service, w, v, 1)


def _queues_as_well(service: ServiceProblem, w: int, v: int, replicas: int) -> bool:
    """Whether so many replicas of w are usable to as large a share as one of v."""
    if not service.queues:
        return True
    ours, theirs = service.queues[w], service.queues[v]
    return replicas * ours.places >= theirs.places and ours.burstiness <= theirs.burstiness


def _pool_maximum(service: ServiceProblem, v: int) -> int | None:
    pool = service.variants[v].pool
    return next((bounds.maximum for bounds in service.pool_bounds if bounds.pool == pool), None)


def _pool_minimum(service: ServiceProblem, v: int) -> int:
    pool = service.variants[v].pool
    return next((bounds.minimum for bounds in service.pool_bounds if bounds.pool == pool), 0)


def one_variant_suffices(service: ServiceProblem, v: int) -> int | None:
    """Replicas of v that serve everything within all bounds and shares, when v is the only variant; None where none do.

    Without a choice of variants, the least count is the optimum, and no solver is needed.
    """
    if any(load[v] == math.inf for load in service.loads):
        return None
    if service.loads and (service.losses or not all(service.parts)):
        return None
    needed = max(service.fewest(v), service.replicas_min, 0)
    needed = max(needed, _pool_minimum(service, v))
    return needed if service.keeps_rows((needed,)) else None
