"""The statuses of GPUPools and ModelProfiles (pure)."""

from __future__ import annotations

from medley_operator.api.gpupool import ExhaustedStatus, GPUPoolStatus
from medley_operator.api.modelprofile import ModelProfile, ModelProfileStatus
from medley_operator.api.problems import Problem
from medley_operator.api.resolve import resolve_profile
from medley_operator.observe.fleet import PoolFinding
from medley_operator.observe.stock import PoolStock
from medley_operator.observe.views import ProfileView
from medley_operator.report.conditions import Finding, conditions, timestamp


def pool_status(found: PoolFinding, *, now_s: float) -> GPUPoolStatus:
    """What the operator sees of a pool."""
    view = found.view
    old = view.pool.status if view.pool is not None and view.pool.status is not None else GPUPoolStatus()
    stock = found.stock
    if found.problem is not None:
        ready = Finding("Ready", False, found.problem.reason, str(found.problem))
    elif found.exhausted_until_s is not None:
        ready = Finding("Ready", False, "Exhausted", found.exhausted_reason)
    else:
        ready = Finding("Ready", True, "Available", _available(stock))
    exhausted = None
    if found.exhausted_until_s is not None:
        exhausted = ExhaustedStatus(until=timestamp(found.exhausted_until_s), reason=found.exhausted_reason)
    return GPUPoolStatus(
        observed_generation=view.generation,
        conditions=conditions([ready], old.conditions, generation=view.generation, now_s=now_s),
        nodes=stock.nodes if stock else None,
        allocatable=stock.allocatable if stock else None,
        used_by_services=stock.used_by_services if stock else None,
        used_by_others=stock.used_by_others if stock else None,
        free=stock.free if stock else None,
        exhausted=exhausted,
    )


def _available(stock: PoolStock | None) -> str:
    if stock is None or not stock.elsewhere:
        return "services may use this pool"
    others = ", ".join(stock.elsewhere)
    return f"services may use this pool; nodes that GPUPool {others} selects more closely count there and not here"


def profile_status(view: ProfileView, *, now_s: float) -> ModelProfileStatus:
    """What the operator made of a profile."""
    profile = view.profile
    old = profile.status if profile is not None and profile.status is not None else ModelProfileStatus()
    return ModelProfileStatus(
        observed_generation=view.generation,
        conditions=conditions([_profile_ready(view)], old.conditions, generation=view.generation, now_s=now_s),
        measured_variants=_measured_variants(profile) if profile else (),
        source=("measured and roofline" if profile.spec.measurements else "roofline") if profile else None,
    )


def _profile_ready(view: ProfileView) -> Finding:
    if view.profile is None:
        return Finding("Ready", False, "InvalidSpec", view.parse_error)
    made = resolve_profile(view.profile)
    if isinstance(made, Problem):
        return Finding("Ready", False, made.reason, str(made))
    return Finding("Ready", True, "Valid", f"services may serve {view.profile.spec.model}")


def _measured_variants(profile: ModelProfile) -> tuple[str, ...]:
    return tuple(sorted({f"{table.gpu}/{table.parallelism}" for table in profile.spec.measurements}))
