"""From replica counts to a service's plan: entries, prices, the split of requests and the sentence that sums it up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from medley_planner.capacities.variants import Candidates
from medley_planner.fleet import CapacityType, Pool, Service, Variant
from medley_planner.infeasible.diagnosis import Trouble
from medley_planner.programme.figures import interruption_usd_per_hour
from medley_planner.programme.lower_bound import gap
from medley_planner.programme.memo import Memo
from medley_planner.programme.problem import ServiceProblem
from medley_planner.programme.split import Split, split, split_after_loss
from medley_planner.result import BucketShare, Fallback, MixEntry, Outcome, ServicePlan
from medley_planner.wording import mix_text, money, percent, rate


@dataclass(frozen=True)
class Prepared:
    """A service on its way through the plan: itself, what it may run on, and both in figures."""

    service: Service
    candidates: Candidates
    problem: ServiceProblem


@dataclass(frozen=True)
class Shortage:
    """Why a mix does not serve everything: the word for it, and what is missing, as the rest of a sentence."""

    outcome: Outcome
    message: str


def planned(
    prepared: Prepared, counts: Sequence[int], lower_bound: float, shortage: Shortage | None, memo: Memo
) -> ServicePlan:
    """The plan of a service whose mix was decided.

    Args:
        prepared: The service.
        counts: n[v].
        lower_bound: Proven bound on what serving everything costs, USD per hour; infinite or negative where there is
            none.
        shortage: What is missing; None where nothing is.
        memo: Keeps splits.
    """
    parts = split(prepared.problem, counts, memo)
    return replace(
        from_split(prepared, counts, parts, lower_bound, shortage), fallbacks=_fallbacks(prepared, counts, memo)
    )


def from_split(
    prepared: Prepared, counts: Sequence[int], parts: Split, lower_bound: float, shortage: Shortage | None
) -> ServicePlan:
    """The plan of a service whose mix and split were decided."""
    service = prepared.service
    entries = tuple(_entry(prepared, v, count, parts.loads[v]) for v, count in enumerate(counts) if count > 0)
    cost = math.fsum(entry.cost_usd_per_hour for entry in entries)
    risk = math.fsum(entry.risk_usd_per_hour for entry in entries)
    bound = lower_bound if shortage is not None else max(0.0, min(lower_bound, cost + risk))
    short = shortage is not None
    served = percent(parts.served_share) + " of " if short else ""
    sentence = f"{mix_text(entries)} serves {served}{rate(service.rate_rps)} for {money(cost)}"
    if short and not entries:
        sentence = f"none of {rate(service.rate_rps)} is served"
    return ServicePlan(
        name=service.name,
        outcome=Outcome.PLANNED if shortage is None else shortage.outcome,
        reason=sentence if shortage is None else f"{sentence}; {shortage.message}",
        mix=entries,
        cost_usd_per_hour=cost,
        lower_bound_usd_per_hour=bound if math.isfinite(bound) and bound > 0 else 0.0,
        gap=0.0 if short else gap(cost + risk, bound),
        served_share=parts.served_share,
        shares=_shares(prepared, parts),
        reserved_usd_per_hour=math.fsum(entry.reserved_usd_per_hour for entry in entries),
        risk_usd_per_hour=risk,
        rejected=prepared.candidates.rejected,
        capacity_source=tuple(
            (candidate.variant, candidate.source)
            for candidate, count in zip(prepared.candidates.usable, counts, strict=True)
            if count > 0
        ),
    )


def kept(
    prepared: Prepared, trouble: Trouble, pools: Mapping[str, Pool], lower_bound: float, memo: Memo
) -> ServicePlan:
    """The plan of a service that keeps what runs: the same mix, with what it serves and costs."""
    service, problem = prepared.service, prepared.problem
    running = {variant: count for variant, count in sorted(service.running.items()) if count > 0}
    counts = tuple(running.get(variant, 0) for variant in problem.variants)
    parts = split(problem, counts, memo)
    loads = dict(zip(problem.variants, parts.loads, strict=True))
    entries = tuple(
        _held_entry(service, variant, count, pools.get(variant.pool), loads.get(variant, 0.0))
        for variant, count in running.items()
    )
    cost = math.fsum(entry.cost_usd_per_hour for entry in entries)
    risk = math.fsum(entry.risk_usd_per_hour for entry in entries)
    bound = lower_bound if math.isfinite(lower_bound) and lower_bound > 0 else 0.0
    return ServicePlan(
        name=service.name,
        outcome=trouble.outcome,
        reason=trouble.message or f"Keeps {mix_text(entries)} for {money(cost)}",
        mix=entries,
        cost_usd_per_hour=cost,
        lower_bound_usd_per_hour=bound,
        gap=gap(cost + risk, bound) if bound and parts.serves_all else 0.0,
        served_share=parts.served_share,
        shares=_shares(prepared, parts),
        binding=trouble.binding,
        rejected=prepared.candidates.rejected,
        capacity_source=tuple(
            (candidate.variant, candidate.source)
            for candidate in prepared.candidates.usable
            if candidate.variant in running
        ),
        nearest_feasible_cap_usd_per_hour=trouble.nearest_cap_usd_per_hour,
        nearest_feasible_share=trouble.nearest_share,
        reserved_usd_per_hour=math.fsum(entry.reserved_usd_per_hour for entry in entries),
        risk_usd_per_hour=risk,
        fallbacks=_fallbacks(prepared, counts, memo),
    )


def _entry(prepared: Prepared, v: int, count: int, load: float) -> MixEntry:
    problem, candidate = prepared.problem, prepared.candidates.usable[v]
    return MixEntry(
        variant=problem.variants[v],
        replicas=count,
        gpus=count * problem.gpus[v],
        cost_usd_per_hour=count * problem.billed[v],
        utilisation=min(load / count, 1.0) * (1.0 - prepared.service.headroom),
        reserved_usd_per_hour=count * (candidate.price_usd_per_hour - problem.billed[v]),
        risk_usd_per_hour=count * (problem.prices[v] - problem.billed[v]),
    )


def _held_entry(service: Service, variant: Variant, count: int, pool: Pool | None, load: float) -> MixEntry:
    """A pool that is gone has no price."""
    gpus = count * variant.gpus
    price = gpus * pool.price_usd_per_gpu_hour if pool else 0.0
    reserved = price if pool and pool.capacity_type is CapacityType.RESERVED else 0.0
    return MixEntry(
        variant=variant,
        replicas=count,
        gpus=gpus,
        cost_usd_per_hour=price - reserved,
        utilisation=min(load / count, 1.0) * (1.0 - service.headroom),
        reserved_usd_per_hour=reserved,
        risk_usd_per_hour=interruption_usd_per_hour(price, pool) if pool else 0.0,
    )


def _fallbacks(prepared: Prepared, counts: Sequence[int], memo: Memo) -> tuple[Fallback, ...]:
    """How the rest serves after the loss of each spot pool of the mix, where something must survive."""
    problem = prepared.problem
    used = {variant.pool for variant, count in zip(problem.variants, counts, strict=True) if count > 0}
    found = []
    for pool, _ in problem.losses:
        if pool in used:
            parts = split_after_loss(problem, counts, pool, memo)
            found.append(Fallback(pool, parts.served_share, _shares(prepared, parts)))
    return tuple(found)


def _shares(prepared: Prepared, parts: Split) -> tuple[BucketShare, ...]:
    shares = []
    for b, v, share in parts.shares:
        index = prepared.problem.buckets[b]
        bucket = prepared.candidates.buckets[index]
        candidate = prepared.candidates.usable[v]
        capacity_rps = candidate.capacities.rates[index]
        shares.append(BucketShare(bucket.input_tokens, bucket.output_tokens, candidate.variant, share, capacity_rps))
    return tuple(shares)
