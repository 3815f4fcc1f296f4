"""The manager's book: copies of items in pools, configurations, and who is attached.

Nothing is counted twice: whether a page is in use is derived from the configurations that are pinned and the holders
that are attached. A holder is a rank process, known by its process id and start time, so its references end with it
however it ends, and survive a restart of the manager as long as it lives.

An item never loses its last copy while a configuration needs it. So a copy may be given back before the takeover, once
its only reader maps another one: see :mod:`medley_engine.memory.lending`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from medley_engine.config import DTYPE_BYTES
from medley_engine.layout import Layout
from medley_engine.memory.copies import Copies
from medley_engine.memory.leases import KvLeases
from medley_engine.memory.mapping import PAGE_BYTES
from medley_engine.memory.pools import Memory, Pool
from medley_engine.memory.records import Configuration, ConflictError, Holder, UnknownNameError, start_ticks
from medley_engine.placement import Placement, check
from medley_engine.topology import Topology
from medley_engine.transition import Transition, plan


class Store:
    """State and its rules. Every public method is called with :attr:`lock` held by the caller's thread or takes it
    itself.
    """

    def __init__(self, layout: Layout, block_tokens: int, blocks_per_rank: int, memory: Memory) -> None:
        self.layout, self._memory = layout, memory
        elements = layout.config.kv_token_elements(layout.tensor_parallel) * block_tokens
        self.block_bytes = -(-elements * DTYPE_BYTES[layout.dtype] // PAGE_BYTES) * PAGE_BYTES
        self.lock = threading.RLock()
        self.copies = Copies(layout, memory)
        self.configs: dict[str, Configuration] = {}
        self.holders: dict[str, Holder] = {}
        self.active: str | None = None
        self.kv = KvLeases(
            block_bytes=self.block_bytes,
            blocks_per_rank=blocks_per_rank,
            holders=self.holders,
            configs=lambda: self.configs,
            memory=memory,
        )

    # --- pools -------------------------------------------------------------------------------------------------

    @property
    def pools(self) -> Mapping[str, Pool]:
        """Pools by name, of weights and of KV blocks."""
        return self._memory.pools

    def pool(self, name: str) -> Pool:
        """The pool of this name, made on first use."""
        return self._memory.pool(name)

    # --- configurations ----------------------------------------------------------------------------------------

    def add_config(self, name: str, topology: Topology, placement: Placement, *, armed: bool = False) -> bool:
        """Register a target. True where it is new; the same again changes nothing.

        Raises:
            ConflictError: the name is taken by another layout.
            ValueError: the placement does not fit the model or the ranks.
        """
        check(placement, self.layout.config.experts)
        if len(placement.layers) != len(self.layout.config.moe_layers) or (
            placement.layers and placement.ranks != topology.ranks
        ):
            raise ValueError(f"placement of {placement.ranks} ranks for a topology of {topology.ranks}")
        known = self.configs.get(name)
        if known is not None:
            if (known.topology, known.placement) != (topology, placement):
                raise ConflictError(f"configuration {name} exists with another layout")
            known.pinned, known.armed = True, armed
            return False
        self.configs[name] = Configuration(topology, placement, armed=armed)
        return True

    def config(self, name: str) -> Configuration:
        """A configuration by name."""
        if name not in self.configs:
            raise UnknownNameError(name)
        return self.configs[name]

    def needs(self, name: str) -> dict[int, tuple[str, ...]]:
        """Items of each rank of a configuration."""
        config = self.config(name)
        return {
            rank: self.layout.rank_keys(config.topology, config.placement, rank)
            for rank in range(config.topology.ranks)
        }

    def plan_for(self, name: str, *, peer_allowed: bool = True) -> Transition:
        """The cheapest way to what a configuration needs from what is there."""
        config = self.config(name)
        return plan(
            residency=self.copies.residency(),
            needs=self.needs(name),
            domain_of={rank: config.topology.domain(rank) for rank in range(config.topology.ranks)},
            sizes={key: item.size_bytes for key, item in self.layout.items.items()},
            old_needs=self.needs(self.active) if self.active else None,
            peer_allowed=peer_allowed,
        )

    def commit(self, name: str) -> None:
        """Make a configuration the one in force; all others lose their pin and live only as long as their holders."""
        if not self.config(name).prepared:
            raise ConflictError(f"configuration {name} is not prepared")
        self.active = name
        for other, config in self.configs.items():
            config.pinned = other == name
        self.configs[name].armed = False
        self.collect()

    def abandon(self, name: str) -> None:
        """Drop the pin of a configuration that will not be used. The active one cannot be abandoned."""
        if name == self.active:
            raise ConflictError(f"configuration {name} is in force")
        if name in self.configs:
            self.configs[name].pinned = False
            self.collect()

    def collect(self) -> int:
        """Free every copy that no pinned or held configuration needs; returns the bytes given back."""
        held = {holder.config for holder in self.holders.values()}
        kept = {name: c for name, c in self.configs.items() if c.pinned or name in held}
        gone, self.configs = len(self.configs) - len(kept), kept
        if gone:
            self.kv.punch_beyond()
        wanted = {(domain, item) for holder in self.holders.values() for item, domain in holder.borrowed.items()}
        for name, config in self.configs.items():
            for rank, items in self.needs(name).items():
                own = config.topology.domain(rank)
                # One's own copy, also while it is being filled, and what is mapped until it is whole.
                wanted.update((domain, item) for item in items for domain in (own, self._where(own, item)) if domain)
        return self.copies.free(sorted(set(self.copies) - wanted))

    def is_wanted(self, domain: str, item: str) -> bool:
        """Whether :meth:`collect` would keep a copy; quicker for a few of them."""
        return any(held.borrowed.get(item) == domain for held in self.holders.values()) or any(
            own == domain or self._where(own, item) == domain
            for config in self.configs.values()
            for own in config.readers(item, self.layout)
        )

    def _where(self, own: str, item: str) -> str | None:
        """Domain from which an item is mapped: one's own, else the first; only a whole copy counts."""
        if self.copies.whole(own, item):
            return own
        return next(iter(self.copies.domains_of(item)), None)

    # --- holders -----------------------------------------------------------------------------------------------

    def attach(self, name: str, rank: int, holder: str, pid: int) -> list[tuple[str, str, int, int]]:
        """Register a rank process and tell where its items lie: (key, domain, offset, size) in mapping order."""
        config = self.config(name)
        if not config.prepared:
            raise ConflictError(f"configuration {name} is not prepared")
        ticks = start_ticks(pid)
        if ticks is None:
            raise UnknownNameError(f"process {pid}")
        old = self.holders.get(holder)
        blocks = old.blocks if old is not None and (old.pid, old.start_ticks) == (pid, ticks) else set()
        own = config.topology.domain(rank)
        found, borrowed = [], {}
        for key in self.needs(name)[rank]:
            domain = self._where(own, key)
            if domain is None:
                raise ConflictError(f"no copy of {key} is left")
            if domain != own:
                borrowed[key] = domain
            extent = self.copies[domain, key].extent
            found.append((key, domain, extent.offset, extent.size))
        self.holders[holder] = Holder(pid, ticks, name, rank, blocks, borrowed)
        return found

    def detach(self, holder: str) -> None:
        """Forget a rank process: its references and its KV blocks. Unknown names are no error (it may have died)."""
        gone = self.holders.pop(holder, None)
        if gone is not None:
            self.kv.punch_surplus(gone, gone.blocks)
            self.collect()
            self.kv.drop_idle()

    def arrived(self, name: str) -> list[tuple[str, str]]:
        """(domain, item) of whole copies that ranks of a configuration have at home and still map elsewhere."""
        topology = self.config(name).topology
        readers = [(topology.domain(held.rank), held) for held in self.holders.values() if held.config == name]
        return sorted((own, item) for own, held in readers for item in held.borrowed if self.copies.whole(own, item))

    def is_borrowed(self, domain: str, item: str) -> bool:
        """Whether a rank of a domain maps an item elsewhere."""
        return any(item in held.borrowed and self.domain_of(name) == domain for name, held in self.holders.items())

    def domain_of(self, holder: str) -> str:
        """A rank's own domain."""
        held = self.holder(holder)
        return self.config(held.config).topology.domain(held.rank)

    def holder(self, name: str) -> Holder:
        """An attached rank by name."""
        if name not in self.holders:
            raise UnknownNameError(name)
        return self.holders[name]

    # --- persistence -------------------------------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """Everything but holders, as JSON."""
        return {
            "copies": self.copies.dump(),
            "configs": {name: config.dump() for name, config in self.configs.items()},
            "active": self.active,
        }

    def dump_holders(self) -> dict[str, Any]:
        """Who is attached, and their KV blocks."""
        return {name: held.dump() for name, held in sorted(self.holders.items())}

    def restore(self, state: Mapping[str, Any], holders: Mapping[str, Any]) -> None:
        """Take over what a predecessor left: copies half-written are dropped, so are holders that died meanwhile."""
        self.copies.restore(state["copies"])
        self.configs = {name: Configuration.parse(raw) for name, raw in state["configs"].items()}
        self.active = state["active"]
        for name, raw in holders.items():
            held = Holder.parse(raw)
            if held.config in self.configs and start_ticks(held.pid) == held.start_ticks:
                self.holders[name] = held
        self.copies.drop_half_filled()
        for config in self.configs.values():
            config.pinned = config.pinned and config.prepared
        self.collect()
        self.kv.drop_idle()
        self.copies.punch_strays()
