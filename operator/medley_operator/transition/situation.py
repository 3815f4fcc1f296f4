"""What a step depends on: the target, the Deployments that are there, and where each replica is in its life (pure)."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class ReplicaState(enum.IntEnum):
    """Where a replica is in its life; the order is that in which surplus replicas go."""

    PENDING = 0
    LOADING = 1
    LOADED = 2
    DRAINING = 3
    SERVING = 4
    LEAVING = 5


@dataclass(frozen=True)
class Replica:
    """One pod of a service.

    Args:
        name: The pod's name.
        uid: Tells it from a later pod of the same name.
        deployment: The Deployment that it belongs to.
        state: Where it is in its life.
        created_s: When it was made.
        gate_open: Whether its gate lets requests in, which for a moment may disagree with `state`.
        draining_since_s: While DRAINING: when its gate was closed.
        deletion_cost: As marked on the pod.
        no_room_since_s: Since when the scheduler has found no node for it; None where that is not so.
        leaving_node: Its node is being emptied, so that it had better go before others.
    """

    name: str
    uid: str
    deployment: str
    state: ReplicaState
    created_s: float = 0.0
    gate_open: bool = False
    draining_since_s: float = 0.0
    deletion_cost: int = 0
    no_room_since_s: float | None = None
    leaving_node: bool = False


@dataclass(frozen=True)
class Deployed:
    """One Deployment of a service as it is."""

    name: str
    pool: str
    replicas: int


@dataclass(frozen=True)
class Situation:
    """All that a step depends on.

    Args:
        target: Replicas by Deployment name; those without replicas left out.
        pools: The pool of every Deployment in `target`.
        deployments: What is there.
        replicas: The pods that are there, those that ended left out.
        probed: Uids of pods that answered a real request.
        idle: Uids of draining pods that were seen to have no request in flight.
        floor: Replicas in the smaller one of the mixes before and after: so many are to serve all the time.
        drain_timeout_s: So long a draining pod may take.
        now_s: The time, on the clock of the other times.
    """

    target: Mapping[str, int]
    pools: Mapping[str, str]
    deployments: tuple[Deployed, ...]
    replicas: tuple[Replica, ...]
    probed: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    floor: int = 0
    drain_timeout_s: float = 300.0
    now_s: float = 0.0
