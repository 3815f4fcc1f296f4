"""Draw tokens from logits. The draw depends on the request's seed and the position only, so it repeats anywhere."""

from __future__ import annotations

import torch

from medley_engine.scheduler import SamplingParams

_MASK = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from a seed and a position: SplitMix64's finaliser (Steele, Lea, Flood 2014) over both."""
    z = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)


def draw(logits: torch.Tensor, params: SamplingParams, position: int) -> int:
    """Choose the token at ``position`` from logits (vocabulary,).

    Temperature, then top-k, then top-p (the smallest set of most likely tokens whose probability reaches it), then
    the inverse of the cumulative distribution, tokens in order of falling probability.
    """
    if params.temperature <= 0:
        return int(torch.argmax(logits).item())
    scaled = logits.double() / params.temperature
    values, order = torch.sort(scaled, descending=True, stable=True)
    if params.top_k > 0:
        values, order = values[: params.top_k], order[: params.top_k]
    probabilities = torch.softmax(values, dim=-1)
    cumulative = torch.cumsum(probabilities, dim=-1)
    if params.top_p < 1:
        keep = int((cumulative - probabilities < params.top_p).sum().item())
        cumulative = cumulative[: max(keep, 1)]
    point = uniform(params.seed, position) * float(cumulative[-1].item())
    index = int(torch.searchsorted(cumulative, point, right=True).item())
    return int(order[min(index, len(cumulative) - 1)].item())
