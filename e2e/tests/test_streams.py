"""Streams on a real node, through the Service, while the replicas under them are replaced."""

from __future__ import annotations

import pytest

from medley_cluster.cluster import Cluster
from medley_scenarios.migration import migrate_under_load

pytestmark = [pytest.mark.cluster, pytest.mark.node]


def test_no_stream_breaks_while_replicas_move_twice(node_cluster: Cluster, operator_process: object) -> None:
    report = migrate_under_load(node_cluster, concurrent=40, stream_s=5.0, moves=2)
    assert report.streams.most_at_once >= 30, "the load was not what was asked for"
    assert report.moves == 2
    assert report.streams.started == report.streams.finished, dict(report.streams.errors)
    assert (report.streams.broken, report.streams.failed) == (0, 0)
    assert report.open_when_moved >= 20, "nothing streamed while replicas moved"
