"""pytest fixtures: one cluster for the whole session, brought up on first use and removed at the end.

Load them with `pytest_plugins = ["medley_cluster.fixtures"]`. `node_cluster` is the same cluster with real nodes.
MEDLEY_TEST_CLUSTER=NAME uses (and keeps) a cluster that `python -m medley_cluster up --name NAME` made:
quicker while developing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from medley_cluster.cluster import Cluster
from medley_cluster.options import ClusterOptions
from medley_cluster.progress import Steps
from medley_cluster.real_nodes import NodesImpossibleError, RealNodes
from medley_cluster.toolchain import ToolError

KEPT_CLUSTER_VARIABLE = "MEDLEY_TEST_CLUSTER"


def _wants_real_nodes(session: pytest.Session) -> bool:
    """Whether any test that will run asks for a real node: then the cluster is brought up once, with it."""
    return any("node_cluster" in getattr(item, "fixturenames", ()) for item in session.items)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A control plane with simulated GPU nodes; skips, with the reason, where it cannot run."""
    kept = os.environ.get(KEPT_CLUSTER_VARIABLE)
    real_nodes = 1 if _wants_real_nodes(request.session) else 0
    with Steps() as steps:
        cluster = Cluster(kept or f"test-{os.getpid()}", steps)
        if kept and cluster.exists:
            yield cluster
            return
        try:
            try:
                cluster.up(ClusterOptions(real_nodes=real_nodes))
            except ToolError as error:
                pytest.skip(f"no control plane on this machine: {error}")
            yield cluster
        finally:
            if not kept:
                cluster.down()


@pytest.fixture(scope="session")
def node_cluster(cluster: Cluster) -> Cluster:
    """The session's cluster, with at least one real node; skips, with the reason, where none can run."""
    try:
        nodes: RealNodes = cluster.real_nodes()
    except (ToolError, NodesImpossibleError) as error:
        pytest.skip(f"no real node on this machine: {error}")
    if not nodes.nodes:
        cluster.up(ClusterOptions())
    return cluster


@pytest.fixture(scope="session")
def kubeconfig(cluster: Cluster) -> Path:
    """The administrator's kubeconfig of the session's cluster."""
    return cluster.kubeconfig
