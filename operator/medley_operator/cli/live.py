"""The fleet of a cluster as it is now, read once, with objects of files in the place of those of the same name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol, TypeVar

from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.llmservice_status import LLMServiceStatus
from medley_operator.api.manifest import path_of
from medley_operator.api.modelprofile import ModelProfile
from medley_operator.api.problems import Problem
from medley_operator.api.traces import TraceKey, histogram_of_config_map
from medley_operator.cli.cluster import Cluster
from medley_operator.cli.inputs import InputError, Inputs, Mistake
from medley_operator.cli.planning import Asked
from medley_operator.kinds import DEPLOYMENTS, GPU_POOLS, LLM_SERVICES, MODEL_PROFILES, NODES, PODS, Kind
from medley_operator.observe import projections
from medley_operator.observe.fleet import Observation, Snapshot, observe
from medley_operator.observe.views import Key, Object, PoolView, ProfileView, ServiceView
from medley_planner.workload.sizes import SizeHistogram


class _View(Protocol):
    @property
    def key(self) -> Key: ...


V = TypeVar("V", bound=_View)


def live_fleet(cluster: Cluster, changes: Inputs, now_s: float, max_cost_usd_per_hour: float | None = None) -> Asked:
    """The fleet of a cluster, to be planned.

    Args:
        cluster: The cluster; it is only read.
        changes: Objects that take the place of the cluster's, or come beside them.
        now_s: The time: pools count as exhausted for a while.
        max_cost_usd_per_hour: Price cap for all services together; None is no cap.

    Raises:
        ClusterError: The cluster cannot be read.
        InputError: There is no service, or an object of `changes` does not fit the others.
    """
    observed = observe(_snapshot(cluster, changes), now_s=now_s, max_cost_per_hour=max_cost_usd_per_hour)
    mistakes = list(_mistakes(observed, changes))
    if mistakes:
        raise InputError(mistakes)
    if not observed.resolved and not observed.problems:
        raise InputError([Mistake("cluster", None, "", "there is no LLMService to plan")])
    usable = {pool.name for pool in observed.state.pools}
    return Asked(
        state=observed.state,
        resolved=tuple(made for _, made in sorted(observed.resolved.items())),
        pools=tuple(pool for name, pool in sorted(observed.around.pools.items()) if name in usable),
        notes=tuple(_notes(observed)),
        unplanned=tuple(f"{namespace}/{name}" for namespace, name in sorted(observed.problems)),
    )


def _snapshot(cluster: Cluster, changes: Inputs) -> Snapshot:
    services = _by_key(cluster, LLM_SERVICES, projections.service_view)
    for service in changes.services:
        before = services.get((service.namespace, service.name))
        services[service.namespace, service.name] = _service_view(service, before)
    pools = _by_key(cluster, GPU_POOLS, projections.pool_view)
    for name, pool in changes.pools.items():
        pools["", name] = _pool_view(pool, pools.get(("", name)))
    profiles = _by_key(cluster, MODEL_PROFILES, projections.profile_view)
    for name, profile in changes.profiles.items():
        profiles["", name] = _profile_view(profile)
    return Snapshot(
        services=tuple(services.values()),
        pools=tuple(pools.values()),
        profiles=tuple(profiles.values()),
        nodes=tuple(_by_key(cluster, NODES, projections.node_view).values()),
        pods=tuple(_by_key(cluster, PODS, projections.pod_view).values()),
        deployments=tuple(_by_key(cluster, DEPLOYMENTS, projections.deployment_view).values()),
        traces=_traces(cluster, services.values(), changes),
    )


def _by_key(cluster: Cluster, kind: Kind, project: Callable[[Object], V | None]) -> dict[Key, V]:
    views = (project(raw) for raw in cluster.objects(kind))
    return {view.key: view for view in views if view is not None}


def _service_view(service: LLMService, before: ServiceView | None) -> ServiceView:
    if before is not None:
        return replace(before, llm=service, parse_error="", deleting=False)
    return ServiceView(service.namespace, service.name, "", 0, 0, False, service, "", LLMServiceStatus())


def _pool_view(pool: GPUPool, before: PoolView | None) -> PoolView:
    """With the status of the pool that it stands for: whether it is exhausted is a fact of the cluster."""
    status = before.pool.status if before is not None and before.pool is not None else None
    return PoolView(pool.name, "", 0, 0, pool.model_copy(update={"status": status}), "")


def _profile_view(profile: ModelProfile) -> ProfileView:
    return ProfileView(profile.name, "", 0, 0, profile, "")


def _traces(
    cluster: Cluster, services: Iterable[ServiceView], changes: Inputs
) -> Mapping[TraceKey, SizeHistogram | Problem]:
    """The traces that services refer to, of files where they hold them, else of the cluster."""
    traces: dict[TraceKey, SizeHistogram | Problem] = {}
    for view in services:
        reference = view.llm.spec.workload.sizes.trace_config_map if view.llm is not None else None
        if reference is None:
            continue
        key = TraceKey(view.namespace, reference.name, reference.key)
        if key not in traces:
            data = changes.config_maps.get((view.namespace, reference.name))
            if data is None:
                data = cluster.config_map_data(view.namespace, reference.name)
            traces[key] = histogram_of_config_map(reference, data)
    return traces


def _mistakes(observed: Observation, changes: Inputs) -> Iterator[Mistake]:
    """What is wrong with objects of files; what is wrong with those of the cluster is its owner's."""
    for service in changes.services:
        for problem in observed.problems.get((service.namespace, service.name), ()):
            yield _mistake(changes, ("LLMService", service.namespace, service.name), problem)
    for found in observed.pools:
        if found.problem is not None and found.view.name in changes.pools:
            yield _mistake(changes, ("GPUPool", "", found.view.name), found.problem)


def _mistake(changes: Inputs, identity: tuple[str, str, str], problem: Problem) -> Mistake:
    made = changes.sources[identity].mistake(path_of(problem.field), problem.message)
    return Mistake(made.file, made.line, problem.field, problem.message)


def _notes(observed: Observation) -> Iterator[str]:
    """What is left out, and how the stock was found."""
    for (namespace, name), problems in sorted(observed.problems.items()):
        yield f"{namespace}/{name} cannot be planned: {'; '.join(str(problem) for problem in problems)}"
    for found in observed.pools:
        if found.problem is not None:
            yield f"GPUPool {found.view.name} is left out: {found.problem}"
        elif found.exhausted_until_s is not None:
            yield f"GPUPool {found.view.name} is exhausted: {found.exhausted_reason}"
    yield "stock is what the cluster's nodes have free or services hold, and what limits let autoscalers bring"
