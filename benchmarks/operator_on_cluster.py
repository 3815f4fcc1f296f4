"""`make bench-operator`: the operator on a real control plane, measured; writes benchmarks/results/operator.json.

GPU nodes and the engines on them are simulated (KWOK); the API server, etcd, controllers and scheduler are real. The
streams run on a real
node against a stand-in for vLLM.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medley_bench.report import Report, Row
from medley_cluster.cluster import Cluster
from medley_cluster.options import ClusterOptions, SimulatedPool
from medley_cluster.progress import Steps
from medley_scenarios.applying import apply_services, idle_cost
from medley_scenarios.installation import CHECKOUT, OperatorProcess, install_chart
from medley_scenarios.killing import kill_in_migrations
from medley_scenarios.migration import migrate_under_load
from medley_scenarios.outages import api_server_down, etcd_restarted, prometheus_gone
from medley_scenarios.steps import create, delete_services, llm, wait_settled

SAMPLES = CHECKOUT / "manifests" / "samples"
POOLS = (SimulatedPool("l4", 30), SimulatedPool("a10g", 30), SimulatedPool("a100", 20), SimulatedPool("h100", 10))
MEGABYTE = 1e6
CHART_DEFAULTS = {
    "MEDLEY_PLAN_INTERVAL_SECONDS": "60",
    "MEDLEY_LEASE_DURATION_SECONDS": "15",
    "MEDLEY_RENEW_DEADLINE_SECONDS": "10",
    "MEDLEY_RETRY_PERIOD_SECONDS": "2",
}
"""What an operator costs is measured as the chart runs it; elsewhere it is made quicker, so that a run is shorter."""

STEADY = {"pools": ["a100"], "tensorParallel": [1]}
"""One variant only, so that serving more never takes a replica away."""


PARTS = ("applying", "streaming", "killing", "outages")


class Bench:
    """The cluster that everything is measured on, and the rows so far."""

    def __init__(self, cluster: Cluster, steps: Steps, logs: Path) -> None:
        self.cluster, self.steps, self.logs = cluster, steps, logs
        self.rows: list[Row] = []
        self._started: list[OperatorProcess] = []

    def start(self, name: str = "operator-0", *, wait_ready: bool = True, **settings: str) -> OperatorProcess:
        """Start an operator beside the cluster."""
        operator = OperatorProcess(self.cluster, self.logs / f"{name}.log", name, settings)
        self._started.append(operator)
        operator.start(wait_ready=wait_ready)
        return operator

    @contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        """Show progress; afterwards no operator runs and no service is left."""
        with self.steps.step(what):
            try:
                yield
            finally:
                for operator in self._started:
                    operator.stop()
                self._started.clear()
                delete_services(self.cluster, timeout_s=180.0)
                self.cluster.kubectl("apply", "-f", str(SAMPLES / "gpupools.yaml"))

    def add(self, name: str, value: float, unit: str, goal: str = "", met: bool | None = None) -> None:
        """Add a row."""
        self.rows.append(Row(name, value, unit, goal, met))


def applying(bench: Bench) -> None:
    """From apply until every planned pod exists; then what the operator costs while nothing changes."""
    with bench.measuring("apply 1 service"):
        bench.start()
        one = apply_services(bench.cluster, [llm("one")])
        bench.add("apply → all pods created, 1 service", one.seconds[0], "s")
    with bench.measuring("apply 100 services at once, then idle"):
        operator = bench.start(**CHART_DEFAULTS)
        many = apply_services(bench.cluster, [llm(f"s{n:03d}", rate=1 + n % 7) for n in range(100)])
        bench.add("apply → all pods created, 100 services at once: p50", many.percentile_s(0.5), "s")
        bench.add("apply → all pods created, 100 services at once: p99", many.percentile_s(0.99), "s")
        bench.add("pods of these 100 services", many.pods, "pods")
        for number in range(100):
            wait_settled(bench.cluster, f"s{number:03d}", timeout_s=180.0)
        idle = idle_cost(operator, services=100, over_s=60.0)
        bench.add(
            "idle with 100 services: processor", 100 * idle.cpu_share, "% of a core", "≤ 5", idle.cpu_share <= 0.05
        )
        megabytes = idle.memory_bytes / MEGABYTE
        bench.add("idle with 100 services: resident memory", megabytes, "MB", "≤ 200", megabytes <= 200)


def killing(bench: Bench, *, kills: int, seed: int) -> None:
    """Kills of the leader at random points of migrations."""
    with bench.measuring(f"kill the operator in {kills} migrations (seed {seed})"):
        done = kill_in_migrations(bench.cluster, bench.start, kills=kills, seed=seed)
    converged = sum(kill.converged for kill in done)
    enough = sum(kill.fewest_ready >= kill.needed for kill in done)
    inside = sum(kill.phase != "-" for kill in done)
    bench.add(f"killed in {kills} migrations: converged", converged, "migrations", f"{kills}", converged == kills)
    bench.add("… with as many Ready as the smaller plan needs", enough, "migrations", f"{kills}", enough == kills)
    bench.add("… killed while a transition was under way", inside, "migrations")
    bench.add("… median time of a migration with its kill", statistics.median(k.seconds for k in done), "s")


def streaming(bench: Bench, *, concurrent: int) -> None:
    """Streams on a real node through two moves of every replica."""
    with bench.measuring(f"{concurrent} concurrent streams of 10 s through two moves"):
        bench.start()
        report = migrate_under_load(bench.cluster, concurrent=concurrent, stream_s=10.0, moves=2)
    streams = report.streams
    bench.add("streams started while replicas moved twice", streams.started, "streams")
    bench.add(
        "… at once, at most", streams.most_at_once, "streams", f"≥ {concurrent}", streams.most_at_once >= concurrent
    )
    bench.add("… broken", streams.broken, "streams", "0", streams.broken == 0)
    bench.add("… failed before their first token", streams.failed, "streams", "0", streams.failed == 0)


def outages(bench: Bench, *, for_s: float) -> None:
    """Parts of the cluster fail under a running service."""
    cluster = bench.cluster
    for name, run in (
        (f"API server down for {for_s:.0f} s", lambda: api_server_down(cluster, "steady", 30.0, for_s=for_s)),
        ("etcd restarted", lambda: etcd_restarted(cluster, "steady", 30.0)),
        ("Prometheus gone", lambda: prometheus_gone(cluster, "steady", 30.0)),
    ):
        with bench.measuring(name):
            bench.start()
            create(cluster, llm("steady", rate=8.0, gpus=STEADY))
            wait_settled(cluster, "steady")
            report = run()
        lost = max(0, report.ready_before - report.fewest_kept)
        bench.add(f"{name}: replicas scaled down", lost, "replicas", "0", lost == 0)
        bench.add(f"{name}: until the next change was carried out", report.recovered_after_s, "s")


def main() -> int:
    """Measure everything, print the table, write the JSON; 1 where a goal was not met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="measure these only, keep other rows")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--outage-seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    with Steps() as steps, tempfile.TemporaryDirectory(prefix="medley-bench-") as logs:
        cluster = Cluster("bench-operator", steps)
        cluster.up(ClusterOptions(pools=POOLS, real_nodes=1))
        try:
            install_chart(cluster, replicas=0)
            cluster.kubectl("apply", "-f", str(SAMPLES / "gpupools.yaml"))
            cluster.kubectl("apply", "-f", str(SAMPLES / "modelprofile-llama-3.1-8b.yaml"))
            bench = Bench(cluster, steps, Path(logs))
            if "applying" in options.parts:
                applying(bench)
            if "streaming" in options.parts:
                streaming(bench, concurrent=options.streams)
            if "killing" in options.parts:
                killing(bench, kills=options.kills, seed=options.seed)
            if "outages" in options.parts:
                outages(bench, for_s=options.outage_seconds)
        finally:
            cluster.down()
    report = Report("operator", tuple(bench.rows))
    if set(options.parts) != set(PARTS):
        report = report.over_earlier()
    report.show()
    report.write()
    return 0 if all(row.met is not False for row in bench.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
