"""What a step may ask for, and how far the change is (pure)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from medley_operator.transition.situation import Replica

SHED_COST = -1000
"""The deletion cost of a replica that shall go with the next lowering."""

DRAIN_COST = 1000
"""The deletion cost of a replica that is still draining: among replicas that are not Ready, it goes last."""


@dataclass(frozen=True)
class Ensure:
    """Create the Deployment, or raise it, to so many replicas."""

    deployment: str
    replicas: int


@dataclass(frozen=True)
class Probe:
    """Find out whether the pod answers a real request."""

    replica: Replica


@dataclass(frozen=True)
class Open:
    """Let requests in."""

    replica: Replica


@dataclass(frozen=True)
class Drain:
    """Mark the pod as draining and let no more requests in."""

    replica: Replica


@dataclass(frozen=True)
class Undrain:
    """Let requests in again and take the mark away."""

    replica: Replica


@dataclass(frozen=True)
class Watch:
    """Find out whether the draining pod still has requests in flight."""

    replica: Replica


@dataclass(frozen=True)
class Shed:
    """Mark the pod as the next to go when its Deployment is lowered."""

    replica: Replica
    timed_out: bool = False


@dataclass(frozen=True)
class Lower:
    """Lower the Deployment to so many replicas; those to go are marked."""

    deployment: str
    replicas: int


@dataclass(frozen=True)
class Delete:
    """Delete the Deployment, which has no replicas."""

    deployment: str


Action = Ensure | Probe | Open | Drain | Undrain | Watch | Shed | Lower | Delete


class Phase(enum.Enum):
    """How far the change is; the values are those of `status.transition.phase`."""

    ADDING = "Adding"
    DRAINING = "Draining"
    REMOVING = "Removing"
    DONE = "Done"


@dataclass(frozen=True)
class Step:
    """What to do now, in this order, and how far the change is before that.

    `wake_at_s` is when to look again at the latest, though nothing else happens.
    """

    actions: tuple[Action, ...]
    phase: Phase
    wake_at_s: float | None = None

    @property
    def removes(self) -> bool:
        """Whether an action takes serving capacity away: then it must rest on a fresh look at the cluster."""
        return any(isinstance(action, Drain | Lower | Delete) for action in self.actions)
