"""The configuration in force, and the state file from which a new coordinator learns it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medley_engine import operations as ops
from medley_engine.memory.records import parse_placement
from medley_engine.placement import Placement


@dataclass
class InForce:
    """What serves: a configuration of the manager, its size and placement, and the instance attached to it.

    ``generation`` grows with every commit.
    """

    size: int
    generation: int = 0
    config: str = ""
    placement: Placement | None = None
    active_id: str = ""

    def next_config(self, size: int, purpose: str) -> str:
        """Name of a configuration that may follow this one."""
        return f"g{self.generation + 1}-dp{size}-{purpose}"

    def adopt(self, config: str, size: int, placement: Placement, instance_id: str) -> None:
        """Put another configuration in force; it counts from the next write of the state file on."""
        self.config, self.size, self.placement, self.active_id = config, size, placement, instance_id
        self.generation += 1


class StateFile:
    """What a new coordinator must know, replaced atomically. The write of a new configuration is the commit.

    It must survive the coordinator, not the machine: whatever ends the supervisor ends the engines too, and the next
    supervisor starts from nothing. So it is renamed into place but not flushed to the disk, which would cost an
    operation more than its pages do.
    """

    def __init__(self, run_path: Path) -> None:
        self._path = run_path / "state.json"

    def load(self) -> dict[str, Any]:
        """The last state, or an empty one."""
        return json.loads(self._path.read_text()) if self._path.exists() else {}

    def store(
        self, in_force: InForce, instances: Iterable[tuple[str, int]], operations: Mapping[str, ops.Operation]
    ) -> None:
        """Write beside and rename: a reader sees the old state or the new one."""
        if in_force.placement is None:
            return
        state = {
            "generation": in_force.generation,
            "config": in_force.config,
            "size": in_force.size,
            "placement": in_force.placement.layers,
            "active": in_force.active_id,
            "instances": list(instances),
            "operations": [
                {**ops.dump(operation), "since": dict(operation.since), "details": {}}
                for operation in operations.values()
            ],
        }
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps(state))
        beside.replace(self._path)


def parse_state(state: Mapping[str, Any]) -> tuple[InForce, dict[str, ops.Operation]]:
    """What :meth:`StateFile.store` wrote."""
    in_force = InForce(
        size=state["size"],
        generation=state["generation"],
        config=state["config"],
        placement=parse_placement(state["placement"]),
        active_id=state["active"],
    )
    return in_force, {raw["id"]: ops.parse(raw) for raw in state["operations"]}
