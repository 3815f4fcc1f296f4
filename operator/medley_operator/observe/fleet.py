"""From the cache to the planner's input: one consistent picture of services, pools and stock (pure)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from medley_operator.api.gpupool import GPUPool
from medley_operator.api.problems import Problem
from medley_operator.api.resolve import (
    ResolvedService,
    Surroundings,
    resolve_pool,
    resolve_service,
    same_nodes_problem,
)
from medley_operator.api.traces import TraceKey
from medley_operator.api.translate import planner_pool, planner_service
from medley_operator.observe.projections import seconds
from medley_operator.observe.stock import PoolStock, exhausted_stock, pool_stocks
from medley_operator.observe.views import DeploymentView, NodeView, PodView, PoolView, ProfileView, ServiceView
from medley_operator.verdict import AUTO, PAUSED, running_mix
from medley_planner.fleet import FleetState, Pool, Service
from medley_planner.policy import Standing
from medley_planner.workload.sizes import SizeHistogram


@dataclass(frozen=True)
class Snapshot:
    """The cluster at one moment, as projections."""

    services: tuple[ServiceView, ...]
    pools: tuple[PoolView, ...]
    profiles: tuple[ProfileView, ...]
    nodes: tuple[NodeView, ...]
    pods: tuple[PodView, ...]
    deployments: tuple[DeploymentView, ...]
    traces: Mapping[TraceKey, SizeHistogram | Problem]


@dataclass(frozen=True)
class PoolFinding:
    """What was found out about one pool."""

    view: PoolView
    problem: Problem | None
    stock: PoolStock | None
    exhausted_until_s: float | None
    """Until when nothing more can be had; None where that is not so."""
    exhausted_reason: str


@dataclass(frozen=True)
class Observation:
    """What a planning round works on.

    Args:
        state: The planner's input.
        standings: What the policy remembers of each service.
        resolved: The services in `state`, by key of the cache.
        problems: What is wrong with the other services.
        pools: What was found out about each pool, sorted by name.
        around: The other objects that services name.
    """

    state: FleetState
    standings: Mapping[str, Standing]
    resolved: Mapping[tuple[str, str], ResolvedService]
    problems: Mapping[tuple[str, str], tuple[Problem, ...]]
    pools: tuple[PoolFinding, ...]
    around: Surroundings


def observe(snapshot: Snapshot, *, now_s: float, max_cost_per_hour: float | None = None) -> Observation:
    """Make the planner's input out of what is known of the cluster.

    Args:
        snapshot: What is known.
        now_s: The time.
        max_cost_per_hour: Price cap for all services together; None is no cap.
    """
    around = surroundings(snapshot)
    resolved: dict[tuple[str, str], ResolvedService] = {}
    problems: dict[tuple[str, str], tuple[Problem, ...]] = {}
    for view in sorted(snapshot.services, key=lambda view: view.key):
        if view.deleting:
            continue
        if view.llm is None:
            problems[view.key] = (Problem("InvalidSpec", "spec", view.parse_error),)
            continue
        made = resolve_service(view.llm, around)
        if isinstance(made, ResolvedService):
            resolved[view.key] = made
        else:
            problems[view.key] = made
    wrong = {name: problem for name, pool in around.pools.items() if (problem := _pool_problem(pool, around))}
    usable = [pool for name, pool in around.pools.items() if name not in wrong]
    stocks = pool_stocks(usable, snapshot.nodes, snapshot.pods, set(resolved))
    findings = tuple(
        _pool_finding(view, wrong.get(view.name), stocks.get(view.name), snapshot.pods, now_s=now_s)
        for view in sorted(snapshot.pools, key=lambda view: view.name)
    )
    pools = tuple(pool for found in findings if (pool := _planner_pool(found)) is not None)
    state, standings = _fleet(snapshot, resolved, pools)
    state = replace(state, max_cost_usd_per_hour=max_cost_per_hour)
    return Observation(state, standings, resolved, problems, findings, around)


def surroundings(snapshot: Snapshot) -> Surroundings:
    """The objects that services name, those left out that do not parse."""
    return Surroundings(
        pools={view.name: view.pool for view in snapshot.pools if view.pool is not None},
        profiles={view.name: view.profile for view in snapshot.profiles if view.profile is not None},
        traces=snapshot.traces,
    )


def _fleet(
    snapshot: Snapshot, resolved: Mapping[tuple[str, str], ResolvedService], pools: tuple[Pool, ...]
) -> tuple[FleetState, dict[str, Standing]]:
    known = {pool.name for pool in pools}
    by_service: dict[tuple[str, str], list[DeploymentView]] = {}
    for item in snapshot.deployments:
        by_service.setdefault((item.namespace, item.service), []).append(item)
    views = {view.key: view for view in snapshot.services}
    services, standings = [], {}
    for key, made in sorted(resolved.items()):
        view = views[key]
        mix = running_mix(view, by_service.get(key, ()))
        running = {variant: count for variant, count in mix.items() if variant.pool in known}
        mode = made.service.spec.mode
        services.append(_on_known_pools(planner_service(made, running=running, pinned=mode == PAUSED), known))
        standings[view.id] = _standing(view, made, acts=mode == AUTO)
    return FleetState(services=tuple(services), pools=pools), standings


def _on_known_pools(service: Service, known: Collection[str]) -> Service:
    """The service without pools that cannot be planned with, such as one of an unknown GPU type: it has the others."""
    if service.pools is None:
        return service
    bounds = {pool: bound for pool, bound in service.replicas_by_pool.items() if pool in known}
    return replace(service, pools=tuple(pool for pool in service.pools if pool in known), replicas_by_pool=bounds)


def _standing(view: ServiceView, made: ResolvedService, *, acts: bool) -> Standing:
    disruption, status = made.service.spec.disruption, view.status
    return Standing(
        min_savings_percent=disruption.min_savings_percent,
        stabilization_s=float(disruption.stabilization_seconds),
        planned=status.planned_generation is not None,
        spec_changed=status.planned_generation is not None and status.planned_generation != view.generation,
        candidate_since_s=seconds(status.candidate.since) if status.candidate is not None else None,
        acts=acts,
    )


def _planner_pool(found: PoolFinding) -> Pool | None:
    pool = found.view.pool
    if pool is None or found.problem is not None or found.stock is None:
        return None
    gpu = resolve_pool(pool)
    assert not isinstance(gpu, Problem)
    exhausted = found.exhausted_until_s is not None
    stock = exhausted_stock(found.stock) if exhausted else found.stock.stock
    return planner_pool(pool, gpu, stock, exhausted=found.exhausted_reason if exhausted else "")


def _pool_finding(
    view: PoolView, problem: Problem | None, stock: PoolStock | None, pods: Iterable[PodView], *, now_s: float
) -> PoolFinding:
    if view.pool is None:
        return PoolFinding(view, Problem("InvalidSpec", "spec", view.parse_error), None, None, "")
    until_s, reason = _exhaustion(view.pool, pods, now_s=now_s)
    return PoolFinding(view, problem, stock, until_s, reason)


def _pool_problem(pool: GPUPool, around: Surroundings) -> Problem | None:
    made = resolve_pool(pool)
    return made if isinstance(made, Problem) else same_nodes_problem(pool, around.pools)


def _exhaustion(pool: GPUPool, pods: Iterable[PodView], *, now_s: float) -> tuple[float | None, str]:
    """Until when a pool counts as exhausted, and why:
    as its status says, or because replicas have been Pending for too long.
    """
    told = pool.status.exhausted if pool.status is not None else None
    if told is not None and seconds(told.until) > now_s:
        return seconds(told.until), told.reason
    deadline_s = pool.spec.pending_deadline_s
    late = [pod for pod in _pending(pool, pods) if pod.created_s + deadline_s <= now_s]
    if not late:
        return None, ""
    first = min(late, key=lambda pod: (pod.created_s, pod.namespace, pod.name))
    reason = f"{len(late)} replicas were Pending for over {deadline_s} s; the scheduler says: {first.unschedulable}"
    return float(int(now_s) + pool.spec.exhaustion.retry_after_seconds), reason[:1024]


def _pending(pool: GPUPool, pods: Iterable[PodView]) -> list[PodView]:
    """Replicas that want a place in the pool and that the scheduler has found none for."""
    return [
        pod
        for pod in pods
        if pod.service and pod.pool == pool.name and pod.unschedulable and not pod.scheduled and not pod.deleting
    ]


def next_deadline_s(observation: Observation, pods: Iterable[PodView], *, now_s: float) -> float | None:
    """The next moment at which time alone changes what is found out about pools."""
    moments = []
    everything = list(pods)
    for found in observation.pools:
        if found.view.pool is None:
            continue
        if found.exhausted_until_s is not None:
            moments.append(found.exhausted_until_s)
        else:
            deadline_s = found.view.pool.spec.pending_deadline_s
            moments += [pod.created_s + deadline_s for pod in _pending(found.view.pool, everything)]
    return min((moment for moment in moments if moment > now_s), default=None)
