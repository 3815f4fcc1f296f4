"""What mixes hold of the pools' stock, and what they leave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from medley_planner.fleet import Stock, Variant


def held_stock(held: Iterable[Mapping[Variant, int]], pools: Iterable[str]) -> dict[tuple[str, int], int]:
    """GPUs that mixes hold in these pools, by (pool, GPUs of a replica)."""
    known = set(pools)
    gpus: dict[tuple[str, int], int] = {}
    for mix in held:
        for variant, count in mix.items():
            if variant.pool in known:
                key = (variant.pool, variant.gpus)
                gpus[key] = gpus.get(key, 0) + variant.gpus * count
    return gpus


def remaining_stock(stock: Mapping[str, Stock], held: Iterable[Mapping[Variant, int]]) -> dict[str, Stock]:
    """The stock that is left when these mixes keep what they hold; nothing is left, not less, where they hold more."""
    gpus = held_stock(held, stock)
    return {
        pool: Stock(
            {
                group: max(0, available - sum(n for (p, size), n in gpus.items() if p == pool and size >= group))
                for group, available in stock[pool].gpus_in_groups_of.items()
            }
        )
        for pool in sorted(stock)
    }


def crowded_pools(stock: Mapping[str, Stock], held: Iterable[Mapping[Variant, int]]) -> set[str]:
    """Known pools that do not hold all these mixes at once."""
    gpus = held_stock(held, stock)
    return {
        pool
        for pool, group in gpus
        if sum(n for (p, size), n in gpus.items() if p == pool and size >= group)
        > min(available for size, available in stock[pool].gpus_in_groups_of.items() if size <= group)
    }
