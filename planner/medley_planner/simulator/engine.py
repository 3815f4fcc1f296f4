"""What a simulated engine is: how long its steps take, and what it can hold.

A step decodes one token of every running request and may prefill some prompt tokens. Its time is taken as

    fixed(tokens) + decoding requests · per_sequence_s + cached tokens · per_cached_token_s
                  + prompt tokens · per_prompt_token_s + pairs of prompt tokens · per_pair_s

which is the roofline's step (docs/formulation-capacity.md): what is not linear depends on the number of tokens only.
So the time of many decoding steps in a row has a closed form: with B requests that hold X tokens, step j = 0, 1, …
reads X + j·B tokens, and k steps take

    k · (fixed(B) + B · per_sequence_s + X · per_cached_token_s) + B · k(k − 1)/2 · per_cached_token_s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

StepFunction = Callable[[FloatArray, FloatArray, FloatArray, FloatArray], FloatArray]
"""Time of a step by (requests that decode, cached tokens of each, prompt tokens, tokens of their prompt)."""

_NONE, _ONE = np.zeros(1), np.ones(1)
_ROUNDING = 1e-9


@dataclass(frozen=True)
class StepTimes:
    """How long the steps of one replica take.

    Args:
        fixed_s: Time of a step with 0, 1, 2, … tokens, decoded and prefilled together, apart from attention; its last
            entry is that of the largest step.
        per_cached_token_s: Time to read one cached token.
        per_pair_s: Time for one prompt token to attend to one earlier token.
        per_sequence_s: Time to read what a decoding request holds whatever its length.
        per_prompt_token_s: Time of a prompt token's attention that does not grow with the prompt.

    Raises:
        ValueError: A time is negative, not finite, or there is none.
    """

    fixed_s: tuple[float, ...]
    per_cached_token_s: float = 0.0
    per_pair_s: float = 0.0
    per_sequence_s: float = 0.0
    per_prompt_token_s: float = 0.0

    def __post_init__(self) -> None:
        if len(self.fixed_s) < 2:
            raise ValueError("fixed_s: must have the times of at least 0 and 1 tokens")
        for name, times in (
            ("fixed_s", self.fixed_s),
            ("per_cached_token_s", (self.per_cached_token_s,)),
            ("per_pair_s", (self.per_pair_s,)),
            ("per_sequence_s", (self.per_sequence_s,)),
            ("per_prompt_token_s", (self.per_prompt_token_s,)),
        ):
            if not all(math.isfinite(time_s) and time_s >= 0 for time_s in times):
                raise ValueError(f"{name}: must be finite and at least 0")
        if min(self.fixed_s[1:]) <= 0:
            raise ValueError("fixed_s: a step with tokens takes some time")

    @classmethod
    def of(
        cls,
        step_s: StepFunction,
        *,
        max_step_tokens: int,
        contexts: tuple[float, float] = (1.0, 1e6),
        prompts: tuple[float, float] = (2.0, 1e6),
    ) -> StepTimes:
        """Read off a step function, such as the roofline's.

        Args:
            step_s: The function.
            max_step_tokens: Tokens of the largest step.
            contexts: Two numbers of cached tokens of a request; the time to read a cache is taken as linear through
                them, which is exact unless some layers attend within a window only.
            prompts: Two lengths of a prompt; the same for a prompt's attention.
        """
        tokens = np.arange(max_step_tokens + 1, dtype=np.float64)
        zeros = np.zeros_like(tokens)
        fixed = step_s(zeros, zeros, tokens, zeros)
        of_context, per_cached = _line(lambda context: step_s(_ONE, context, _NONE, _NONE), contexts)
        of_prompt, per_prompt = _line(lambda prompt: step_s(_NONE, _NONE, _ONE, prompt), prompts)
        return cls(
            fixed_s=tuple(fixed.tolist()),
            per_cached_token_s=per_cached,
            per_pair_s=2 * per_prompt,
            per_sequence_s=_no_less_than_zero(of_context - float(fixed[1]), float(fixed[1])),
            per_prompt_token_s=_no_less_than_zero(of_prompt - float(fixed[1]), float(fixed[1])),
        )

    @property
    def max_step_tokens(self) -> int:
        """Tokens of the largest step."""
        return len(self.fixed_s) - 1

    def slower(self, factor: float) -> StepTimes:
        """The same engine with all times multiplied by `factor`."""
        return replace(
            self,
            fixed_s=tuple(time_s * factor for time_s in self.fixed_s),
            per_cached_token_s=self.per_cached_token_s * factor,
            per_pair_s=self.per_pair_s * factor,
            per_sequence_s=self.per_sequence_s * factor,
            per_prompt_token_s=self.per_prompt_token_s * factor,
        )


def _line(time_s: Callable[[FloatArray], FloatArray], places: tuple[float, float]) -> tuple[float, float]:
    """Value at 0 and slope of the line through two points of a function."""
    low, high = (float(time_s(np.full(1, place))[0]) for place in places)
    slope = max(0.0, (high - low) / (places[1] - places[0]))
    return low - slope * places[0], slope


def _no_less_than_zero(time_s: float, scale_s: float) -> float:
    """A time that is zero but for rounding is zero."""
    return time_s if time_s > _ROUNDING * scale_s else 0.0


@dataclass(frozen=True)
class EngineLimits:
    """What one replica holds.

    Args:
        key_value_tokens: Tokens that the cache holds; it is used in whole blocks.
        max_sequences: Requests that are computed at once.
        block_tokens: Tokens of a block of the cache.
        watermark: Share of the blocks that admission leaves free, for the answers of what runs to grow into; does
            not hold for a replica where nothing runs.
        max_waiting: Requests that wait in a replica before it refuses more; None is no limit.

    Raises:
        ValueError: A figure is impossible.
    """

    key_value_tokens: int
    max_sequences: int = 256
    block_tokens: int = 16
    watermark: float = 0.01
    max_waiting: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_sequences", "block_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, is {getattr(self, name)}")
        if self.key_value_tokens < self.block_tokens:
            raise ValueError(f"key_value_tokens: must hold a block, is {self.key_value_tokens}")
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark: must be in [0, 1), is {self.watermark}")
        if self.max_waiting is not None and self.max_waiting < 0:
            raise ValueError(f"max_waiting: must be at least 0, is {self.max_waiting}")

    @property
    def blocks(self) -> int:
        """Whole blocks of the cache."""
        return self.key_value_tokens // self.block_tokens

    @property
    def longest_request_tokens(self) -> int:
        """Input and output of the longest request that fits alone; its last token is never cached."""
        return self.blocks * self.block_tokens + 1
