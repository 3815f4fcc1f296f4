"""Many services at once: how long from apply until every planned pod exists, and what the operator costs when idle."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from medley_cluster.cluster import Cluster
from medley_cluster.waiting import wait_until
from medley_scenarios.installation import OperatorProcess
from medley_scenarios.pod_watch import PodWatch
from medley_scenarios.steps import PATH, create


@dataclass(frozen=True)
class Applied:
    """Seconds from apply until the last planned pod of each service existed, sorted."""

    seconds: tuple[float, ...]
    pods: int

    def percentile_s(self, share: float) -> float:
        """The time within which this share of the services had all pods."""
        return self.seconds[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


@dataclass(frozen=True)
class IdleCost:
    """What an operator takes while nothing changes."""

    cpu_share: float
    memory_bytes: int
    services: int


def apply_services(cluster: Cluster, services: list[dict[str, Any]], *, timeout_s: float = 180.0) -> Applied:
    """Create services, eight at a time, and wait until every planned pod of each exists."""
    applied_s: dict[str, float] = {}

    def apply(manifest: dict[str, Any]) -> None:
        applied_s[manifest["metadata"]["name"]] = time.monotonic()
        create(cluster, manifest)

    with PodWatch(cluster) as pods:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(apply, services))
        wanted = _wait_for_pods(cluster, pods, set(applied_s), timeout_s)
        seconds = []
        for name, count in wanted.items():
            arrivals = sorted(pods.of(name).first_seen_s.values())
            seconds.append(arrivals[count - 1] - applied_s[name])
    return Applied(tuple(sorted(seconds)), sum(wanted.values()))


def _wait_for_pods(cluster: Cluster, pods: PodWatch, names: set[str], timeout_s: float) -> dict[str, int]:
    def all_there() -> dict[str, int] | None:
        items = cluster.api.get(PATH)["items"]
        wanted = {
            item["metadata"]["name"]: sum(entry["replicas"] for entry in item["status"]["plan"].get("entries", []))
            for item in items
            if item["metadata"]["name"] in names and item.get("status", {}).get("plan")
        }
        there = all(0 < count <= len(pods.of(name).first_seen_s) for name, count in wanted.items())
        return wanted if names <= set(wanted) and there else None

    return wait_until(all_there, timeout_s, "every planned pod exists", tolerate=(httpx.HTTPError,))


def idle_cost(operator: OperatorProcess, *, services: int, over_s: float) -> IdleCost:
    """Measure the operator's processor share and resident memory over a while in which nothing changes."""
    usage = operator.usage()
    started, started_s = usage.cpu_times(), time.monotonic()
    wait_until(lambda: time.monotonic() - started_s >= over_s, over_s + 5, "the time of measurement is over")
    ended, elapsed_s = usage.cpu_times(), time.monotonic() - started_s
    busy_s = ended.user + ended.system - started.user - started.system
    return IdleCost(busy_s / elapsed_s, usage.memory_info().rss, services)
