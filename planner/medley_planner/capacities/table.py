"""The capacities of one replica for many sizes, column by column.

A fleet has hundreds of thousands of capacities, and keeps them from plan to plan. As objects, each of them is something
that the interpreter's collector walks again and again, for about a second of a large plan; in columns, none is.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

from medley_planner.capacities.estimate import Capacity
from medley_planner.capacities.latency import Latency

_UNKNOWN = -1.0
"""Stands for a latency that is not known."""


@dataclass(frozen=True)
class CapacityTable(Sequence[Capacity]):
    """Capacities in the order of the sizes that they are for.

    Args:
        rates: Requests per second of a replica, 0 where it cannot serve a size.
        concurrencies: Requests in the replica at that rate, 0 where it is not known.
        reasons: Why there is no rate, as a word.
        details: The same as a sentence.
        sources: Where the figures come from.
        times_per_output_token_s: At that rate, negative where it is not known.
        times_to_first_token_s: At that rate, negative where it is not known.
    """

    rates: array[float]
    concurrencies: array[float]
    reasons: tuple[str, ...]
    details: tuple[str, ...]
    sources: tuple[str, ...]
    times_per_output_token_s: array[float]
    times_to_first_token_s: array[float]

    @staticmethod
    def of(capacities: Sequence[Capacity]) -> CapacityTable:
        """The table of these capacities."""
        if isinstance(capacities, CapacityTable):
            return capacities
        unknown = Latency(_UNKNOWN, _UNKNOWN)
        latencies = [each.latency or unknown for each in capacities]
        return CapacityTable(
            rates=array("d", (each.requests_per_second for each in capacities)),
            concurrencies=array("d", (each.concurrency for each in capacities)),
            reasons=tuple(each.reason for each in capacities),
            details=tuple(each.detail for each in capacities),
            sources=tuple(each.source for each in capacities),
            times_per_output_token_s=array("d", (each.time_per_output_token_s for each in latencies)),
            times_to_first_token_s=array("d", (each.time_to_first_token_s for each in latencies)),
        )

    @property
    def serves_any(self) -> bool:
        """Whether there is a rate for some size."""
        return any(rate > 0 for rate in self.rates)

    def corrected(self, factor: float) -> CapacityTable:
        """Each capacity `corrected` by a live correction factor."""
        if factor == 1.0:
            return self
        rates, inside = (array("d", (each * factor for each in column)) for column in (self.rates, self.concurrencies))
        return replace(self, rates=rates, concurrencies=inside)

    def at(self, places: Sequence[int]) -> CapacityTable:
        """The table of some of its rows, in the order given."""
        return CapacityTable(
            rates=array("d", (self.rates[place] for place in places)),
            concurrencies=array("d", (self.concurrencies[place] for place in places)),
            reasons=tuple(self.reasons[place] for place in places),
            details=tuple(self.details[place] for place in places),
            sources=tuple(self.sources[place] for place in places),
            times_per_output_token_s=array("d", (self.times_per_output_token_s[place] for place in places)),
            times_to_first_token_s=array("d", (self.times_to_first_token_s[place] for place in places)),
        )

    def __len__(self) -> int:
        return len(self.rates)

    @overload
    def __getitem__(self, index: int) -> Capacity: ...

    @overload
    def __getitem__(self, index: slice) -> CapacityTable: ...

    def __getitem__(self, index: int | slice) -> Capacity | CapacityTable:
        if isinstance(index, slice):
            return self.at(range(*index.indices(len(self))))
        first_s = self.times_to_first_token_s[index]
        return Capacity(
            requests_per_second=self.rates[index],
            reason=self.reasons[index],
            detail=self.details[index],
            source=self.sources[index],
            concurrency=self.concurrencies[index],
            latency=None if first_s == _UNKNOWN else Latency(self.times_per_output_token_s[index], first_s),
        )

    def __iter__(self) -> Iterator[Capacity]:
        return (self[place] for place in range(len(self)))
