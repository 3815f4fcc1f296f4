"""What is asked of an estimate of a replica's capacity, and what it answers.

An estimator is one source of such answers: measurements, a table, a roofline.
`medley_planner.capacities.capacity` asks them in the order of trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from medley_planner.capacities.latency import Latency
from medley_planner.capacities.percentiles import PromptMix
from medley_planner.catalogue.gpus import GPUType
from medley_planner.catalogue.models import ModelArchitecture, ThroughputPoint
from medley_planner.fleet import Objectives, Parallelism, Role

MEMORY_TOO_SMALL = "MemoryTooSmall"
"""The GPUs cannot hold the weights and the cache of one request of the configured length."""
CONTEXT_TOO_LONG = "ContextTooLong"
"""The requests are longer than the configured context."""
OBJECTIVE_NOT_MET = "ObjectiveNotMet"
"""Even under the lightest load an objective is missed."""
HEADS_NOT_DIVISIBLE = "HeadsNotDivisible"
"""The model's attention heads cannot be shared out evenly over so many GPUs, and engines refuse to start."""
TOO_MANY_STAGES = "TooManyStages"
"""The pipeline has more stages than the model has layers."""
TOO_MANY_RANKS = "TooManyRanks"
"""The experts cannot be shared out over so many GPUs: there are more of them, or an uneven number each."""

Size = tuple[int, int]
"""Input tokens and output tokens of a request."""


@dataclass(frozen=True)
class Capacity:
    """What one replica can do with requests of one size.

    Args:
        requests_per_second: The largest rate within the objectives; 0 where there is none.
        reason: Why there is none, as a word to search for: `MemoryTooSmall`, `ContextTooLong`, `ObjectiveNotMet`,
            `HeadsNotDivisible`, `TooManyStages` or `TooManyRanks`; empty where there is a rate.
        detail: The reason as a sentence with figures; empty where there is a rate.
        source: Where the figures come from: `measured`, `measured, scaled`, `roofline`, or the name of a table;
            `, percentiles by roofline` is added where only means were measured.
        concurrency: Requests in the replica at that rate (Little's law), 0 where it is not known.
        latency: Mean latencies at that rate; None where they are not known.
    """

    requests_per_second: float
    reason: str
    detail: str
    source: str
    concurrency: float = 0.0
    latency: Latency | None = None

    def corrected(self, factor: float) -> Capacity:
        """This capacity times a live correction factor; a rate that much larger keeps so many more requests in it."""
        if factor == 1.0:
            return self
        rate, inside = self.requests_per_second * factor, self.concurrency * factor
        return replace(self, requests_per_second=rate, concurrency=inside)


@dataclass(frozen=True)
class Question:
    """One replica, and what it must keep; the sizes of requests are asked about together.

    Args:
        model: The model that is served.
        measurements: Measured points of that model, on any GPUs.
        engine: The engine that serves: `vllm`, `sglang` or `custom`.
        gpu: Type of the replica's GPUs.
        parallelism: How the replica's GPUs share the work.
        role: Which part of a request the replica computes.
        objectives: Latencies to keep.
        context_tokens: Longest input and output together that the engine is configured for.
        prompts: What the replica gets together with the sizes asked about; None where that is not known.
    """

    model: ModelArchitecture
    measurements: Sequence[ThroughputPoint]
    engine: str
    gpu: GPUType
    parallelism: Parallelism
    role: Role
    objectives: Objectives
    context_tokens: int
    prompts: PromptMix | None = None


class Estimator(Protocol):
    """One source of capacities. It is part of keys, so it compares by value or by identity, and has a hash."""

    def source(self, question: Question) -> str:
        """What its answers to this question will name as their source; empty where it has none to give."""
        ...

    def estimate(self, question: Question, sizes: Sequence[Size]) -> tuple[Capacity | None, ...]:
        """The capacity for each size, None where the next source is to be asked.

        Only sizes that fit the context, on replicas that hold the model, are asked about, and only where `source`
        names one.
        """
        ...
