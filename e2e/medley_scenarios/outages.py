"""The API server stops, etcd restarts, Prometheus goes: nothing may be scaled down, and all recovers by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from medley_cluster.cluster import Cluster
from medley_cluster.waiting import wait_until
from medley_scenarios.pod_watch import PodWatch
from medley_scenarios.steps import change, get, settled


@dataclass(frozen=True)
class OutageReport:
    """What an outage did.

    Args:
        name: What was out.
        ready_before: Ready pods of the service when the outage began.
        fewest_kept: The fewest pods that nobody had deleted, from then until the operator had acted again.
        fewest_ready: The fewest Ready pods in that time. The cluster's node controller takes nodes that could not renew
            their Leases for not Ready, and their pods with them, until they renew; that is no scaling down.
        recovered_after_s: From the end of the outage until the operator had carried out a change of the rate.
    """

    name: str
    ready_before: int
    fewest_kept: int
    fewest_ready: int
    recovered_after_s: float


def api_server_down(cluster: Cluster, service: str, rate: float, *, for_s: float) -> OutageReport:
    """Stop the API server for a while.

    Args:
        cluster: The cluster.
        service: A settled service, by name.
        rate: What the operator is asked to serve, in requests per second, once the outage is over.
        for_s: How long the API server is down.
    """

    def outage() -> None:
        cluster.stop_apiserver()
        ends_s = time.monotonic() + for_s
        wait_until(lambda: time.monotonic() >= ends_s, for_s + 5, "the outage is over")
        cluster.start_apiserver()

    return _through(cluster, service, "API server", outage, rate)


def etcd_restarted(cluster: Cluster, service: str, rate: float) -> OutageReport:
    """Restart etcd under the running API server."""
    return _through(cluster, service, "etcd", cluster.restart_etcd, rate)


def prometheus_gone(cluster: Cluster, service: str, rate: float) -> OutageReport:
    """Stop Prometheus, and start it again at the end."""
    try:
        return _through(cluster, service, "Prometheus", cluster.stop_prometheus, rate)
    finally:
        cluster.start_prometheus()


def _through(
    cluster: Cluster,
    service: str,
    name: str,
    outage: Callable[[], None],
    rate: float,
) -> OutageReport:
    spec = {"workload": {"rate": rate}}
    with PodWatch(cluster) as pods:
        before = pods.of(service).ready_now
        pods.mark()
        outage()
        over_s = time.monotonic()
        wait_until(cluster.api.ready, 60.0, "the API server is ready")
        wait_until(lambda: change(cluster, service, spec), 60.0, "the change is accepted", tolerate=(RuntimeError,))
        wait_until(lambda: settled(get(cluster, service)), 120.0, "the operator acted", tolerate=(httpx.HTTPError,))
        recovered_after_s = time.monotonic() - over_s
        seen = pods.of(service)
        assert seen.fewest_kept is not None
        assert seen.fewest_ready is not None
        return OutageReport(name, before, seen.fewest_kept, seen.fewest_ready, recovered_after_s)
