"""The operator's own Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from medley_operator.kinds import Kind
from medley_operator.kube import KubeError


class Metrics:
    """All metrics of one operator process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.plan_duration_seconds = Histogram(
            "medley_plan_duration_seconds",
            "Time to plan the whole fleet",
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
            registry=registry,
        )
        self.plan_gap_ratio = Gauge(
            "medley_plan_gap_ratio", "Largest proven distance of the fleet's plan from the optimum", registry=registry
        )
        self.plan_failures_total = Counter(
            "medley_plan_failures_total", "Attempts to plan that ended in an error", registry=registry
        )
        self.service_cost = Gauge(
            "medley_service_cost_dollars_per_hour",
            "Price of the mix that a service is to have",
            ["namespace", "service"],
            registry=registry,
        )
        self.service_replicas = Gauge(
            "medley_service_replicas",
            "Replicas of a service by state",
            ["namespace", "service", "state"],
            registry=registry,
        )
        self.transitions_total = Counter(
            "medley_transitions_total", "Changes of replicas that ended", ["reason", "outcome"], registry=registry
        )
        self.api_errors_total = Counter(
            "medley_api_errors_total",
            "Calls to the API server that failed",
            ["verb", "resource", "code"],
            registry=registry,
        )
        self.pool_gpus = Gauge("medley_pool_gpus", "GPUs of a pool by state", ["pool", "state"], registry=registry)
        self.leader = Gauge("medley_leader", "Whether this process leads", registry=registry)
        self.synced = Gauge("medley_caches_synced", "Whether all caches are up to date", registry=registry)
        self.loop_lag_seconds = Gauge(
            "medley_loop_lag_seconds", "How late the event loop woke up when it was last measured", registry=registry
        )

    def count_api_error(self, verb: str, kind: Kind, error: KubeError) -> None:
        """Count a failed call. A conflict or an object that is gone is part of the normal course, and counted too."""
        self.api_errors_total.labels(verb, str(kind), str(error.code) if error.code else error.reason).inc()

    def forget_service(self, namespace: str, service: str) -> None:
        """Drop the series of a service that is no more."""
        self.service_cost.remove_by_labels({"namespace": namespace, "service": service})
        self.service_replicas.remove_by_labels({"namespace": namespace, "service": service})

    def forget_pool(self, pool: str) -> None:
        """Drop the series of a pool that is no more."""
        self.pool_gpus.remove_by_labels({"pool": pool})
