"""Fixtures of the tests on a real cluster: Medley's chart installed, its samples, and operators that can be killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medley_cluster.cluster import Cluster
from medley_cluster.fixtures import cluster, kubeconfig, node_cluster  # noqa: F401
from medley_scenarios.installation import CHECKOUT, OperatorProcess, install_chart
from medley_scenarios.steps import delete_services

SAMPLES = CHECKOUT / "manifests" / "samples"


@pytest.fixture(scope="session")
def medley(cluster: Cluster) -> Cluster:  # noqa: F811
    """A cluster with CRDs, roles, sample pools and the sample profile, and no operator."""
    install_chart(cluster, replicas=0)
    for name in ("gpupools.yaml", "modelprofile-llama-3.1-8b.yaml"):
        cluster.kubectl("apply", "-f", str(SAMPLES / name))
    return cluster


@pytest.fixture
def start_operator(medley: Cluster, tmp_path: Path) -> Iterator[Callable[..., OperatorProcess]]:
    """Starts operators beside the cluster; what still runs at the end is stopped, and services are deleted."""
    started: list[OperatorProcess] = []

    def start(name: str = "operator-0", *, wait_ready: bool = True, **settings: str) -> OperatorProcess:
        operator = OperatorProcess(medley, tmp_path / f"{name}.log", name, settings)
        started.append(operator)
        operator.start(wait_ready=wait_ready)
        return operator

    yield start
    for operator in started:
        operator.stop()
    delete_services(medley)
    medley.kubectl("apply", "-f", str(SAMPLES / "gpupools.yaml"))


@pytest.fixture
def operator_process(start_operator: Callable[..., OperatorProcess]) -> OperatorProcess:
    """One ready operator beside the cluster."""
    return start_operator()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The comparison of grants with use looks back on the whole suite, so it runs last."""
    items.sort(key=lambda item: item.path.name == "test_rbac.py")
