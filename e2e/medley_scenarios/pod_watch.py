"""Every change of a service's pods, as the API server tells it: when each pod came, and how few were ever Ready.

A watch sees what polling misses: a pod that was not Ready for a tenth of a second was not Ready.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import urllib3
from kubernetes import client, config, watch

from medley_cluster.cluster import Cluster

Clock = Callable[[], float]


@dataclass
class PodHistory:
    """What was seen of one service's pods; times are `time.monotonic()` seconds.

    `fewest_ready` counts Ready pods, `fewest_kept` pods that nobody deleted, Ready or not.
    """

    ready: dict[str, bool] = field(default_factory=dict)
    first_seen_s: dict[str, float] = field(default_factory=dict)
    fewest_ready: int | None = None
    fewest_kept: int | None = None

    def saw(self, pod: str, *, ready: bool, gone: bool, now_s: float) -> None:
        """Take in one event."""
        self.first_seen_s.setdefault(pod, now_s)
        if gone:
            self.ready.pop(pod, None)
        else:
            self.ready[pod] = ready
        if self.fewest_ready is not None and self.fewest_kept is not None:
            self.fewest_ready = min(self.fewest_ready, self.ready_now)
            self.fewest_kept = min(self.fewest_kept, len(self.ready))

    def mark(self) -> None:
        """Count the fewest pods from now on."""
        self.fewest_ready, self.fewest_kept = self.ready_now, len(self.ready)

    @property
    def ready_now(self) -> int:
        """Pods that are Ready and not being deleted."""
        return sum(self.ready.values())


class PodWatch:
    """Watches all pods of Medley in the background, from entering to leaving.

    The fewest are counted from `mark()` on: a service that starts has no pods, which is no loss.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._api = client.CoreV1Api(config.new_client_from_config(str(cluster.kubeconfig)))
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._watch = watch.Watch()
        self._synced = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.services: dict[str, PodHistory] = {}

    def __enter__(self) -> PodWatch:
        self._thread.start()
        if not self._synced.wait(timeout=20.0):
            raise TimeoutError("the watch of pods did not begin")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._watch.stop()
        self._thread.join(timeout=5.0)
        self._api.api_client.close()

    def of(self, service: str) -> PodHistory:
        """What was seen of a service's pods."""
        with self._lock:
            return self.services.setdefault(service, PodHistory())

    def mark(self) -> None:
        """Count the fewest pods of every service from now on."""
        with self._lock:
            for history in self.services.values():
                history.mark()

    def _follow(self) -> None:
        version = ""
        while not self._over.is_set():
            try:
                if not version:
                    version = self._list()
                version = self._stream(version)
            except (client.ApiException, urllib3.exceptions.HTTPError, OSError):
                version = ""
                self._over.wait(0.2)

    def _list(self) -> str:
        found = self._api.list_pod_for_all_namespaces(label_selector="app.kubernetes.io/managed-by=medley")
        seen = {(pod.metadata.labels or {}).get("medley.dev/service", ""): set[str]() for pod in found.items}
        for pod in found.items:
            raw = self._api.api_client.sanitize_for_serialization(pod)
            seen[_service(raw)].add(raw["metadata"]["name"])
            self._take("ADDED", raw)
        with self._lock:
            for service, history in self.services.items():
                for name in set(history.ready) - seen.get(service, set()):
                    history.saw(name, ready=False, gone=True, now_s=time.monotonic())
        self._synced.set()
        return str(found.metadata.resource_version)

    def _stream(self, version: str) -> str:
        events = self._watch.stream(
            self._api.list_pod_for_all_namespaces,
            label_selector="app.kubernetes.io/managed-by=medley",
            resource_version=version,
            timeout_seconds=30,
        )
        for event in events:
            raw = event["raw_object"]
            version = raw["metadata"]["resourceVersion"]
            self._take(event["type"], raw)
        return version

    def _take(self, kind: str, pod: dict[str, Any]) -> None:
        conditions = pod.get("status", {}).get("conditions") or []
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        gone = kind == "DELETED" or bool(pod["metadata"].get("deletionTimestamp"))
        with self._lock:
            history = self.services.setdefault(_service(pod), PodHistory())
            history.saw(pod["metadata"]["name"], ready=ready, gone=gone, now_s=time.monotonic())


def _service(pod: dict[str, Any]) -> str:
    return str((pod["metadata"].get("labels") or {}).get("medley.dev/service", ""))
