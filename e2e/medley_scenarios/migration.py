"""A service on the real node moves to new replicas, again and again, under streams that are all read to their end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from medley_cluster.cluster import Cluster
from medley_cluster.waiting import wait_until
from medley_scenarios.steps import MODEL, change, get, settled, wait_settled
from medley_scenarios.streaming import BackgroundStreams, StreamLoad, StreamReport

NAME = "streams"
POOL = "real-node"


@dataclass(frozen=True)
class MigrationReport:
    """What became of the streams, how many moves were completed, and the fewest streams open when one began."""

    streams: StreamReport
    moves: int
    open_when_moved: int


def migrate_under_load(cluster: Cluster, *, concurrent: int, stream_s: float, moves: int) -> MigrationReport:
    """Serve on the real node, keep streams open, and replace every replica `moves` times."""
    tokens = max(2, int(stream_s / 0.1))
    for manifest in (_pool(), _service(tokens)):
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    wait_settled(cluster, NAME)
    spec = cluster.get_json("service", NAME)["spec"]
    url = f"http://{spec['clusterIP']}:{spec['ports'][0]['port']}"
    load = StreamLoad(url, MODEL, concurrent=concurrent, tokens=tokens, stream_s=stream_s)
    open_when_moved = concurrent
    with BackgroundStreams(load) as streams:
        for number in range(moves):
            wait_until(lambda: streams.open_streams >= 0.8 * concurrent, stream_s * 6, "the streams are open")
            open_when_moved = min(open_when_moved, streams.open_streams)
            before = _deployments(cluster)
            environment = [{"name": "MEDLEY_REVISION", "value": str(number + 1)}]
            change(cluster, NAME, {"engine": {"env": environment}})
            _wait_moved(cluster, before, 120.0 + 3 * stream_s)
    return MigrationReport(streams.report, moves, open_when_moved)


def _wait_moved(cluster: Cluster, old: set[str], timeout_s: float) -> None:
    def moved() -> bool:
        return settled(get(cluster, NAME)) and not old & _deployments(cluster)

    wait_until(moved, timeout_s, lambda: f"the replicas moved: {get(cluster, NAME).get('status')}")


def _pool() -> dict[str, Any]:
    return {
        "apiVersion": "medley.dev/v1alpha1",
        "kind": "GPUPool",
        "metadata": {"name": POOL},
        "spec": {
            "gpu": {"type": "T4"},
            "gpusPerNode": 8,
            "pricePerGPUHour": 0.526,
            "loadSeconds": 5,
            "nodeSelector": {"medley.dev/node": "real"},
        },
    }


def _service(tokens: int) -> dict[str, Any]:
    return {
        "apiVersion": "medley.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": NAME, "namespace": "default"},
        "spec": {
            "model": {"name": MODEL, "profile": "llama-3.1-8b", "maxContextTokens": 4096},
            "engine": {
                "image": "medley.local/vllm-standin:v0.10.2",
                "args": ["--inter-token-latency=100ms", "--time-to-first-token=50ms", "--max-num-seqs=512"],
                "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
            },
            "objectives": {"timePerOutputToken": {"milliseconds": 250}},
            "workload": {
                "rate": 0.2,
                "sizes": {"histogram": [{"inputTokens": 64, "outputTokens": tokens, "weight": 1}]},
            },
            "gpus": {"pools": [POOL], "tensorParallel": [2]},
            "scaling": {"minReplicas": 2, "maxReplicas": 2},
            "disruption": {"drainTimeoutSeconds": 60},
        },
    }


def _deployments(cluster: Cluster) -> set[str]:
    items = cluster.get_json("deployments", "-l", f"medley.dev/service={NAME}")["items"]
    return {item["metadata"]["name"] for item in items}
