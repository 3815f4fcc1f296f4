"""Items that a rank maps in a memory which is not its own, for a while.

Before a switch, an expert that leaves a rank's memory is *borrowed* where it goes and its old copy *given back*. After
a switch, a rank has mapped where they were the items that its own memory did not hold; as copies of them arrive, it
maps these at *home* and says that it is *settled*, so that the foreign copies go. In both, the first request tells
where to map, the second that it was done: between the two, the item lies in both memories.
"""

from __future__ import annotations

from collections.abc import Sequence

from medley_engine.memory.store import Store

Found = list[tuple[str, str, int, int]]
"""Where items lie: (key, domain, offset, size)."""


class Lending:
    """Moves of one store's holders. Every method is called with the store's lock held."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def _place(self, item: str, domain: str) -> tuple[str, str, int, int]:
        extent = self._store.copies[domain, item].extent
        return item, domain, extent.offset, extent.size

    def borrow(self, holder: str, items: Sequence[str]) -> Found:
        """Where a holder may map items instead of in its own domain, for those of which another whole copy exists.
        From then on that copy stays as long as the holder does.
        """
        held, own = self._store.holder(holder), self._store.domain_of(holder)
        found = []
        for item in items:
            others = [domain for domain in self._store.copies.domains_of(item) if domain != own]
            if others:
                held.borrowed[item] = others[0]
                found.append(self._place(item, others[0]))
        return found

    def give_back(self, holder: str, items: Sequence[str]) -> int:
        """The holder maps these items elsewhere now: free its domain's copies of them, unless another rank or a
        configuration that is being prepared needs them there. Returns the bytes.
        """
        store = self._store
        held, own = store.holder(holder), store.domain_of(holder)
        needed = {
            item
            for name, config in store.configs.items()
            for rank, keys in store.needs(name).items()
            if config.topology.domain(rank) == own and (name, rank) != (held.config, held.rank)
            for item in keys
        }
        return store.copies.free(
            (own, item)
            for item in items
            if item in held.borrowed and item not in needed and (own, item) in store.copies
        )

    def home(self, holder: str, items: Sequence[str]) -> Found:
        """Where a holder may map borrowed items in its own domain, for those that are whole there."""
        held, own = self._store.holder(holder), self._store.domain_of(holder)
        return [
            self._place(item, own) for item in items if item in held.borrowed and self._store.copies.whole(own, item)
        ]

    def settled(self, holder: str, items: Sequence[str]) -> int:
        """The holder maps these items at home now: free foreign copies that nobody else wants. Returns the bytes."""
        store = self._store
        held, own = store.holder(holder), store.domain_of(holder)
        home = [item for item in items if item in held.borrowed and store.copies.whole(own, item)]
        for item in home:
            del held.borrowed[item]
        foreign = [(domain, item) for item in home for domain in store.copies.domains_of(item) if domain != own]
        return store.copies.free(key for key in foreign if not store.is_wanted(*key))
