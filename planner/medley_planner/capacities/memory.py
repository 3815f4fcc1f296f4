"""What fits into a replica's GPUs: the weights, and keys and values of so many tokens.

The figures follow vLLM's own accounting: a share of the card is claimed at start, weights and working memory are taken
from it, and what is left holds the cache.
An engine that cannot cache one request of its configured length refuses to start, so neither does a plan use it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medley_planner.catalogue.gpus import BYTES_PER_GIB, GPUType
from medley_planner.catalogue.models import ModelArchitecture
from medley_planner.fleet import Parallelism

FloatArray = npt.NDArray[np.float64]

MEMORY_SHARE = 0.90
"""Share of a GPU's memory that the engine claims (vLLM's default of `--gpu-memory-utilization`)."""

WORKING_BYTES = 1 * BYTES_PER_GIB
"""Activations, buffers and captured graphs on each GPU, taken from the claimed share."""


@dataclass(frozen=True)
class ReplicaMemory:
    """The memory of one replica, on one GPU of its fullest pipeline stage.

    Tensor parallelism splits weights and cache evenly, pipeline parallelism by layers.
    Data parallel ranks repeat all weights but those of routed experts, which all of them share, and each has a cache of
    its own, for requests of its own.

    Args:
        claimed_bytes: What the engine may use.
        weight_bytes: What the weights take.
        key_value_bytes_per_token: What the cache takes for a token within any window. With more GPUs than key-value
            heads each GPU still keeps a whole head, so that beyond that point more GPUs do not make it smaller.
        window_key_value_bytes_per_token: The part of it in layers that keep the last `window_tokens` only.
        window_tokens: That window; 0 where there is none.
        state_bytes_per_request: What the cache takes for a request whatever its length.
    """

    claimed_bytes: float
    weight_bytes: float
    key_value_bytes_per_token: float
    window_key_value_bytes_per_token: float = 0.0
    window_tokens: int = 0
    state_bytes_per_request: float = 0.0

    @classmethod
    def of(cls, model: ModelArchitecture, gpu: GPUType, parallelism: Parallelism) -> ReplicaMemory:
        """The memory of a replica on such GPUs."""
        tensor = parallelism.tensor
        stage = -(-model.layers // parallelism.pipeline) / model.layers
        kept = math.ceil(model.key_value_heads / tensor) / model.key_value_heads * stage
        shared_bytes = model.shared_parameters * model.weight_bytes_per_parameter
        expert_bytes = (model.weight_bytes - shared_bytes) / parallelism.data if model.experts else 0.0
        return cls(
            claimed_bytes=MEMORY_SHARE * gpu.memory_bytes,
            weight_bytes=(shared_bytes + expert_bytes) / tensor * stage,
            key_value_bytes_per_token=model.key_value_bytes_per_token * kept,
            window_key_value_bytes_per_token=model.window_key_value_bytes_per_token * kept,
            window_tokens=model.window_tokens,
            state_bytes_per_request=model.state_bytes_per_request / tensor * stage,
        )

    @property
    def cache_bytes(self) -> float:
        """Memory that is left for the cache; 0 where the weights alone are too large."""
        return max(0.0, self.claimed_bytes - self.weight_bytes - WORKING_BYTES)

    def request_bytes(self, tokens: float | FloatArray) -> FloatArray:
        """What the cache takes for one request of so many tokens."""
        beyond = np.maximum(0.0, np.asarray(tokens, dtype=np.float64) - self.window_tokens)
        held = tokens * self.key_value_bytes_per_token - beyond * self.window_key_value_bytes_per_token
        return np.asarray(held + self.state_bytes_per_request)

    def requests(self, tokens: float | FloatArray) -> FloatArray:
        """How many requests of so many tokens the cache of one data parallel rank holds, fractions included."""
        return np.asarray(self.cache_bytes / self.request_bytes(tokens))

    @property
    def key_value_tokens(self) -> int:
        """Tokens of the longest request that the cache holds; 0 where it holds none.

        Without windows and constant states it is also what it holds in tokens of any number of requests.
        """
        left = self.cache_bytes - self.state_bytes_per_request
        if left <= 0:
            return 0
        tokens = left / self.key_value_bytes_per_token
        if self.window_tokens and tokens > self.window_tokens:
            growing = self.key_value_bytes_per_token - self.window_key_value_bytes_per_token
            if growing <= 0:
                return _UNBOUNDED_TOKENS
            tokens = (left - self.window_tokens * self.window_key_value_bytes_per_token) / growing
        return math.floor(tokens)


_UNBOUNDED_TOKENS = 2**62
"""Where every layer has a window that fits, a request may be of any length."""


def too_small(model: ModelArchitecture, gpu: GPUType, parallelism: Parallelism, context_tokens: int) -> str:
    """Why a replica cannot hold the model and one request of `context_tokens`; empty where it can.

    The sentence has the figures in GiB, and the longest context that would fit where the weights do.
    """
    memory = ReplicaMemory.of(model, gpu, parallelism)
    if memory.key_value_tokens >= context_tokens:
        return ""
    each = " each" if parallelism.gpus > 1 else ""
    sentence = (
        f"{parallelism.gpus}×{gpu.name} can use {_gib(memory.claimed_bytes)}{each}; "
        f"weights take {_gib(memory.weight_bytes)}, working memory {_gib(WORKING_BYTES)}, "
        f"the cache of one request of {context_tokens} tokens {_gib(float(memory.request_bytes(context_tokens)))}"
    )
    if memory.key_value_tokens == 0:
        return sentence
    return f"{sentence}; a context of at most {memory.key_value_tokens} tokens would fit"


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / BYTES_PER_GIB:.2f} GiB"
