"""What the operator keeps of an object. Raw objects are never kept, they are a hundred times as large.

`version` (the resource version) does not take part in comparison: two views are equal where no decision could tell them
apart, so that heartbeats and other people's annotations wake nobody. `projections.py` makes them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.llmservice_status import LLMServiceStatus
from medley_operator.api.modelprofile import ModelProfile
from medley_planner.fleet import Parallelism

Object = Mapping[str, Any]
Key = tuple[str, str]
"""Namespace (empty for cluster-scoped objects) and name."""


@dataclass(frozen=True)
class NodeView:
    """A node: its GPUs, and whether pods can be placed there."""

    name: str
    version: int = field(compare=False)
    labels: Mapping[str, str]
    taints: tuple[tuple[str, str, str], ...]
    """(key, value, effect), without those that follow from `ready` and `schedulable`."""
    resources: Mapping[str, int]
    """Allocatable extended resources."""
    ready: bool
    schedulable: bool

    @property
    def key(self) -> Key:
        """Where the cache keeps it."""
        return "", self.name


class Gate(enum.Enum):
    """The state of a pod's readiness gate."""

    UNSET = "Unset"
    OPEN = "Open"
    CLOSED = "Closed"


@dataclass(frozen=True)
class PodView:
    """A pod that holds or wants GPUs: a replica of a service, or somebody else's."""

    namespace: str
    name: str
    uid: str
    version: int = field(compare=False)
    node: str
    phase: str
    deleting: bool
    requests: tuple[tuple[str, int], ...]
    """Requests for extended resources, sorted."""
    service: str = ""
    """`medley.dev/service` of a replica; empty for pods of others."""
    pool: str = ""
    """The GPUPool of a replica."""
    deployment: str = ""
    created_s: float = 0.0
    scheduled: bool = False
    unschedulable: str = ""
    """Why the scheduler finds no node; empty where it did not say so."""
    containers_ready: bool = False
    ready: bool = False
    gate: Gate = Gate.UNSET
    gate_changed_s: float = 0.0
    draining: str = ""
    """The transition that drains it; empty where none does."""
    deletion_cost: int = 0
    address: str = ""
    port: int = 0
    trouble: str = ""
    """Why a container waits, where that is no part of a normal start: `CrashLoopBackOff`, `ErrImagePull`, …"""
    restarts: int = 0

    @property
    def key(self) -> Key:
        """Where the cache keeps it."""
        return self.namespace, self.name

    @property
    def finished(self) -> bool:
        """Whether it ended for good and holds nothing any more."""
        return self.phase in {"Succeeded", "Failed"}


@dataclass(frozen=True)
class DeploymentView:
    """A Deployment of a service's variant."""

    namespace: str
    name: str
    uid: str
    version: int = field(compare=False)
    owner_uid: str
    pool: str
    parallelism: Parallelism
    replicas: int
    generation: int
    deleting: bool
    service: str = ""

    @property
    def key(self) -> Key:
        """Where the cache keeps it."""
        return self.namespace, self.name


@dataclass(frozen=True)
class ServiceView:
    """An LLMService: its specification, and the status that was last written."""

    namespace: str
    name: str
    uid: str
    version: int = field(compare=False)
    generation: int
    deleting: bool
    llm: LLMService | None
    """None where the stored specification does not parse (written under another release's CRD)."""
    parse_error: str
    status: LLMServiceStatus

    @property
    def key(self) -> Key:
        """Where the cache keeps it."""
        return self.namespace, self.name

    @property
    def id(self) -> str:
        """`namespace/name`: its name in the planner's fleet."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class PoolView:
    """A GPUPool."""

    name: str
    uid: str
    version: int = field(compare=False)
    generation: int
    pool: GPUPool | None
    parse_error: str

    @property
    def key(self) -> Key:
        """Where the cache keeps it."""
        return "", self.name


@dataclass(frozen=True)
class ProfileView:
    """A ModelProfile."""

    name: str
    uid: str
    version: int = field(compare=False)
    generation: int
    profile: ModelProfile | None
    parse_error: str

    @property
    def key(self) -> Key:
        """Where the cache keeps it."""
        return "", self.name
