"""What the manager writes down: copies of items, configurations, holders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medley_engine.extents import Extent
from medley_engine.layout import Layout
from medley_engine.placement import Placement
from medley_engine.topology import Topology


class UnknownNameError(KeyError):
    """No configuration or holder has this name."""


class ConflictError(RuntimeError):
    """The request contradicts what is in force."""


@dataclass
class Copy:
    """One copy of an item in a domain. ``valid`` turns True when all its bytes are there."""

    extent: Extent
    valid: bool


@dataclass
class Configuration:
    """A layout of ranks that was asked for. ``pinned`` keeps its pages even while nobody is attached. ``armed`` says
    that a standby waits at it which nobody asked for yet, so it does not count for what may be lent.
    """

    topology: Topology
    placement: Placement
    pinned: bool = True
    prepared: bool = False
    armed: bool = False
    _readers: dict[str, list[str]] = field(default_factory=dict)

    def readers(self, item: str, layout: Layout) -> list[str]:
        """Domains of the ranks that need an item."""
        if not self._readers:
            for rank in range(self.topology.ranks):
                for key in layout.rank_keys(self.topology, self.placement, rank):
                    self._readers.setdefault(key, []).append(self.topology.domain(rank))
        return self._readers.get(item, [])

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "topology": asdict(self.topology),
            "placement": self.placement.layers,
            "pinned": self.pinned,
            "prepared": self.prepared,
            "armed": self.armed,
        }

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Configuration:
        """From :meth:`dump`."""
        placement = parse_placement(raw["placement"])
        return cls(Topology(**raw["topology"]), placement, raw["pinned"], raw["prepared"], raw["armed"])


@dataclass
class Holder:
    """A rank process that maps pages. ``start_ticks`` tells it from a later process with the same id. ``borrowed``
    says in which other domain it maps an item whose copy in its own was given back.
    """

    pid: int
    start_ticks: int
    config: str
    rank: int
    blocks: set[int] = field(default_factory=set)
    borrowed: dict[str, str] = field(default_factory=dict)

    def dump(self) -> list[Any]:
        """As JSON."""
        return [self.pid, self.start_ticks, self.config, self.rank, sorted(self.blocks), self.borrowed]

    @classmethod
    def parse(cls, raw: list[Any]) -> Holder:
        """From :meth:`dump`."""
        pid, ticks, config, rank, blocks, borrowed = raw
        return cls(pid, ticks, config, rank, set(blocks), dict(borrowed))


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, or None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def parse_placement(layers: Any) -> Placement:
    """Placement from its JSON form."""
    return Placement(tuple(tuple(tuple(int(e) for e in rank) for rank in layer) for layer in layers))
