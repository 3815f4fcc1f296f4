"""What fits into a replica's GPUs: the weights, and keys and values of so many tokens.

The figures follow vLLM's own accounting: a share of the card is claimed at start, weights and working memory are taken
from it, and what is left holds the cache.
An engine that cannot cache one request of its configured length refuses to start, so neither does a plan use it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from medley_planner.gpus import BYTES_PER_GIB, GPUType
from medley_planner.models import ModelArchitecture

MEMORY_SHARE = 0.90
"""Share of a GPU's memory that the engine claims (vLLM's default of `--gpu-memory-utilization`)."""

WORKING_BYTES = 1 * BYTES_PER_GIB
"""Activations, buffers and captured graphs on each GPU, taken from the claimed share."""


@dataclass(frozen=True)
class ReplicaMemory:
    """The memory of one replica, per GPU: tensor parallelism splits weights and cache evenly.

    Args:
        claimed_bytes: What the engine may use.
        weight_bytes: What the weights take.
        key_value_bytes_per_token: What the cache takes for a token. With more GPUs than key-value heads each GPU still
            keeps a whole head, so that beyond that point more GPUs do not make it smaller.
    """

    claimed_bytes: float
    weight_bytes: float
    key_value_bytes_per_token: float

    @classmethod
    def of(cls, model: ModelArchitecture, gpu: GPUType, tensor_parallel: int) -> ReplicaMemory:
        """The memory of a replica on so many of these GPUs."""
        heads = math.ceil(model.key_value_heads / tensor_parallel)
        return cls(
            claimed_bytes=MEMORY_SHARE * gpu.memory_bytes,
            weight_bytes=model.weight_bytes / tensor_parallel,
            key_value_bytes_per_token=model.key_value_bytes_per_token * heads / model.key_value_heads,
        )

    @property
    def key_value_tokens(self) -> int:
        """Tokens that the cache holds; 0 where the weights alone are too large."""
        left = self.claimed_bytes - self.weight_bytes - WORKING_BYTES
        return max(0, math.floor(left / self.key_value_bytes_per_token))


def too_small(model: ModelArchitecture, gpu: GPUType, tensor_parallel: int, context_tokens: int) -> str:
    """Why a replica cannot hold the model and one request of `context_tokens`; empty where it can.

    The sentence has the figures in GiB, and the longest context that would fit where the weights do.
    """
    memory = ReplicaMemory.of(model, gpu, tensor_parallel)
    if memory.key_value_tokens >= context_tokens:
        return ""
    each = " each" if tensor_parallel > 1 else ""
    sentence = (
        f"{tensor_parallel}×{gpu.name} can use {_gib(memory.claimed_bytes)}{each}; "
        f"weights take {_gib(memory.weight_bytes)}, working memory {_gib(WORKING_BYTES)}, "
        f"the cache of one request of {context_tokens} tokens {_gib(context_tokens * memory.key_value_bytes_per_token)}"
    )
    if memory.key_value_tokens == 0:
        return sentence
    return f"{sentence}; a context of at most {memory.key_value_tokens} tokens would fit"


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / BYTES_PER_GIB:.2f} GiB"
