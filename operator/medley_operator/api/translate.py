"""Between the API's values and the planner's (pure): specs to a fleet, and a plan to a status.

The operator and the command share it, so that what `medley plan` shows is what the operator does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import PoolScaling
from medley_operator.api.llmservice_status import (
    PlanAlternative,
    PlanBinding,
    PlanCapacitySource,
    PlanEntry,
    PlanRejection,
    PlanStatus,
)
from medley_operator.api.resolve import ResolvedService
from medley_planner.catalogue.gpus import GPUType
from medley_planner.fleet import (
    GROUP_SIZES,
    Availability,
    CapacityType,
    Objectives,
    Pool,
    ReplicaBounds,
    Role,
    Service,
    Stock,
    Variant,
)
from medley_planner.result import Alternative, MixEntry, ServicePlan
from medley_planner.wording import variant_text

UNLIMITED_NODES = 100_000
"""Nodes of a pool that nothing bounds: no plan needs so many."""

MAX_ROWS = 256
MAX_SENTENCE_CHARACTERS = 4096


def planner_service(
    resolved: ResolvedService, *, running: Mapping[Variant, int] | None = None, pinned: bool = False
) -> Service:
    """A service in the planner's terms.

    Args:
        resolved: The service with everything that it names.
        running: Replicas that run or were asked for, by variant.
        pinned: Keep them as they are.
    """
    spec = resolved.service.spec
    return Service(
        name=resolved.service.key,
        model=resolved.profile.architecture,
        rate_rps=spec.workload.rate,
        sizes=resolved.sizes,
        objectives=_objectives(resolved),
        measurements=resolved.profile.measurements,
        engine=spec.engine.type,
        pools=resolved.pools,
        tensor_parallel=tuple(sorted(spec.gpus.tensor_parallel or ())),
        pipeline_parallel=tuple(sorted(spec.gpus.pipeline_parallel or (1,))),
        data_parallel=tuple(sorted(spec.gpus.data_parallel or (1,))),
        max_context_tokens=spec.model.max_context_tokens,
        max_cost_usd_per_hour=spec.gpus.max_cost_per_hour,
        replicas=ReplicaBounds(minimum=spec.scaling.min_replicas, maximum=spec.scaling.max_replicas),
        replicas_by_pool={bounds.name: _bounds(bounds) for bounds in spec.scaling.pools},
        headroom=spec.scaling.headroom,
        queueing_quantile=spec.scaling.no_wait_share,
        interarrival_cv=spec.workload.interarrival_cv,
        priority=spec.priority,
        availability=Availability(
            spot_max_share=spec.gpus.spot.max_share,
            pool_max_share=spec.gpus.max_share_per_pool,
            survivable_share=spec.gpus.spot.survivable_share,
        ),
        running=dict(running or {}),
        pinned=pinned,
    )


def planner_pool(pool: GPUPool, gpu: GPUType, stock: Stock, *, exhausted: str = "") -> Pool:
    """A pool in the planner's terms.

    Args:
        pool: The pool.
        gpu: Its GPU type, from `resolve_pool`.
        stock: What services may use, from `node_stock` or `declared_stock`.
        exhausted: Why nothing more can be had for now; empty where that is not so.
    """
    return Pool(
        name=pool.name,
        gpu=gpu,
        price_usd_per_gpu_hour=pool.spec.price_per_gpu_hour,
        stock=stock,
        gpus_per_node=pool.spec.gpus_per_node,
        load_time_s=float(pool.spec.provisioning_seconds + pool.spec.load_seconds),
        exhausted=exhausted,
        capacity_type=CapacityType(pool.spec.capacity_type),
        interruptions_per_hour=pool.spec.interruptions_per_hour,
    )


def node_stock(pool: GPUPool, free_gpus: Sequence[int], *, may_grow: bool = True) -> Stock:
    """What services may use of a pool whose nodes are known.

    Without `limit`, what the nodes hold. With a `limit` beyond it, the rest is counted as full nodes that an autoscaler
    may bring; with one below it, the limit.

    Args:
        pool: The pool.
        free_gpus: GPUs of each Ready, schedulable node that are free or held by services of the fleet.
        may_grow: Whether GPUs that no node holds yet may be asked for; False while the pool is exhausted.
    """
    limit = pool.spec.limit
    present = sorted(free_gpus, reverse=True)
    missing = 0 if limit is None or not may_grow else max(0, limit - sum(present))
    full, rest = divmod(missing, pool.spec.gpus_per_node)
    grown = (*present, *([pool.spec.gpus_per_node] * full), *([rest] if rest else []))
    return Stock.from_nodes(grown, limit=limit)


def declared_stock(pool: GPUPool) -> Stock:
    """What services may use of a pool whose nodes are not known: its `limit`, or without one as much as they want."""
    if pool.spec.limit is not None:
        return Stock.of(pool.spec.limit, gpus_per_node=pool.spec.gpus_per_node)
    per_node = pool.spec.gpus_per_node
    return Stock({size: UNLIMITED_NODES * size * (per_node // size) for size in GROUP_SIZES})


def plan_status(plan: ServicePlan, gpu_types: Mapping[str, str], model_source: str | None = None) -> PlanStatus:
    """A service's plan as its status shows it.

    Figures are rounded, so that a plan that is the same to people is the same status, and nothing is written.

    Args:
        plan: The plan.
        gpu_types: Names of the pools' GPU types, by pool.
        model_source: Where the model's facts come from, in words.
    """
    cap = plan.nearest_feasible_cap_usd_per_hour
    return PlanStatus(
        mix=mix_text(plan.mix),
        entries=tuple(_entry(entry, gpu_types) for entry in plan.mix),
        cost_per_hour=_money(plan.cost_usd_per_hour),
        reserved_per_hour=_some_money(plan.reserved_usd_per_hour),
        interruption_cost_per_hour=_some_money(plan.risk_usd_per_hour),
        lower_bound=_money(plan.lower_bound_usd_per_hour),
        gap_percent=round(100 * plan.gap, 2),
        outcome=plan.outcome.value,
        reason=_clipped(plan.reason),
        served_percent=round(100 * plan.served_share, 2),
        binding=tuple(
            PlanBinding(
                constraint=bound.constraint,
                subject=bound.subject,
                detail=_clipped(bound.detail),
                saves_per_hour=None if bound.saves_usd_per_hour is None else _money(bound.saves_usd_per_hour),
            )
            for bound in plan.binding[:MAX_ROWS]
        ),
        alternatives=tuple(_alternative(alternative) for alternative in plan.alternatives[:MAX_ROWS]),
        rejected=tuple(
            PlanRejection(
                pool=rejection.variant.pool,
                **_row(rejection.variant),
                reason=rejection.reason,
                detail=_clipped(rejection.detail),
            )
            for rejection in plan.rejected[:MAX_ROWS]
        ),
        capacity_sources=tuple(
            PlanCapacitySource(pool=variant.pool, **_row(variant), source=source)
            for variant, source in plan.capacity_source[:MAX_ROWS]
        ),
        model_source=model_source,
        nearest_feasible_cost_cap=None if cap is None else math.ceil(cap * 1e4 - 1e-6) / 1e4,
        nearest_feasible_share=plan.nearest_feasible_share,
    )


def mix_text(mix: Sequence[MixEntry]) -> str:
    """A mix in short: `2×l4 + 1×a100/tp2`; `nothing` for an empty one."""
    parts = [f"{entry.replicas}×{variant_text(entry.variant)}" for entry in mix]
    return " + ".join(parts) or "nothing"


def _objectives(resolved: ResolvedService) -> Objectives:
    given = resolved.service.spec.objectives
    per_token, first_token = given.time_per_output_token, given.time_to_first_token
    return Objectives(
        time_per_output_token_s=None if per_token is None else per_token.milliseconds / 1e3,
        time_to_first_token_s=None if first_token is None else first_token.milliseconds / 1e3,
        time_per_output_token_percentile=None if per_token is None else per_token.percentile,
        time_to_first_token_percentile=None if first_token is None else first_token.percentile,
    )


def _row(variant: Variant) -> dict[str, Any]:
    """The fields of a row of the status that say how a replica's GPUs share the work, and which part of it they do."""
    return {
        "tensor_parallel": variant.tensor_parallel,
        "pipeline_parallel": variant.pipeline_parallel,
        "data_parallel": variant.data_parallel,
        "role": None if variant.role is Role.SHARED else variant.role.value,
    }


def _bounds(bounds: PoolScaling) -> ReplicaBounds:
    return ReplicaBounds(minimum=bounds.min_replicas or 0, maximum=bounds.max_replicas)


def _entry(entry: MixEntry, gpu_types: Mapping[str, str]) -> PlanEntry:
    return PlanEntry(
        pool=entry.variant.pool,
        gpu=gpu_types.get(entry.variant.pool, ""),
        **_row(entry.variant),
        replicas=entry.replicas,
        gpus=entry.gpus,
        cost_per_hour=_money(entry.cost_usd_per_hour),
        reserved_per_hour=_some_money(entry.reserved_usd_per_hour),
        interruption_cost_per_hour=_some_money(entry.risk_usd_per_hour),
        utilisation=round(entry.utilisation, 4),
    )


def _alternative(alternative: Alternative) -> PlanAlternative:
    cost, extra = alternative.cost_usd_per_hour, alternative.extra_usd_per_hour
    return PlanAlternative(
        name=_clipped(alternative.name),
        cost_per_hour=None if cost is None else _money(cost),
        extra_per_hour=None if extra is None else _money(extra),
        detail=_clipped(alternative.detail),
    )


def _money(amount: float) -> float:
    return round(amount, 4)


def _some_money(amount: float) -> float | None:
    """Money that is only worth telling where there is any."""
    return _money(amount) or None


def _clipped(sentence: str) -> str:
    if len(sentence) <= MAX_SENTENCE_CHARACTERS:
        return sentence
    return sentence[: MAX_SENTENCE_CHARACTERS - 1] + "…"
