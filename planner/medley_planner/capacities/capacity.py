"""How many requests per second one replica sustains within the objectives, and why not where it cannot.

The user's own measurements come first, then any tables that the caller brings, the roofline last.
Before any of them, what does not fit into memory, or is longer than the configured context, is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medley_planner.capacities.estimate import (
    CONTEXT_TOO_LONG,
    HEADS_NOT_DIVISIBLE,
    MEMORY_TOO_SMALL,
    OBJECTIVE_NOT_MET,
    TOO_MANY_RANKS,
    TOO_MANY_STAGES,
    Capacity,
    Estimator,
    Question,
    Size,
)
from medley_planner.capacities.estimators import MEASURED, MEASURED_SCALED, ROOFLINE, ByMeasurement, ByRoofline
from medley_planner.capacities.memory import too_small
from medley_planner.capacities.percentiles import PromptMix
from medley_planner.catalogue.gpus import GPUType
from medley_planner.catalogue.models import ModelArchitecture, ThroughputPoint
from medley_planner.fleet import Objectives, Parallelism, Role

__all__ = (
    "CONTEXT_TOO_LONG",
    "HEADS_NOT_DIVISIBLE",
    "MEASURED",
    "MEASURED_SCALED",
    "MEMORY_TOO_SMALL",
    "OBJECTIVE_NOT_MET",
    "ROOFLINE",
    "TOO_MANY_RANKS",
    "TOO_MANY_STAGES",
    "Capacities",
    "Capacity",
    "capacities",
    "capacity",
)


@dataclass(frozen=True)
class Capacities:
    """A chain of estimators: for each size the first one that has an answer gives it.

    Args:
        estimators: In the order of trust.
    """

    estimators: tuple[Estimator, ...]

    def __call__(
        self,
        *,
        model: ModelArchitecture,
        measurements: Sequence[ThroughputPoint],
        engine: str,
        gpu: GPUType,
        parallelism: Parallelism,
        role: Role = Role.SHARED,
        sizes: Sequence[Size],
        objectives: Objectives,
        max_context_tokens: int | None,
        correction: float = 1.0,
        prompts: PromptMix | None = None,
    ) -> tuple[Capacity, ...]:
        """The capacity of one replica for requests of each (input tokens, output tokens), in the order given.

        Args:
            model: The model that is served.
            measurements: Measured points of that model; those of other GPUs, parallelism and engines are passed over.
            engine: The engine that serves.
            gpu: Type of the replica's GPUs.
            parallelism: How the replica's GPUs share the work.
            role: Which part of a request the replica computes.
            sizes: Requests that reach the replica, one size at a time.
            objectives: Latencies to keep, means or at percentiles.
            max_context_tokens: What the engine is configured for; None is what the model was made for, which is the
                most.
            correction: Multiplies every rate: what was observed live over what is estimated.
            prompts: What the replica gets together with these sizes: others' prompts are waited for. None is prompts
                of the size that is judged.
        """
        context_tokens = min(model.max_context_tokens, max_context_tokens or model.max_context_tokens)
        question = Question(model, measurements, engine, gpu, parallelism, role, objectives, context_tokens, prompts)
        sources = [(estimator, estimator.source(question)) for estimator in self.estimators]
        able = [(estimator, source) for estimator, source in sources if source]
        first_source = able[0][1]
        refused = _refused(question)
        if refused:
            return (Capacity(0.0, *refused, first_source),) * len(sizes)
        found: dict[Size, Capacity] = {}
        open_sizes = tuple(dict.fromkeys(size for size in sizes if sum(size) <= context_tokens))
        for estimator, _ in able:
            if open_sizes:
                answers = zip(open_sizes, estimator.estimate(question, open_sizes), strict=True)
                found |= {size: answer for size, answer in answers if answer is not None}
                open_sizes = tuple(size for size in open_sizes if size not in found)
        return tuple(
            (found.get(size) or _too_long(size, context_tokens, first_source)).corrected(correction) for size in sizes
        )


capacities = Capacities((ByMeasurement(), ByRoofline()))
"""The chain that needs nothing outside of the planner: measurements, then the roofline."""


def capacity(
    *,
    model: ModelArchitecture,
    measurements: Sequence[ThroughputPoint],
    engine: str,
    gpu: GPUType,
    parallelism: Parallelism,
    role: Role = Role.SHARED,
    input_tokens: int,
    output_tokens: int,
    objectives: Objectives,
    max_context_tokens: int | None,
    correction: float = 1.0,
    prompts: PromptMix | None = None,
) -> Capacity:
    """The capacity of one replica for requests of one size; `capacities` is far cheaper for many sizes."""
    return capacities(
        model=model,
        measurements=measurements,
        engine=engine,
        gpu=gpu,
        parallelism=parallelism,
        role=role,
        sizes=((input_tokens, output_tokens),),
        objectives=objectives,
        max_context_tokens=max_context_tokens,
        correction=correction,
        prompts=prompts,
    )[0]


def _refused(question: Question) -> tuple[str, str] | None:
    """Why such a replica cannot run at all, as a reason and a sentence; None where it can."""
    model, parallelism = question.model, question.parallelism
    uneven = _uneven_heads(model, parallelism.tensor)
    if uneven:
        return HEADS_NOT_DIVISIBLE, uneven
    if parallelism.pipeline > model.layers:
        return TOO_MANY_STAGES, f"{model.layers} layers cannot be shared out over {parallelism.pipeline} stages"
    spread = parallelism.tensor * parallelism.data
    if parallelism.data > 1 and model.experts % spread:
        return TOO_MANY_RANKS, f"{model.experts} experts cannot be shared out evenly over {spread} GPUs"
    small = too_small(model, question.gpu, parallelism, question.context_tokens)
    return (MEMORY_TOO_SMALL, small) if small else None


def _too_long(size: Size, context_tokens: int, source: str) -> Capacity:
    detail = f"requests of {size[0]} input and {size[1]} output tokens exceed the context of {context_tokens} tokens"
    return Capacity(0.0, CONTEXT_TOO_LONG, detail, source)


def _uneven_heads(model: ModelArchitecture, tensor_parallel: int) -> str:
    """Why the heads cannot be shared out: query heads evenly; key-value heads evenly too, or each on as many GPUs."""
    if model.attention_heads % tensor_parallel:
        return f"{model.attention_heads} attention heads cannot be shared out over {tensor_parallel} GPUs"
    if model.key_value_heads % tensor_parallel and tensor_parallel % model.key_value_heads:
        return f"{model.key_value_heads} key-value heads cannot be shared out over {tensor_parallel} GPUs"
    return ""
