"""A simulation for programs: what `medley simulate -o json` and `-o yaml` print."""

from __future__ import annotations

import math
from typing import Any

from medley_operator.cli.simulation import Fitted, SimulatedFleet
from medley_planner.simulator.measures import Attainment, Distribution, ServiceMeasures, VariantMeasures
from medley_planner.simulator.timeline import Timeline


def simulation_manifest(simulated: SimulatedFleet) -> dict[str, Any]:
    """The answer, in plain values."""
    return {
        "attained": simulated.attained,
        "simulated": True,
        "seed": simulated.replay.seed,
        "durationSeconds": round(simulated.horizon_s, 3),
        "router": {
            "outputs": simulated.replay.knowledge.value,
            "balancing": simulated.replay.balancing.value,
            "overflow": simulated.replay.overflow,
        },
        "steps": simulated.replay.step_budget.value,
        "costPerHour": _rounded(simulated.measures.cost_usd_per_hour),
        "plannedCostPerHour": _rounded(simulated.planned.fleet.cost_usd_per_hour),
        "shortcomings": list(simulated.shortcomings),
        "services": [_service_manifest(each) for each in simulated.measures.services],
        **({} if simulated.fitted is None else {"fit": _fitted_manifest(simulated.fitted)}),
        "notes": list(simulated.notes),
    }


def _service_manifest(service: ServiceMeasures) -> dict[str, Any]:
    return {
        "name": service.name,
        "attained": service.attained,
        "requests": service.requests,
        "served": service.served,
        "rejected": service.rejected,
        "lost": service.lost,
        "preemptions": service.preemptions,
        "inputTokens": service.input_tokens,
        "outputTokens": service.output_tokens,
        "costPerHour": _rounded(service.cost_usd_per_hour),
        "costPerMillionTokens": _rounded(service.usd_per_million_tokens),
        "costPerMillionOutputTokens": _rounded(service.usd_per_million_output_tokens),
        "objectives": [_attainment_manifest(each) for each in service.objectives],
        "wait": _distribution_manifest(service.wait),
        "timeToFirstToken": _distribution_manifest(service.time_to_first_token),
        "timePerOutputToken": _distribution_manifest(service.time_per_output_token),
        "endToEnd": _distribution_manifest(service.end_to_end),
        "variants": [_variant_manifest(each) for each in service.variants],
        "timeline": _timeline_manifest(service.timeline),
    }


def _fitted_manifest(fitted: Fitted) -> dict[str, Any]:
    found = fitted.found
    if found is None:
        return {"service": fitted.service, "found": False}
    return {
        "service": fitted.service,
        "found": True,
        "factor": found.factor,
        "rate": _rounded(found.rate_rps),
        "noWaitShare": found.queueing_quantile,
        "interarrivalCV": 1,
        "costPerHour": _rounded(found.service_plan.cost_usd_per_hour),
        "mix": [
            {"pool": entry.variant.pool, "parallelism": str(entry.variant.parallelism), "replicas": entry.replicas}
            for entry in found.service_plan.mix
        ],
        "objectives": [_attainment_manifest(each) for each in found.measures.objectives],
        "tried": found.tried,
    }


def _attainment_manifest(each: Attainment) -> dict[str, Any]:
    return {
        "objective": each.objective,
        "milliseconds": _rounded(1e3 * each.limit_s),
        "percentile": each.percentile,
        "measuredMilliseconds": _rounded(1e3 * each.measured_s),
        "withinPercent": _rounded(each.within_percent),
        "attained": each.attained,
    }


def _distribution_manifest(each: Distribution) -> dict[str, Any]:
    times = {
        "mean": each.mean_s,
        "p50": each.p50_s,
        "p90": each.p90_s,
        "p95": each.p95_s,
        "p99": each.p99_s,
        "max": each.max_s,
    }
    return {"count": each.count, **{f"{name}Milliseconds": _rounded(1e3 * time_s) for name, time_s in times.items()}}


def _variant_manifest(each: VariantMeasures) -> dict[str, Any]:
    return {
        "pool": each.variant.pool,
        "parallelism": str(each.variant.parallelism),
        "role": each.variant.role.value,
        "replicas": each.replicas,
        "requests": each.requests,
        "costPerHour": _rounded(each.cost_usd / each.replica_hours * each.replicas if each.replica_hours else 0.0),
        "busyPercent": _rounded(100 * each.busy_share),
        "runningRequests": _rounded(each.running_requests),
        "cachePercent": _rounded(100 * each.cache_share),
        "cachePeakPercent": _rounded(100 * each.cache_peak_share),
        "preemptions": each.preemptions,
        "timeToFirstToken": _distribution_manifest(each.time_to_first_token),
        "timePerOutputToken": _distribution_manifest(each.time_per_output_token),
    }


def _timeline_manifest(line: Timeline) -> dict[str, Any]:
    series = {
        "arrivalsPerSecond": line.arrivals_rps,
        "finishedPerSecond": line.finished_rps,
        "waiting": line.waiting,
        "inSystem": line.in_system,
        "replicas": line.replicas,
        "busyPercent": 100 * line.busy_share,
        "cachePercent": 100 * line.cache_share,
        "timeToFirstTokenP95Milliseconds": 1e3 * line.first_token_p95_s,
        "costPerHour": line.usd_per_hour,
    }
    return {
        "intervalSeconds": _rounded(line.bin_s),
        **{name: [_rounded(value) for value in values.tolist()] for name, values in series.items()},
    }


def _rounded(value: float) -> float | None:
    """With six digits that matter; None where there is no number."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
