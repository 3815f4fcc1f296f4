"""KV blocks lent to ranks: one pool per domain and tensor-parallel shard, a block lent to one rank at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from medley_engine.memory.pools import POOL_BYTES, Memory, Pool, Run
from medley_engine.memory.records import Configuration, ConflictError, Holder, UnknownNameError


class KvLeases:
    """Who has which blocks. It reads the store's holders and configurations as they are at each call."""

    def __init__(
        self,
        *,
        block_bytes: int,
        blocks_per_rank: int,
        holders: Mapping[str, Holder],
        configs: Callable[[], Mapping[str, Configuration]],
        memory: Memory,
    ) -> None:
        self.block_bytes, self._blocks_per_rank = block_bytes, blocks_per_rank
        self._holders, self._configs, self._memory = holders, configs, memory

    def pool_name(self, holder: str) -> str:
        """KV pool of a holder: one per domain and tensor-parallel shard."""
        return self._pool_of(self._holder(holder))

    def _pool_of(self, held: Holder) -> str:
        topology = self._configs()[held.config].topology
        return f"kv/{topology.domain(held.rank)}/{topology.tp_index(held.rank)}"

    def _holder(self, name: str) -> Holder:
        if name not in self._holders:
            raise UnknownNameError(name)
        return self._holders[name]

    def backed(self, holder: str) -> tuple[Pool, int]:
        """A holder's pool, ready to be mapped, and how many bytes of it: in sparse memory more than can be lent today,
        since the pool may grow while an instance runs; else what one rank may ever have.

        Raises:
            MemoryError: there is no room for it.
        """
        pool = self._memory.pool(self.pool_name(holder))
        size = POOL_BYTES if self._memory.sparse else self.block_bytes * self._blocks_per_rank
        pool.back(0, size)
        return pool, size

    def capacity(self, pool: str) -> int:
        """Blocks of a pool: those of the ranks that use it in the largest configuration that is pinned or attached to,
        so that an instance which drains gets what its sequences still need.
        """
        most, held = 0, {holder.config for holder in self._holders.values()}
        for name, config in self._configs().items():
            if config.armed or not (config.pinned or name in held):
                continue
            t = config.topology
            most = max(most, sum(f"kv/{t.domain(r)}/{t.tp_index(r)}" == pool for r in range(t.ranks)))
        return most * self._blocks_per_rank

    def _lent(self, pool: str) -> set[int]:
        return {b for held in self._holders.values() if self._pool_of(held) == pool for b in held.blocks}

    def lease(self, holder: str, count: int, exactly: Sequence[int] | None = None) -> list[int]:
        """Lend up to ``count`` free blocks, lowest first, or ``exactly`` these (a tensor-parallel follower mirrors
        its leader).

        Raises:
            ConflictError: one of the exact blocks is lent already.
        """
        held = self._holder(holder)
        pool = self._pool_of(held)
        lent = self._lent(pool)
        if exactly is not None:
            if lent & set(exactly):
                raise ConflictError(f"blocks {sorted(lent & set(exactly))} are lent already")
            given = list(exactly)
        else:
            free = (b for b in range(self.capacity(pool)) if b not in lent)
            given = [b for b, _ in zip(free, range(count), strict=False)]
        held.blocks.update(given)
        return given

    def release(self, holder: str, blocks: Iterable[int]) -> None:
        """Take blocks back.

        Raises:
            ConflictError: one of them is not lent to this holder.
        """
        held, back = self._holder(holder), set(blocks)
        if not back <= held.blocks:
            raise ConflictError(f"blocks {sorted(back - held.blocks)} are not lent to {holder}")
        held.blocks -= back
        self.punch_surplus(held, back)

    def transfer(self, source: str, target: str, blocks: Sequence[int]) -> list[int]:
        """Pass blocks from one rank to another with what is in them; zero-copy within a pool, else copied to new
        blocks.

        Returns:
            The block numbers at the target, in the order given.

        Raises:
            ConflictError: they are not the source's, or the target has no room.
        """
        giver, taker = self._holder(source), self._holder(target)
        if not set(blocks) <= giver.blocks:
            raise ConflictError(f"blocks {sorted(set(blocks) - giver.blocks)} are not lent to {source}")
        if self._pool_of(giver) == self._pool_of(taker):
            giver.blocks -= set(blocks)
            taker.blocks |= set(blocks)
            return list(blocks)
        given = self.lease(target, len(blocks))
        if len(given) < len(blocks):
            taker.blocks -= set(given)
            raise ConflictError(f"{target} has no room for {len(blocks)} blocks")
        size, here, there = self.block_bytes, *(self._memory.pool(self._pool_of(held)) for held in (giver, taker))
        for old, new in zip(blocks, given, strict=True):
            there.copy_from(new * size, Run(here, old * size, size))
        giver.blocks -= set(blocks)
        self.punch_surplus(giver, set(blocks))
        return given

    def punch_beyond(self) -> None:
        """A configuration went: give back the memory of blocks beyond what may be lent now."""
        self.drop_idle()
        for name, pool in self._memory.pools.items():
            if name.startswith("kv/") and self._memory.sparse:
                at = self.capacity(name)
                for block in [*sorted(b for b in self._lent(name) if b >= at), POOL_BYTES // self.block_bytes]:
                    if block > at:
                        pool.punch(at * self.block_bytes, (block - at) * self.block_bytes)
                    at = block + 1

    def drop_idle(self) -> None:
        """Memory that is not sparse goes as a whole, once no rank maps a pool and nobody may lend from it."""
        if self._memory.sparse:
            return
        mapped = {self._pool_of(held) for held in self._holders.values()}
        for name, pool in self._memory.pools.items():
            if name.startswith("kv/") and name not in mapped and not self.capacity(name):
                pool.punch(0, POOL_BYTES)

    def punch_surplus(self, held: Holder, blocks: set[int]) -> None:
        """Blocks beyond a pool's capacity (left over from a larger configuration) give their memory back at once."""
        if held.config not in self._configs() or not self._memory.sparse:
            return
        pool = self._pool_of(held)
        if pool in self._memory.pools:
            capacity = self.capacity(pool)
            for block in sorted(b for b in blocks if b >= capacity):
                self._memory.pools[pool].punch(block * self.block_bytes, self.block_bytes)
