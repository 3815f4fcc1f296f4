"""When to grow and when to shrink: from requests against their objectives, over windows long enough that a spike does
not count. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Advice = Literal["grow", "hold", "shrink"]


@dataclass(frozen=True, slots=True)
class Objectives:
    """Latency objectives and when to act. ``attainment`` is the share of requests that must meet both."""

    time_to_first_token_s: float
    time_per_output_token_s: float
    attainment: float = 0.90
    window_s: float = 30.0
    windows: int = 3
    min_requests: int = 10
    shrink_below_utilisation: float = 0.4


@dataclass(frozen=True, slots=True)
class Served:
    """One finished request. ``time_per_output_token_s`` is None for a single token."""

    at_s: float
    time_to_first_token_s: float
    time_per_output_token_s: float | None


class LoadEstimator:
    """Advice from the last windows.

    Grow when attainment was below the objective in *every* one of the last ``windows`` windows (the paper's
    persistence; a window with fewer than ``min_requests`` says nothing, and nothing is not a reason). Shrink when it
    was met in every one and the engine, one step smaller, would still be below ``shrink_below_utilisation``. Else
    hold. After a change the windows start anew.
    """

    def __init__(self, objectives: Objectives, now_s: float) -> None:
        self._o = objectives
        self._served: deque[Served] = deque()
        self._use: deque[tuple[float, float]] = deque()
        self._since = now_s

    def record(self, served: Served) -> None:
        """A request finished."""
        self._served.append(served)

    def record_utilisation(self, at_s: float, share: float) -> None:
        """Share of the engine's sequence slots in use, 0 to 1."""
        self._use.append((at_s, share))

    def reset(self, now_s: float) -> None:
        """The configuration changed: what was measured before says nothing about it."""
        self._served.clear()
        self._use.clear()
        self._since = now_s

    def attainments(self, now_s: float) -> tuple[float | None, ...]:
        """Share of requests that met the objectives in each of the last windows, the newest first; None: too few to
        tell.
        """
        self._forget(now_s)
        shares: list[float | None] = []
        for index in range(self._o.windows):
            high, low = now_s - index * self._o.window_s, now_s - (index + 1) * self._o.window_s
            inside = [s for s in self._served if low < s.at_s <= high]
            enough = len(inside) >= self._o.min_requests and low >= self._since
            shares.append(self._share(inside) if enough else None)
        return tuple(shares)

    def advise(self, now_s: float, size: int) -> Advice:
        """What to do with an engine of ``size`` data-parallel groups."""
        shares = self.attainments(now_s)
        known = [share for share in shares if share is not None]
        if len(known) < self._o.windows:
            return "hold"
        if all(share < self._o.attainment for share in known):
            return "grow"
        used = [share for at, share in self._use if at > now_s - self._o.windows * self._o.window_s]
        if size > 1 and used and all(share >= self._o.attainment for share in known):
            projected = sum(used) / len(used) * size / (size - 1)
            if projected < self._o.shrink_below_utilisation:
                return "shrink"
        return "hold"

    def _share(self, inside: Iterable[Served]) -> float:
        met = [
            s.time_to_first_token_s <= self._o.time_to_first_token_s
            and (s.time_per_output_token_s or 0.0) <= self._o.time_per_output_token_s
            for s in inside
        ]
        return sum(met) / len(met)

    def _forget(self, now_s: float) -> None:
        oldest = now_s - self._o.windows * self._o.window_s
        while self._served and self._served[0].at_s <= oldest:
            self._served.popleft()
        while self._use and self._use[0][0] <= oldest:
            self._use.popleft()
