"""What the cluster is made of fails: nothing is scaled down, and the operator goes on by itself afterwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medley_cluster.cluster import Cluster
from medley_scenarios.outages import OutageReport, api_server_down, etcd_restarted, prometheus_gone
from medley_scenarios.steps import create, llm, wait_settled

pytestmark = pytest.mark.cluster

OUTAGES: dict[str, Callable[[Cluster, str, float], OutageReport]] = {
    "API server": lambda cluster, name, rate: api_server_down(cluster, name, rate, for_s=10.0),
    "etcd": etcd_restarted,
    "Prometheus": prometheus_gone,
}


@pytest.mark.parametrize("outage", sorted(OUTAGES))
def test_nothing_is_scaled_down_and_the_operator_recovers(
    medley: Cluster, operator_process: object, outage: str
) -> None:
    if outage == "Prometheus" and medley.prometheus_url is None:
        pytest.skip("no Prometheus on this machine")
    create(medley, llm("steady", rate=8.0, gpus={"pools": ["a100"], "tensorParallel": [1]}))
    wait_settled(medley, "steady")
    report = OUTAGES[outage](medley, "steady", 30.0)
    assert report.ready_before > 0
    assert report.fewest_kept >= report.ready_before
    wait_settled(medley, "steady")
