"""Rotary position embeddings: frequencies (plain, or stretched by YaRN) and the two ways of pairing elements."""

from __future__ import annotations

import math

import torch

from medley_engine.config import ModelConfig, Yarn


def frequencies(config: ModelConfig) -> tuple[torch.Tensor, float]:
    """Angle per position of each pair (rotary size / 2), and the factor on cosines and sines.

    YaRN (Peng et al. 2023, arXiv 2309.00071, section 3): pairs that turn less than ``beta_slow`` times within the
    original context are slowed by ``factor``, pairs that turn more than ``beta_fast`` times are left, a ramp between.
    """
    size = config.rotary_dim
    exponents = torch.arange(0, size, 2, dtype=torch.int64).to(torch.float) / size
    plain = 1.0 / (config.rope_theta**exponents)
    yarn = config.yarn
    if yarn is None:
        return plain, 1.0

    def pair_that_turns(times: float) -> float:
        return size * math.log(yarn.original_context / (times * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = pair_that_turns(yarn.beta_fast), pair_that_turns(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = (torch.arange(size // 2, dtype=torch.float32) - low) / (high - low if high > low else 0.001)
    keep = 1 - ramp.clamp(0, 1)
    slowed = 1.0 / (yarn.factor * config.rope_theta**exponents)
    return slowed * (1 - keep) + plain * keep, _attention_factor(yarn)


def magnitude(factor: float, weight: float = 1.0) -> float:
    """YaRN's growth of attention with the context: 0.1 · weight · ln(factor) + 1."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _attention_factor(yarn: Yarn) -> float:
    if yarn.attention_factor is not None:
        return yarn.attention_factor
    if yarn.magnitude and yarn.magnitude_all:
        return magnitude(yarn.factor, yarn.magnitude) / magnitude(yarn.factor, yarn.magnitude_all)
    return magnitude(yarn.factor)


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool) -> torch.Tensor:
    """Rotate x (rows, heads, size) by angles given as cos and sin (rows, 1, size / 2).

    Pairs are (i, i + size / 2), or neighbours (2i, 2i + 1) where ``interleaved`` (DeepSeek).
    """
    if interleaved:
        # The reference rotates in float32 whatever the type.
        even, odd = x[..., 0::2].float(), x[..., 1::2].float()
        cos, sin = cos.float(), sin.float()
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
        return turned.flatten(-2).to(x.dtype)
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
