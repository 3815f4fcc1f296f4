"""`medley plan` without a cluster: objects of files to a fleet, and its plan with what people need to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.llmservice_status import PlanStatus
from medley_operator.api.manifest import path_of
from medley_operator.api.problems import Problem
from medley_operator.api.resolve import ResolvedService, Surroundings, resolve_pool, resolve_profile, resolve_service
from medley_operator.api.traces import TraceKey, histogram_of_config_map
from medley_operator.api.translate import UNLIMITED_NODES, declared_stock, plan_status, planner_pool, planner_service
from medley_operator.cli.advice import notes_about_roles, notes_about_steps
from medley_operator.cli.inputs import InputError, Inputs, Mistake
from medley_operator.cli.sensitivity import sensitivity_manifest
from medley_planner.capacities.capacity import capacities
from medley_planner.capacities.variants import CapacityFunction
from medley_planner.catalogue.gpus import GPUType
from medley_planner.explaining.sensitivity import Effort, Progress, Sensitivity, sensitivity
from medley_planner.fleet import FleetState, PlanOptions, Pool
from medley_planner.plan import InvalidFleetError, plan
from medley_planner.programme.goals import Lent
from medley_planner.programme.memo import Memo
from medley_planner.result import FleetPlan, Outcome
from medley_planner.workload.sizes import SizeHistogram

FEASIBLE = frozenset({Outcome.PLANNED.value, Outcome.PINNED.value})
"""Outcomes after which `medley plan` ends with status 0."""


@dataclass(frozen=True)
class PlannedService:
    """A service and its plan, as the operator would write it into the status."""

    service: LLMService
    plan: PlanStatus

    @property
    def feasible(self) -> bool:
        """Whether the plan serves the workload within all bounds."""
        return self.plan.outcome in FEASIBLE


@dataclass(frozen=True)
class PlannedFleet:
    """The plans of all services.

    Args:
        services: By namespace and name.
        pools: All pools, by name.
        state: What was planned, in the planner's terms.
        fleet: The planner's answer as a whole.
        notes: What the plan assumes, as sentences.
        unplanned: Services that were left out, because something that they name is wrong or missing.
        sensitivity: How far it holds; None where that was not asked.
    """

    services: tuple[PlannedService, ...]
    pools: tuple[GPUPool, ...]
    state: FleetState
    fleet: FleetPlan
    notes: tuple[str, ...]
    unplanned: tuple[str, ...] = ()
    sensitivity: Sensitivity | None = None

    @property
    def feasible(self) -> bool:
        """Whether every service is served."""
        return not self.unplanned and all(planned.feasible for planned in self.services)

    @property
    def all_served(self) -> bool:
        """Whether all requests are served; only then the lower bound is one."""
        return all(planned.plan.served_percent >= 100 for planned in self.services)

    def priority(self, planned: PlannedService) -> int:
        """The priority of a service: where stock is short, the higher are served first."""
        return next(each.priority for each in self.state.services if each.name == planned.service.key)

    def by_priority(self) -> list[PlannedService]:
        """The services, the highest priority first."""
        return sorted(self.services, key=lambda each: (-self.priority(each), each.service.key))

    def stock(self, pool: GPUPool) -> int | None:
        """GPUs of a pool that services may use; None is as many as they want."""
        (held,) = [each.stock.gpus for each in self.state.pools if each.name == pool.name]
        return None if pool.spec.limit is None and held >= UNLIMITED_NODES else held

    def _caps(self) -> dict[str, float]:
        """The fleet's price cap, where there is one, and the nearest that would do, where it is too low."""
        caps = {
            "maxCostPerHour": self.state.max_cost_usd_per_hour,
            "nearestFeasibleCostCap": self.fleet.nearest_feasible_cap_usd_per_hour,
        }
        return {name: round(cap, 4) for name, cap in caps.items() if cap is not None}

    def to_manifest(self) -> dict[str, Any]:
        """The plan for programs: what `-o json` and `-o yaml` print."""
        used = dict(self.fleet.gpus_by_pool)
        kinds = {pool.name: pool.capacity_type.value for pool in self.state.pools}
        return {
            "feasible": self.feasible,
            "costPerHour": round(self.fleet.cost_usd_per_hour, 4),
            "lowerBound": round(self.fleet.lower_bound_usd_per_hour, 4),
            "gapPercent": round(100 * self.fleet.gap, 2),
            "solver": self.fleet.status.value,
            "reservedPerHour": round(self.fleet.reserved_usd_per_hour, 4),
            "interruptionsPerHour": round(self.fleet.risk_usd_per_hour, 4),
            **self._caps(),
            "services": [
                {
                    "namespace": planned.service.namespace,
                    "name": planned.service.name,
                    "model": planned.service.spec.model.name,
                    "rate": planned.service.spec.workload.rate,
                    "priority": self.priority(planned),
                    "plan": planned.plan.to_manifest(),
                }
                for planned in self.services
            ],
            "pools": [
                {
                    "name": pool.name,
                    "gpu": pool.spec.gpu.type,
                    "capacityType": kinds[pool.name],
                    "pricePerGPUHour": pool.spec.price_per_gpu_hour,
                    "usedGPUs": used.get(pool.name, 0),
                    **({} if pool.spec.limit is None else {"limit": pool.spec.limit}),
                    **({} if (stock := self.stock(pool)) is None else {"stock": stock}),
                }
                for pool in self.pools
            ],
            "shadowPrices": [
                {
                    "pool": each.pool,
                    "perGPUHour": round(each.usd_per_gpu_hour, 4),
                    "servedPerSecond": float(f"{each.served_rps:.6g}"),
                    "detail": each.detail,
                }
                for each in self.fleet.shadow_prices
            ],
            "unplanned": list(self.unplanned),
            "notes": list(self.notes),
            **({} if self.sensitivity is None else {"sensitivity": sensitivity_manifest(self.sensitivity)}),
        }


@dataclass(frozen=True)
class Question:
    """What is asked of the input.

    Args:
        options: How to plan.
        max_cost_usd_per_hour: Price cap for all services together; None is no cap.
        effort: How much is asked about how far the plan holds; None is nothing.
        capacity_of: What one replica sustains.
        disaggregated: Whether prefill and decode may run on replicas of their own, which is advice: the operator does
            not run such replicas.
        helpers: Lends processes for large fleets; None lends none.
    """

    options: PlanOptions
    max_cost_usd_per_hour: float | None = None
    effort: Effort | None = None
    capacity_of: CapacityFunction = capacities
    disaggregated: bool = False
    helpers: Lent | None = None


@dataclass(frozen=True)
class Asked:
    """A fleet to be planned, with the objects that it was made of.

    Args:
        state: The fleet.
        resolved: Its services, by namespace and name.
        pools: Its pools, by name.
        notes: What is assumed, as sentences.
        unplanned: Services that cannot be planned, because something that they name is wrong or missing.
    """

    state: FleetState
    resolved: tuple[ResolvedService, ...]
    pools: tuple[GPUPool, ...]
    notes: tuple[str, ...]
    unplanned: tuple[str, ...] = ()


def plan_inputs(inputs: Inputs, question: Question, *, progress: Progress | None = None) -> PlannedFleet:
    """Plan all services of the input together.

    Args:
        inputs: The objects.
        question: What is asked.
        progress: Told before each question about how far the plan holds.

    Raises:
        InputError: There is no service, or objects do not fit together.
        UnsoundPlanError: The planner made a mistake that its own check found.
    """
    if not inputs.services:
        raise InputError([Mistake("input", None, "", "there is no LLMService to plan")])
    gpus, resolved = _resolve(inputs)
    state = FleetState(
        services=tuple(planner_service(service) for service in resolved),
        pools=tuple(_pool(inputs.pools[name], gpu) for name, gpu in sorted(gpus.items())),
        max_cost_usd_per_hour=question.max_cost_usd_per_hour,
    )
    pools = tuple(inputs.pools[name] for name in sorted(gpus))
    return answered(Asked(state, tuple(resolved), pools, tuple(_notes(inputs, resolved))), question, progress=progress)


def answered(asked: Asked, question: Question, *, progress: Progress | None = None) -> PlannedFleet:
    """The plan of a fleet, and how far it holds where that is asked.

    Args:
        asked: The fleet.
        question: What is asked; a price cap is the fleet's own.
        progress: Told before each question about how far the plan holds.

    Raises:
        InputError: A value makes no sense to the planner.
        UnsoundPlanError: The planner made a mistake that its own check found.
    """
    services = tuple(replace(service, disaggregated=question.disaggregated) for service in asked.state.services)
    state = replace(asked.state, services=services)
    memo = Memo()
    try:
        answer = plan(state, question.options, memo=memo, capacity_of=question.capacity_of, helpers=question.helpers)
    except InvalidFleetError as error:
        raise InputError([Mistake("input", None, error.field, error.message)]) from None
    holds = None
    if question.effort is not None:
        holds = sensitivity(
            state,
            answer,
            question.options,
            effort=question.effort,
            progress=progress,
            memo=memo,
            capacity_of=question.capacity_of,
        )
    types = {pool.name: pool.gpu.name for pool in state.pools}
    return PlannedFleet(
        services=tuple(
            PlannedService(made.service, plan_status(answer.service(made.service.key), types, made.model_source))
            for made in asked.resolved
        ),
        pools=asked.pools,
        state=state,
        fleet=answer,
        notes=(*asked.notes, *notes_about_roles(answer), *notes_about_steps(state, answer)),
        unplanned=asked.unplanned,
        sensitivity=holds,
    )


def _resolve(inputs: Inputs) -> tuple[dict[str, GPUType], list[ResolvedService]]:
    """The pools' GPU types and the services with all that they name; every mistake at once."""
    mistakes: list[Mistake] = []
    gpus: dict[str, GPUType] = {}
    for name, pool in sorted(inputs.pools.items()):
        gpu = resolve_pool(pool)
        if isinstance(gpu, Problem):
            mistakes.append(_mistake(inputs, ("GPUPool", "", name), gpu))
        else:
            gpus[name] = gpu
    for name, profile in sorted(inputs.profiles.items()):
        made = resolve_profile(profile)
        if isinstance(made, Problem):
            mistakes.append(_mistake(inputs, ("ModelProfile", "", name), made))
    if mistakes:
        raise InputError(mistakes)
    around = Surroundings(pools=inputs.pools, profiles=inputs.profiles, traces=_traces(inputs))
    resolved = []
    for service in inputs.services:
        found = resolve_service(service, around)
        if isinstance(found, ResolvedService):
            resolved.append(found)
        else:
            identity = ("LLMService", service.namespace, service.name)
            mistakes += [_mistake(inputs, identity, problem) for problem in found]
    if mistakes:
        raise InputError(mistakes)
    return gpus, resolved


def _traces(inputs: Inputs) -> dict[TraceKey, SizeHistogram | Problem]:
    """The traces that services refer to, each read once."""
    traces: dict[TraceKey, SizeHistogram | Problem] = {}
    for service in inputs.services:
        reference = service.spec.workload.sizes.trace_config_map
        if reference is None:
            continue
        key = TraceKey(service.namespace, reference.name, reference.key)
        if key not in traces:
            data = inputs.config_maps.get((service.namespace, reference.name))
            traces[key] = histogram_of_config_map(reference, data)
    return traces


def _pool(pool: GPUPool, gpu: GPUType) -> Pool:
    return planner_pool(pool, gpu, declared_stock(pool))


def _mistake(inputs: Inputs, identity: tuple[str, str, str], problem: Problem) -> Mistake:
    made = inputs.sources[identity].mistake(path_of(problem.field), problem.message)
    return Mistake(made.file, made.line, problem.field, problem.message)


def _notes(inputs: Inputs, resolved: Sequence[ResolvedService]) -> list[str]:
    """What the plan assumes because no cluster was asked."""
    notes = []
    unlimited = sorted(name for name, pool in inputs.pools.items() if pool.spec.limit is None)
    if unlimited:
        notes.append(f"no cluster was asked: as many GPUs as wanted in {', '.join(unlimited)} (spec.limit bounds them)")
    limited = sorted(name for name, pool in inputs.pools.items() if pool.spec.limit is not None)
    if limited:
        notes.append(f"no cluster was asked: all of spec.limit is taken to be free in {', '.join(limited)}")
    known = sorted({made.service.spec.model.name for made in resolved if made.from_catalogue})
    if known:
        notes.append(f"without a ModelProfile, taken from the catalogue: {', '.join(known)}")
    paused = [service.key for service in inputs.services if service.spec.mode == "Paused"]
    if paused:
        notes.append(f"the operator would not act on {', '.join(paused)}: mode Paused")
    if inputs.ignored:
        kinds = ", ".join(f"{count} × {kind}" for kind, count in sorted(inputs.ignored.items()))
        notes.append(f"not needed for planning: {kinds}")
    return notes
