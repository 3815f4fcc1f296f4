"""What a service costs at least, without any solver: the fractional bound.

Without stock, caps and bounds, the linear relaxation of the integer programme falls apart into one choice per bucket:
give all of it to the variant with the least c[v]·ℓ[b,v], replicas in fractions. No mix costs less:

    Σ_v c[v]·n[v] ≥ Σ_v c[v]·Σ_b ℓ[b,v]·x[b,v] = Σ_b Σ_v x[b,v]·c[v]·ℓ[b,v] ≥ Σ_b min_v c[v]·ℓ[b,v]

Small services need whole replicas, so their optimum lies well above it; the integer programme's own bound is then the
sharper one.
"""

from __future__ import annotations

import math

from medley_planner.problem import ServiceProblem


def fractional_bound(service: ServiceProblem) -> float:
    """USD per hour that every mix which serves all of the demand costs at least; infinite where none can."""
    cheapest = [
        min(
            (price * load for price, load in zip(service.prices, loads, strict=True) if load < math.inf),
            default=math.inf,
        )
        for loads in service.loads
    ]
    at_least = service.replicas_min * min(service.prices, default=math.inf) if service.replicas_min > 0 else 0.0
    return max(math.fsum(cheapest), at_least)


def gap(cost: float, lower_bound: float) -> float:
    """(cost − bound) / cost, never negative; 0 where nothing is paid."""
    return max(0.0, (cost - lower_bound) / cost) if cost > 0 else 0.0
