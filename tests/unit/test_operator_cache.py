"""The cache: what watches tell and what lists tell, in any order."""

from __future__ import annotations

from typing import Any

from medley_operator.cache import ClusterCache
from medley_operator.kinds import NODES, PODS, WATCHED
from medley_operator.observe.projections import pod_view
from medley_operator.observe.views import Gate


def node(name: str, version: int, gpus: int = 8) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": name, "resourceVersion": str(version)},
        "spec": {},
        "status": {
            "allocatable": {"nvidia.com/gpu": str(gpus), "cpu": "4"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def listed(cache: ClusterCache, *nodes: dict[str, Any], version: int) -> None:
    shelf = cache.nodes
    shelf.replace(
        {("", raw["metadata"]["name"]): (int(raw["metadata"]["resourceVersion"]), shelf.project(raw)) for raw in nodes},
        version,
    )


def make() -> tuple[ClusterCache, list[tuple[Any, Any]]]:
    changes: list[tuple[Any, Any]] = []
    return ClusterCache(lambda kind, before, after: changes.append((before, after))), changes


def test_only_changes_that_matter_are_told() -> None:
    cache, changes = make()
    cache.nodes.put_raw(node("a", 1))
    cache.nodes.put_raw(node("a", 2))
    assert len(changes) == 1
    cache.nodes.put_raw(node("a", 3, gpus=7))
    assert len(changes) == 2
    view = cache.nodes.get(("", "a"))
    assert view is not None
    assert (view.version, view.resources) == (3, {"nvidia.com/gpu": 7})


def test_older_news_are_ignored() -> None:
    cache, _ = make()
    cache.nodes.put_raw(node("a", 5, gpus=5))
    cache.nodes.put_raw(node("a", 4, gpus=4))
    view = cache.nodes.get(("", "a"))
    assert view is not None
    assert view.resources == {"nvidia.com/gpu": 5}


def test_a_list_tells_what_was_deleted_while_the_watch_was_broken() -> None:
    cache, changes = make()
    cache.nodes.put_raw(node("gone", 1))
    cache.nodes.put_raw(node("here", 2))
    listed(cache, node("here", 2), version=9)
    assert [view.name for view in cache.nodes] == ["here"]
    assert changes[-1][1] is None


def test_a_list_does_not_take_away_what_came_after_it() -> None:
    cache, _ = make()
    cache.nodes.put_raw(node("new", 12))
    listed(cache, version=9)
    assert [view.name for view in cache.nodes] == ["new"]


def test_a_list_from_before_a_deletion_does_not_bring_the_dead_back() -> None:
    cache, _ = make()
    cache.nodes.put_raw(node("a", 1))
    cache.nodes.remove(("", "a"), 10)
    listed(cache, node("a", 1), version=9)
    assert list(cache.nodes) == []
    cache.nodes.put_raw(node("a", 11))
    assert [view.name for view in cache.nodes] == ["a"]


def test_a_deletion_from_before_a_new_object_of_the_name_is_ignored() -> None:
    cache, _ = make()
    cache.nodes.put_raw(node("a", 11))
    cache.nodes.remove(("", "a"), 10)
    assert len(cache.nodes) == 1


def test_it_is_synced_once_every_kind_was_listed_and_until_the_watches_stop() -> None:
    cache, _ = make()
    for kind in WATCHED:
        assert not cache.synced
        cache.shelf(kind).replace({}, 1)
    assert cache.synced
    cache.unsync()
    assert not cache.synced


def test_pods_without_gpus_and_nodes_without_gpus_are_not_kept() -> None:
    cache, changes = make()
    plain = {
        "metadata": {"namespace": "x", "name": "p", "uid": "u", "resourceVersion": "1"},
        "spec": {"containers": [{}]},
    }
    cache.shelf(PODS).put_raw(plain)
    cache.shelf(NODES).put_raw(node("cpu-only", 1, gpus=0))
    assert (len(cache.pods), len(cache.nodes), changes) == (0, 0, [])


def replica(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "default",
            "name": "chat-l4-tp1-abc-hash-x",
            "uid": "u",
            "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "app.kubernetes.io/managed-by": "medley",
                "medley.dev/service": "chat",
                "medley.dev/pool": "l4",
                "pod-template-hash": "hash",
            },
            "annotations": {},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "chat-l4-tp1-abc-hash"}],
        },
        "spec": {
            "nodeName": "n",
            "containers": [
                {
                    "name": "engine",
                    "ports": [{"containerPort": 8000}],
                    "resources": {"limits": {"nvidia.com/gpu": "2"}},
                },
                {"name": "side", "resources": {"requests": {"nvidia.com/gpu": "1"}}},
            ],
            "initContainers": [{"name": "init", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
        },
        "status": {"phase": "Running", **status},
    }


def test_a_replica_is_read_from_its_conditions() -> None:
    conditions = [
        {"type": "ContainersReady", "status": "True"},
        {"type": "Ready", "status": "False"},
        {"type": "medley.dev/serving", "status": "False", "lastTransitionTime": "2026-01-01T00:00:05Z"},
    ]
    view = pod_view(replica(conditions=conditions, podIP="10.0.0.1"))
    assert view is not None
    assert (view.service, view.pool, view.deployment) == ("chat", "l4", "chat-l4-tp1-abc")
    assert view.requests == (("nvidia.com/gpu", 3),)
    assert (view.containers_ready, view.ready, view.gate) == (True, False, Gate.CLOSED)
    assert view.gate_changed_s - view.created_s == 5.0
    assert (view.address, view.port) == ("10.0.0.1", 8000)


def test_trouble_is_what_is_no_part_of_a_normal_start() -> None:
    def waiting(reason: str) -> str:
        view = pod_view(replica(containerStatuses=[{"restartCount": 2, "state": {"waiting": {"reason": reason}}}]))
        assert view is not None
        return view.trouble

    assert waiting("ContainerCreating") == ""
    assert waiting("CrashLoopBackOff") == "CrashLoopBackOff"
