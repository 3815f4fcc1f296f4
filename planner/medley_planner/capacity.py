"""How many requests per second one replica sustains within the objectives, and why not where it cannot.

The user's own measurements come first, the roofline where there are none.
Before either, what does not fit into memory, or is longer than the configured context, is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from medley_planner.fleet import Objectives, Parallelism, Role
from medley_planner.gpus import GPUType
from medley_planner.measured import Size, load_curves, measured_rates
from medley_planner.memory import too_small
from medley_planner.models import ModelArchitecture, ThroughputPoint
from medley_planner.roofline import sustained_rates

MEMORY_TOO_SMALL = "MemoryTooSmall"
"""The GPUs cannot hold the weights and the cache of one request of the configured length."""
CONTEXT_TOO_LONG = "ContextTooLong"
"""The requests are longer than the configured context."""
OBJECTIVE_NOT_MET = "ObjectiveNotMet"
"""Even under the lightest load an objective is missed."""
HEADS_NOT_DIVISIBLE = "HeadsNotDivisible"
"""The model's attention heads cannot be shared out evenly over so many GPUs, and engines refuse to start."""

MEASURED = "measured"
MEASURED_SCALED = "measured, scaled"
ROOFLINE = "roofline"


@dataclass(frozen=True)
class Capacity:
    """What one replica can do with requests of one size.

    Args:
        requests_per_second: The largest rate within the objectives; 0 where there is none.
        reason: Why there is none, as a word to search for: `MemoryTooSmall`, `ContextTooLong`, `ObjectiveNotMet` or
            `HeadsNotDivisible`; empty where there is a rate.
        detail: The reason as a sentence with figures; empty where there is a rate.
        source: `measured`, `measured, scaled` or `roofline`.
        concurrency: Requests in the replica at that rate (Little's law), 0 where it is not known.
    """

    requests_per_second: float
    reason: str
    detail: str
    source: str
    concurrency: float = 0.0

    def corrected(self, factor: float) -> Capacity:
        """This capacity times a live correction factor; a load that much larger keeps so many more requests in it."""
        if factor == 1.0:
            return self
        rate, inside = self.requests_per_second * factor, self.concurrency * factor
        return replace(self, requests_per_second=rate, concurrency=inside)


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
    )[0]


def capacities(
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
        objectives: Mean latencies to keep.
        max_context_tokens: What the engine is configured for; None is what the model was made for, which is the most.
        correction: Multiplies every rate.
    """
    tensor_parallel = parallelism.tensor
    curves = load_curves(measurements, engine=engine, gpu=gpu, tensor_parallel=tensor_parallel)
    source = MEASURED if curves else ROOFLINE
    context_tokens = min(model.max_context_tokens, max_context_tokens or model.max_context_tokens)
    uneven = _uneven_heads(model, tensor_parallel)
    if uneven:
        return (Capacity(0.0, HEADS_NOT_DIVISIBLE, uneven, source),) * len(sizes)
    small = too_small(model, gpu, tensor_parallel, context_tokens)
    if small:
        return (Capacity(0.0, MEMORY_TOO_SMALL, small, source),) * len(sizes)
    within = tuple(dict.fromkeys(size for size in sizes if sum(size) <= context_tokens))
    found: dict[Size, Capacity] = {}
    if within and curves:
        rates = measured_rates(
            curves, model=model, gpu=gpu, tensor_parallel=tensor_parallel, sizes=within, objectives=objectives
        )
        for size, rate in zip(within, rates, strict=True):
            reason = "" if rate.requests_per_second > 0 else OBJECTIVE_NOT_MET
            scaled = MEASURED_SCALED if rate.scaled else MEASURED
            found[size] = Capacity(rate.requests_per_second, reason, rate.detail, scaled)
    elif within:
        found.update(zip(within, _by_roofline(model, gpu, tensor_parallel, within, objectives), strict=True))
    return tuple((found.get(size) or _too_long(size, context_tokens, source)).corrected(correction) for size in sizes)


def _by_roofline(
    model: ModelArchitecture, gpu: GPUType, tensor_parallel: int, sizes: Sequence[Size], objectives: Objectives
) -> list[Capacity]:
    rates = sustained_rates(model, gpu, tensor_parallel, sizes, objectives)
    found: list[Capacity] = []
    for size, rate_rps, idle in zip(sizes, rates.requests_per_second.tolist(), rates.idle, strict=True):
        if rate_rps > 0:
            found.append(Capacity(rate_rps, "", "", ROOFLINE))
        else:
            circumstance = f"for {size[0]} input and {size[1]} output tokens on an idle replica, by estimate"
            found.append(Capacity(0.0, OBJECTIVE_NOT_MET, idle.missed(objectives, circumstance), ROOFLINE))
    return found


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
