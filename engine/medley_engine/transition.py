"""The cheapest way from what lies in memory to what a new configuration needs. Pure.

Each (domain, item) pair that the target needs is met by the cheapest primitive that can meet it:

==============  =====================================================  ==============================
primitive       when                                                   cost
==============  =====================================================  ==============================
zero-copy       the item lies in the domain already                    one mapping, no bytes
peer-to-peer    another domain holds it                                its bytes over the slower link
disk-copy       nobody holds it                                        its bytes from disk, read once
==============  =====================================================  ==============================

Sources of peer copies are chosen so that the busiest source sends as little as possible: items are taken largest
first and given to the holder that has least to send. An item read from disk for one domain is a peer copy for every
further one, so each tensor is read at most once. Since costs of pairs are independent apart from that source balance,
taking the cheapest primitive per pair is a minimum of the total cost.

Nothing is freed before the takeover: ``free_after`` lists what only the old configuration uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

Residency = Mapping[str, AbstractSet[str]]
"""For each item, the domains where a complete copy lies."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds per byte of each primitive, and per mapping. The defaults rank them; measured ones time them."""

    disk_s_per_byte: float = 1 / 1.5e9
    peer_s_per_byte: float = 1 / 6e9
    mapping_s: float = 5e-6


@dataclass(frozen=True, slots=True)
class DiskCopy:
    """Read an item from the checkpoint into a domain."""

    item: str
    domain: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PeerCopy:
    """Copy an item from one domain to another."""

    item: str
    source: str
    domain: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Transition:
    """What to do before the takeover, what may be freed after it, and what it costs."""

    disk: tuple[DiskCopy, ...]
    peer: tuple[PeerCopy, ...]
    zero_copy: tuple[tuple[str, str], ...]
    free_after: tuple[tuple[str, str], ...]
    remapped: Mapping[int, int]
    before_bytes: int
    peak_bytes: int
    after_bytes: int
    estimated_s: float

    @property
    def copied_bytes(self) -> int:
        """Bytes that must be written before the takeover."""
        return sum(step.size_bytes for step in self.disk) + sum(step.size_bytes for step in self.peer)


def plan(
    *,
    residency: Residency,
    needs: Mapping[int, Sequence[str]],
    domain_of: Mapping[int, str],
    sizes: Mapping[str, int],
    old_needs: Mapping[int, Sequence[str]] | None = None,
    costs: Costs | None = None,
    peer_allowed: bool = True,
) -> Transition:
    """Plan a change of configuration.

    Args:
        residency: where complete items lie now.
        needs: for each rank of the target, its items in mapping order.
        domain_of: memory domain of each rank of the target.
        sizes: bytes of each item.
        old_needs: what the ranks of the configuration in force map, to count the mappings that change.
        costs: seconds per byte of each primitive.
        peer_allowed: False reads everything missing from disk (an ablation).
    """
    costs = costs or Costs()
    wanted = sorted({(domain_of[rank], item) for rank, items in needs.items() for item in items})
    kept = tuple(pair for pair in wanted if pair[0] in residency.get(pair[1], frozenset()))
    missing = [pair for pair in wanted if pair[0] not in residency.get(pair[1], frozenset())]
    disk, peer = _choose(missing, residency, sizes, costs, peer_allowed)
    resident = {(domain, item) for item, domains in residency.items() for domain in domains}
    free_after = tuple(sorted(resident - set(wanted)))
    before = sum(sizes[item] for _, item in resident)
    copied = sum(step.size_bytes for step in disk) + sum(step.size_bytes for step in peer)
    mappings = sum(len(items) for items in needs.values())
    return Transition(
        disk=disk,
        peer=peer,
        zero_copy=kept,
        free_after=free_after,
        remapped=_remapped(needs, old_needs or {}),
        before_bytes=before,
        peak_bytes=before + copied,
        after_bytes=sum(sizes[item] for _, item in wanted),
        estimated_s=_seconds(disk, peer, costs) + mappings * costs.mapping_s,
    )


def _choose(
    missing: Sequence[tuple[str, str]], residency: Residency, sizes: Mapping[str, int], costs: Costs, peer_allowed: bool
) -> tuple[tuple[DiskCopy, ...], tuple[PeerCopy, ...]]:
    holders = {item: set(residency.get(item, frozenset())) for _, item in missing}
    sending: dict[str, int] = {}
    disk: list[DiskCopy] = []
    peer: list[PeerCopy] = []
    cheaper = costs.peer_s_per_byte <= costs.disk_s_per_byte
    for domain, item in sorted(missing, key=lambda pair: (-sizes[pair[1]], pair[1], pair[0])):
        size = sizes[item]
        if peer_allowed and holders[item] and cheaper:
            source = min(holders[item], key=lambda d: (sending.get(d, 0), d))
            sending[source] = sending.get(source, 0) + size
            peer.append(PeerCopy(item, source, domain, size))
        else:
            disk.append(DiskCopy(item, domain, size))
        holders[item].add(domain)
    return tuple(disk), tuple(peer)


def _remapped(needs: Mapping[int, Sequence[str]], old: Mapping[int, Sequence[str]]) -> Mapping[int, int]:
    """For each rank, how many of its mappings are new to it: the pages that a remap moves in place of bytes."""
    return {rank: len(set(items) - set(old.get(rank, ()))) for rank, items in sorted(needs.items())}


def _seconds(disk: Sequence[DiskCopy], peer: Sequence[PeerCopy], costs: Costs) -> float:
    """Disk reads share one disk; peer copies run at once, so the busiest end of any link decides."""
    ends: dict[str, int] = {}
    for step in peer:
        ends[f">{step.source}"] = ends.get(f">{step.source}", 0) + step.size_bytes
        ends[f"<{step.domain}"] = ends.get(f"<{step.domain}", 0) + step.size_bytes
    read = sum(step.size_bytes for step in disk) * costs.disk_s_per_byte
    return read + max(ends.values(), default=0) * costs.peer_s_per_byte
