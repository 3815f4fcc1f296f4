"""The API server stops, etcd restarts, Prometheus goes: nothing may be scaled down, and all recovers by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from medley_cluster.cluster import Cluster
from medley_cluster.waiting import wait_until
from medley_scenarios.pod_watch import PodWatch


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


def api_server_down(
    cluster: Cluster, service: str, change: Callable[[], Callable[[], bool]], *, for_s: float
) -> OutageReport:
    """Stop the API server for a while.

    Args:
        cluster: The cluster.
        service: A settled service, by name.
        change: Asks something of the operator once the outage is over, and returns the condition that it was done.
        for_s: How long the API server is down.
    """

    def outage() -> None:
        cluster.stop_apiserver()
        ends_s = time.monotonic() + for_s
        wait_until(lambda: time.monotonic() >= ends_s, for_s + 5, "the outage is over")
        cluster.start_apiserver()

    return _through(cluster, service, "API server", outage, change)


def etcd_restarted(cluster: Cluster, service: str, change: Callable[[], Callable[[], bool]]) -> OutageReport:
    """Restart etcd under the running API server."""
    return _through(cluster, service, "etcd", cluster.restart_etcd, change)


def prometheus_gone(cluster: Cluster, service: str, change: Callable[[], Callable[[], bool]]) -> OutageReport:
    """Stop Prometheus, and start it again at the end."""
    try:
        return _through(cluster, service, "Prometheus", cluster.stop_prometheus, change)
    finally:
        cluster.start_prometheus()


def _through(
    cluster: Cluster,
    service: str,
    name: str,
    outage: Callable[[], None],
    change: Callable[[], Callable[[], bool]],
) -> OutageReport:
    with PodWatch(cluster) as pods:
        before = pods.of(service).ready_now
        pods.mark()
        outage()
        over_s = time.monotonic()
        wait_until(cluster.api.ready, 60.0, "the API server is ready")
        done = wait_until(change, 60.0, "the change was accepted", tolerate=(httpx.HTTPError,))
        wait_until(done, 120.0, f"the operator acted after the outage of {name}", tolerate=(httpx.HTTPError,))
        recovered_after_s = time.monotonic() - over_s
        seen = pods.of(service)
        assert seen.fewest_kept is not None
        assert seen.fewest_ready is not None
        return OutageReport(name, before, seen.fewest_kept, seen.fewest_ready, recovered_after_s)
