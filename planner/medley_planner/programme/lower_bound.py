"""What a service costs at least, without any solver: the fractional bound.

Without stock, caps and bounds, the linear relaxation of the integer programme falls apart into one choice per bucket:
give all of it to the variant with the least c[v]·ℓ[b,v], replicas in fractions. No mix costs less:

    Σ_v c[v]·n[v] ≥ Σ_v c[v]·Σ_b ℓ[b,v]·x[b,v] = Σ_b Σ_v x[b,v]·c[v]·ℓ[b,v] ≥ Σ_b min_v c[v]·ℓ[b,v]

Where replicas compute only one part of a request, a bucket's cheapest way is one variant for all of it, or the cheapest
for its prompt and the cheapest for its output tokens:

    Σ_v x[b,v]·c[v]·ℓ[b,v] ≥ min(min_shared c·ℓ, min_prefill c·ℓ + min_decode c·ℓ)

Whatever else is asked for (shares of spot, survivable losses, room for queueing) only makes mixes dearer.
Small services need whole replicas, so their optimum lies well above it; the integer programme's own bound is then the
sharper one.
"""

from __future__ import annotations

import math

from medley_planner.fleet import Role
from medley_planner.programme.problem import ServiceProblem


def fractional_bound(service: ServiceProblem) -> float:
    """USD per hour that every mix which serves all of the demand costs at least; infinite where none can."""
    cheapest = [_cheapest(service, loads) for loads in service.loads]
    at_least = service.replicas_min * min(service.prices, default=math.inf) if service.replicas_min > 0 else 0.0
    return max(math.fsum(cheapest), at_least)


def _cheapest(service: ServiceProblem, loads: tuple[float, ...]) -> float:
    """What all of a bucket costs at least in fractions of replicas."""
    by_role = {
        role: min(
            (
                price * load
                for price, load, variant in zip(service.prices, loads, service.variants, strict=True)
                if load < math.inf and variant.role is role
            ),
            default=math.inf,
        )
        for role in Role
    }
    return min(by_role[Role.SHARED], by_role[Role.PREFILL] + by_role[Role.DECODE])


def gap(cost: float, lower_bound: float) -> float:
    """(cost − bound) / cost, never negative; 0 where nothing is paid."""
    return max(0.0, (cost - lower_bound) / cost) if cost > 0 else 0.0
