"""The manager's book: copies of items in pools, configurations, who is attached, and leases of KV blocks.

Nothing is counted twice: whether a page is in use is derived from the configurations that are pinned and the holders
that are attached. A holder is a rank process, known by its process id and start time, so its references end with it
however it ends, and survive a restart of the manager as long as it lives.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medley_engine.config import DTYPE_BYTES, Topology
from medley_engine.extents import Extent, ExtentAllocator
from medley_engine.layout import Layout
from medley_engine.memory.journal import Journal
from medley_engine.memory.mapping import PAGE_BYTES, Pool
from medley_engine.placement import Placement, check
from medley_engine.transition import Transition, plan

POOL_BYTES = 1 << 40
"""Address space of a pool; memory is taken only for pages that are written."""


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


@dataclass
class Holder:
    """A rank process that maps pages. ``start_ticks`` tells it from a later process with the same id."""

    pid: int
    start_ticks: int
    config: str
    rank: int
    blocks: set[int] = field(default_factory=set)


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, or None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


class Store:
    """State and its rules. Every public method is called with :attr:`lock` held by the caller's thread or takes it
    itself.
    """

    def __init__(self, layout: Layout, block_tokens: int, blocks_per_rank: int, pools: dict[str, Pool]) -> None:
        self.layout = layout
        self.block_tokens = block_tokens
        self.blocks_per_rank = blocks_per_rank
        elements = layout.config.kv_token_elements(layout.tensor_parallel) * block_tokens
        self.block_bytes = -(-elements * DTYPE_BYTES[layout.dtype] // PAGE_BYTES) * PAGE_BYTES
        self.pools = pools
        self.lock = threading.RLock()
        self.copies: dict[tuple[str, str], Copy] = {}
        self.configs: dict[str, Configuration] = {}
        self.holders: dict[str, Holder] = {}
        self.active: str | None = None
        self._allocators: dict[str, ExtentAllocator] = {}

    # --- pools -------------------------------------------------------------------------------------------------

    def pool(self, name: str) -> Pool:
        """The pool of this name, made on first use."""
        if name not in self.pools:
            self.pools[name] = Pool.create(name, POOL_BYTES)
        return self.pools[name]

    def _allocator(self, domain: str) -> ExtentAllocator:
        if domain not in self._allocators:
            taken = [copy.extent for (where, _), copy in self.copies.items() if where == domain]
            self._allocators[domain] = ExtentAllocator(POOL_BYTES, self.layout.page_bytes, taken)
        return self._allocators[domain]

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
        residency: dict[str, set[str]] = {}
        for (domain, item), copy in self.copies.items():
            if copy.valid:
                residency.setdefault(item, set()).add(domain)
        return plan(
            residency=residency,
            needs=self.needs(name),
            domain_of={rank: config.topology.domain(rank) for rank in range(config.topology.ranks)},
            sizes={key: item.size_bytes for key, item in self.layout.items.items()},
            old_needs=self.needs(self.active) if self.active else None,
            peer_allowed=peer_allowed,
        )

    def reserve(self, domain: str, item: str) -> Copy:
        """Allocate pages for a copy that will be filled; a half-filled one of a broken attempt is taken over."""
        copy = self.copies.get((domain, item))
        if copy is None:
            copy = Copy(self._allocator(domain).allocate(self.layout.items[item].size_bytes), valid=False)
            self.copies[domain, item] = copy
        return copy

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
        self.configs = {name: c for name, c in self.configs.items() if c.pinned or name in held}
        wanted = {
            (config.topology.domain(rank), item)
            for name, config in self.configs.items()
            for rank, items in self.needs(name).items()
            for item in items
        }
        freed = 0
        for key in sorted(set(self.copies) - wanted):
            copy = self.copies.pop(key)
            self._allocator(key[0]).free(copy.extent)
            self.pool(f"weights/{key[0]}").punch(copy.extent.offset, copy.extent.size)
            freed += copy.extent.size
        return freed

    # --- holders -----------------------------------------------------------------------------------------------

    def attach(self, name: str, rank: int, holder: str, pid: int) -> list[tuple[str, int, int]]:
        """Register a rank process and tell where its items lie: (key, offset, size) in mapping order."""
        config = self.config(name)
        if not config.prepared:
            raise ConflictError(f"configuration {name} is not prepared")
        ticks = start_ticks(pid)
        if ticks is None:
            raise UnknownNameError(f"process {pid}")
        old = self.holders.get(holder)
        blocks = old.blocks if old is not None and (old.pid, old.start_ticks) == (pid, ticks) else set()
        self.holders[holder] = Holder(pid, ticks, name, rank, blocks)
        domain = config.topology.domain(rank)
        found = []
        for key in self.needs(name)[rank]:
            copy = self.copies[domain, key]
            found.append((key, copy.extent.offset, copy.extent.size))
        return found

    def detach(self, holder: str) -> None:
        """Forget a rank process: its references and its KV blocks. Unknown names are no error (it may have died)."""
        gone = self.holders.pop(holder, None)
        if gone is not None:
            self._punch_surplus(gone, gone.blocks)
            self.collect()

    # --- KV blocks ---------------------------------------------------------------------------------------------

    def kv_pool_name(self, holder: str) -> str:
        """KV pool of a holder: one per domain and tensor-parallel shard."""
        held = self._holder(holder)
        return self._kv_name(held)

    def _kv_name(self, held: Holder) -> str:
        topology = self.configs[held.config].topology
        return f"kv/{topology.domain(held.rank)}/{topology.tp_index(held.rank)}"

    def _holder(self, name: str) -> Holder:
        if name not in self.holders:
            raise UnknownNameError(name)
        return self.holders[name]

    def kv_capacity(self, pool: str) -> int:
        """Blocks of a pool: those of the ranks that use it in the active or the largest pinned configuration."""
        most = 0
        for config in self.configs.values():
            if not config.pinned or config.armed:
                continue
            t = config.topology
            most = max(most, sum(f"kv/{t.domain(r)}/{t.tp_index(r)}" == pool for r in range(t.ranks)))
        return most * self.blocks_per_rank

    def _leased(self, pool: str) -> set[int]:
        return {b for held in self.holders.values() if self._kv_name(held) == pool for b in held.blocks}

    def kv_lease(self, holder: str, count: int, exactly: Sequence[int] | None = None) -> list[int]:
        """Lend up to ``count`` free blocks, lowest first, or ``exactly`` these (a tensor-parallel follower mirrors
        its leader).

        Raises:
            ConflictError: one of the exact blocks is lent already.
        """
        held = self._holder(holder)
        pool = self._kv_name(held)
        leased = self._leased(pool)
        if exactly is not None:
            if leased & set(exactly):
                raise ConflictError(f"blocks {sorted(leased & set(exactly))} are lent already")
            given = list(exactly)
        else:
            free = (b for b in range(self.kv_capacity(pool)) if b not in leased)
            given = [b for b, _ in zip(free, range(count), strict=False)]
        held.blocks.update(given)
        return given

    def kv_release(self, holder: str, blocks: Iterable[int]) -> None:
        """Take blocks back."""
        held, back = self._holder(holder), set(blocks)
        if not back <= held.blocks:
            raise ConflictError(f"blocks {sorted(back - held.blocks)} are not lent to {holder}")
        held.blocks -= back
        self._punch_surplus(held, back)

    def kv_transfer(self, source: str, target: str, blocks: Sequence[int]) -> list[int]:
        """Pass blocks from one rank to another with what is in them; zero-copy within a pool, else copied to new
        blocks.

        Returns:
            The block numbers at the target, in the order given.
        """
        giver, taker = self._holder(source), self._holder(target)
        if not set(blocks) <= giver.blocks:
            raise ConflictError(f"blocks {sorted(set(blocks) - giver.blocks)} are not lent to {source}")
        if self._kv_name(giver) == self._kv_name(taker):
            giver.blocks -= set(blocks)
            taker.blocks |= set(blocks)
            return list(blocks)
        given = self.kv_lease(target, len(blocks))
        if len(given) < len(blocks):
            taker.blocks -= set(given)
            raise ConflictError(f"{target} has no room for {len(blocks)} blocks")
        self._copy_blocks(self.pool(self._kv_name(giver)), self.pool(self._kv_name(taker)), blocks, given)
        giver.blocks -= set(blocks)
        self._punch_surplus(giver, set(blocks))
        return given

    def _copy_blocks(self, source: Pool, target: Pool, blocks: Sequence[int], given: Sequence[int]) -> None:
        for old, new in zip(blocks, given, strict=True):
            data = os.pread(source.fd, self.block_bytes, old * self.block_bytes)
            os.pwrite(target.fd, data, new * self.block_bytes)

    def _punch_surplus(self, held: Holder, blocks: set[int]) -> None:
        """Blocks beyond a pool's capacity (left over from a larger configuration) give their memory back at once."""
        if held.config not in self.configs:
            return
        pool = self._kv_name(held)
        if pool in self.pools:
            capacity = self.kv_capacity(pool)
            for block in sorted(b for b in blocks if b >= capacity):
                self.pools[pool].punch(block * self.block_bytes, self.block_bytes)

    # --- persistence -------------------------------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """Everything but KV leases, as JSON."""
        return {
            "copies": [[d, i, c.extent.offset, c.extent.size, c.valid] for (d, i), c in sorted(self.copies.items())],
            "configs": {
                name: {
                    "topology": asdict(c.topology),
                    "placement": c.placement.layers,
                    "pinned": c.pinned,
                    "prepared": c.prepared,
                    "armed": c.armed,
                }
                for name, c in self.configs.items()
            },
            "active": self.active,
        }

    def dump_holders(self) -> dict[str, Any]:
        """Who is attached, and their KV blocks."""
        return {
            name: [h.pid, h.start_ticks, h.config, h.rank, sorted(h.blocks)] for name, h in sorted(self.holders.items())
        }

    def restore(self, state: Mapping[str, Any], holders: Mapping[str, Any]) -> None:
        """Take over what a predecessor left: copies half-written are dropped, so are holders that died meanwhile."""
        for domain, item, offset, size, valid in state["copies"]:
            self.copies[domain, item] = Copy(Extent(offset, size), valid)
        for name, raw in state["configs"].items():
            self.configs[name] = Configuration(
                Topology(**raw["topology"]),
                parse_placement(raw["placement"]),
                raw["pinned"],
                raw["prepared"],
                raw["armed"],
            )
        self.active = state["active"]
        for name, (pid, ticks, config, rank, blocks) in holders.items():
            if config in self.configs and start_ticks(pid) == ticks:
                self.holders[name] = Holder(pid, ticks, config, rank, set(blocks))
        for key in sorted(key for key, copy in self.copies.items() if not copy.valid):
            copy = self.copies.pop(key)
            self.pool(f"weights/{key[0]}").punch(copy.extent.offset, copy.extent.size)
        for config in self.configs.values():
            config.pinned = config.pinned and config.prepared
        self.collect()


def parse_placement(layers: Any) -> Placement:
    """Placement from its JSON form."""
    return Placement(tuple(tuple(tuple(int(e) for e in rank) for rank in layer) for layer in layers))


def open_journals(fds: Mapping[str, int]) -> tuple[Journal, Journal, bool]:
    """The two journals (pages; holders), new or taken over. The flag tells whether they are new."""
    if "journal/pages" in fds and "journal/holders" in fds:
        return Journal(fds["journal/pages"]), Journal(fds["journal/holders"]), False
    return Journal.create("pages"), Journal.create("holders"), True
