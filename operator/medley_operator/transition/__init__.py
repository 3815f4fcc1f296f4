"""How a service gets from the replicas that it has to those it should have: a situation in, a step out.

`rules` decides; `situation` and `actions` are its words.
"""

from medley_operator.transition.actions import (
    DRAIN_COST,
    SHED_COST,
    Action,
    Delete,
    Drain,
    Ensure,
    Lower,
    Open,
    Phase,
    Probe,
    Shed,
    Step,
    Undrain,
    Watch,
)
from medley_operator.transition.rules import MAKE_ROOM_AFTER_S, step
from medley_operator.transition.situation import Deployed, Replica, ReplicaState, Situation

__all__ = [
    "DRAIN_COST",
    "MAKE_ROOM_AFTER_S",
    "SHED_COST",
    "Action",
    "Delete",
    "Deployed",
    "Drain",
    "Ensure",
    "Lower",
    "Open",
    "Phase",
    "Probe",
    "Replica",
    "ReplicaState",
    "Shed",
    "Situation",
    "Step",
    "Undrain",
    "Watch",
    "step",
]
