"""The operator's memory of the cluster: projections of the watched objects, kept up to date by events and by lists.

Two sources feed it. The watch tells every change, but a watch that breaks and starts anew does not tell what was
deleted meanwhile. A list tells what is there at one resource version, and so what is not. `replace` merges a list
into what the watch told before and since, by comparing resource versions. A kind counts as synced once it was listed;
the operator acts only while all kinds are synced.

The cache lives in the event loop's thread and is not locked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

from medley_operator.kinds import (
    DEPLOYMENTS,
    GPU_POOLS,
    LLM_SERVICES,
    MODEL_PROFILES,
    NODES,
    PODS,
    WATCHED,
    Kind,
)
from medley_operator.observe import projections
from medley_operator.observe.views import (
    DeploymentView,
    Key,
    NodeView,
    Object,
    PodView,
    PoolView,
    ProfileView,
    ServiceView,
)

TOMBSTONES = 4096
"""How many deletions are remembered, so that a list from before them does not bring the dead back."""


class View(Protocol):
    """What all projections have."""

    @property
    def key(self) -> Key:
        """Where it is kept."""

    @property
    def version(self) -> int:
        """The resource version that it shows."""


V = TypeVar("V", bound=View)
Listener = Callable[[Kind, Any, Any], None]
"""Is told the kind, and the projection before and after a change; None where there was or is none."""


class Shelf(Generic[V]):
    """All projections of one kind."""

    def __init__(self, kind: Kind, project: Callable[[Object], V | None], listener: Listener) -> None:
        self.kind = kind
        self.synced = False
        self._project = project
        self._listener = listener
        self._views: dict[Key, V] = {}
        self._deleted: dict[Key, int] = {}

    def __iter__(self) -> Iterator[V]:
        """All projections, in no particular order."""
        return iter(self._views.values())

    def __len__(self) -> int:
        return len(self._views)

    def get(self, key: Key) -> V | None:
        """The projection of the object of this name, or None."""
        return self._views.get(key)

    def by_key(self) -> Mapping[Key, V]:
        """All projections by name."""
        return self._views

    def project(self, raw: Object) -> V | None:
        """What would be kept of an object. Pure, and so to be called from any thread."""
        return self._project(raw)

    def put(self, key: Key, version: int, view: V | None) -> None:
        """Take in an object as of a resource version; older news than what is known are ignored."""
        known = self._views.get(key)
        if version < max(known.version if known else 0, self._deleted.get(key, 0)):
            return
        self._deleted.pop(key, None)
        if view is None:
            self._views.pop(key, None)
        else:
            self._views[key] = view
        if known != view:
            self._listener(self.kind, known, view)

    def put_raw(self, raw: Object) -> None:
        """Take in an object as the API server gave it."""
        self.put(key_of(raw), projections.version_of(raw), self._project(raw))

    def remove(self, key: Key, version: int) -> None:
        """Take in that an object was deleted at a resource version."""
        known = self._views.get(key)
        if known is not None and known.version > version:
            return  # deleted, and since then created anew
        self._bury(key, version)
        if known is not None:
            del self._views[key]
            self._listener(self.kind, known, None)

    def replace(self, found: Mapping[Key, tuple[int, V | None]], version: int) -> None:
        """Take in a list of everything, true at `version`: whatever is known, not newer, and not in it, is gone."""
        self.replace_some(found, version, lambda _: True)
        self.synced = True

    def replace_some(
        self, found: Mapping[Key, tuple[int, V | None]], version: int, listed: Callable[[V], bool]
    ) -> None:
        """Take in a list of those for which `listed` holds."""
        for key, (item_version, view) in found.items():
            self.put(key, item_version, view)
        gone = [
            key for key, known in self._views.items() if key not in found and known.version <= version and listed(known)
        ]
        for key in gone:
            self.remove(key, version)

    def _bury(self, key: Key, version: int) -> None:
        self._deleted.pop(key, None)
        self._deleted[key] = version
        if len(self._deleted) > TOMBSTONES:
            del self._deleted[next(iter(self._deleted))]


class ClusterCache:
    """What is known of the cluster."""

    def __init__(self, listener: Listener) -> None:
        self.services: Shelf[ServiceView] = Shelf(LLM_SERVICES, projections.service_view, listener)
        self.pools: Shelf[PoolView] = Shelf(GPU_POOLS, projections.pool_view, listener)
        self.profiles: Shelf[ProfileView] = Shelf(MODEL_PROFILES, projections.profile_view, listener)
        self.nodes: Shelf[NodeView] = Shelf(NODES, projections.node_view, listener)
        self.pods: Shelf[PodView] = Shelf(PODS, projections.pod_view, listener)
        self.deployments: Shelf[DeploymentView] = Shelf(DEPLOYMENTS, projections.deployment_view, listener)
        shelves: Iterable[Shelf[Any]] = (
            self.services,
            self.pools,
            self.profiles,
            self.nodes,
            self.pods,
            self.deployments,
        )
        self._shelves = {shelf.kind: shelf for shelf in shelves}

    def shelf(self, kind: Kind) -> Shelf[Any]:
        """The projections of a kind."""
        return self._shelves[kind]

    @property
    def synced(self) -> bool:
        """Whether every kind was listed since the watches last started."""
        return all(self._shelves[kind].synced for kind in WATCHED)

    def unsync(self) -> None:
        """The watches stopped: what is known may be out of date."""
        for shelf in self._shelves.values():
            shelf.synced = False


def key_of(raw: Object) -> Key:
    """Namespace and name of an object."""
    metadata = raw["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
