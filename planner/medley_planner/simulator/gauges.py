"""How busy a replica is: integrals over time, and their values at the edges of the timeline's bins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


class Reading(NamedTuple):
    """What a replica has done until a moment."""

    at_s: float
    busy_s: float
    """Time in steps."""
    sequence_s: float
    """∫ requests that are computed dt."""
    block_s: float
    """∫ blocks of the cache that are taken dt."""
    decoded_tokens: int
    prompt_tokens: int
    """Prompt tokens computed, those computed anew after a preemption included."""
    steps: int


@dataclass
class Gauges:
    """Collects the integrals of one replica.

    Args:
        bin_s: A reading is kept at the first event in every interval of this length; infinite keeps none.
        keeps_order: Whether the order in which requests are served is kept too; for tests.
    """

    bin_s: float = math.inf
    keeps_order: bool = False

    def __post_init__(self) -> None:
        self.readings: list[Reading] = []
        self.order: list[int] = []
        self.requests = 0
        self.most_blocks = 0.0
        self._next_s = 0.0 if math.isfinite(self.bin_s) else math.inf
        self._at_s = self._busy_s = self._sequence_s = self._block_s = 0.0
        self._decoded = self._prompt = self._steps = 0

    def computed(
        self, duration_s: float, running: int, blocks: float, *, decoded_tokens: int, prompt_tokens: int, steps: int
    ) -> None:
        """So many steps took so long in all, with so many requests and blocks taken (on average)."""
        self._busy_s += duration_s
        self._sequence_s += running * duration_s
        self._block_s += blocks * duration_s
        self._decoded += decoded_tokens
        self._prompt += prompt_tokens
        self._steps += steps
        if blocks > self.most_blocks:  # noqa: PLR1730 - faster than max, and called for every step
            self.most_blocks = blocks

    def reach(self, now_s: float) -> None:
        """A step ends now; what was told before happened until now."""
        self._at_s = now_s
        if now_s >= self._next_s:
            self._keep(now_s)

    def idle_until(self, now_s: float) -> None:
        """Nothing was done since the last step."""
        if now_s >= self._next_s:
            if not self.readings or self.readings[-1].at_s < self._at_s:
                self.readings.append(self.reading())
            self._at_s = now_s
            self._keep(now_s)

    def served(self, request: int) -> None:
        """A request left, served."""
        self.requests += 1
        if self.keeps_order:
            self.order.append(request)

    def reading(self) -> Reading:
        """The integrals as they are."""
        return Reading(
            self._at_s, self._busy_s, self._sequence_s, self._block_s, self._decoded, self._prompt, self._steps
        )

    def at(self, edges_s: FloatArray) -> FloatArray:
        """The integrals at these moments, (moments, fields of a reading), between readings by interpolation.

        Before the first reading they are zero, after the last one they stay.
        """
        readings = [Reading(0.0, 0.0, 0.0, 0.0, 0, 0, 0), *self.readings, self.reading()]
        kept = np.array(readings, dtype=np.float64)
        _, first = np.unique(kept[::-1, 0], return_index=True)
        kept = kept[::-1][first]
        return np.stack([np.interp(edges_s, kept[:, 0], kept[:, field]) for field in range(kept.shape[1])], axis=1)

    def _keep(self, now_s: float) -> None:
        self.readings.append(self.reading())
        self._next_s = (math.floor(now_s / self.bin_s) + 1) * self.bin_s
