"""Throughput of a replica from data sheets alone: the largest rates of a steady state within the objectives.

The formulae, with the names used here, and how far they are from measurements: docs/formulation-capacity.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medley_planner.capacities.latency import Latency
from medley_planner.capacities.percentiles import PromptMix, count_at, mean_within
from medley_planner.capacities.steady_state import (
    KEY_VALUE_TRANSFER_BYTES_PER_S,
    MAX_SEQUENCES,
    MAX_STEP_TOKENS,
    FloatArray,
    SteadyState,
    at_rho,
    rho_within,
)
from medley_planner.capacities.step_time import StepTime
from medley_planner.catalogue.gpus import GPUType
from medley_planner.catalogue.models import ModelArchitecture
from medley_planner.fleet import Objectives, Parallelism, Role

__all__ = (
    "KEY_VALUE_TRANSFER_BYTES_PER_S",
    "MAX_SEQUENCES",
    "MAX_STEP_TOKENS",
    "SustainedRates",
    "percentile_ratios",
    "sustained_rates",
)


@dataclass(frozen=True)
class SustainedRates:
    """What a replica sustains within the objectives, for each size.

    Args:
        requests_per_second: Largest rates; 0 where even an idle replica misses an objective.
        concurrency: Requests in the replica at these rates, by Little's law.
        idle: Latencies with hardly any load: no load has better ones.
        loaded: Mean latencies at the largest rates; of no meaning where the rate is 0.
    """

    requests_per_second: FloatArray
    concurrency: FloatArray
    idle: tuple[Latency, ...]
    loaded: tuple[Latency, ...]


def sustained_rates(
    model: ModelArchitecture,
    gpu: GPUType,
    parallelism: Parallelism,
    sizes: Sequence[tuple[int, int]],
    objectives: Objectives,
    *,
    role: Role = Role.SHARED,
    prompts: PromptMix | None = None,
) -> SustainedRates:
    """The largest rates that one replica sustains within the objectives, for each (input tokens, output tokens).

    Mean objectives are those of a steady state in which nothing waits in a queue, as headroom for bursts is the plan's;
    objectives at percentiles allow for prompts that wait for each other, and for a batch that fluctuates.
    Prompts wait for those of `prompts`, without it for prompts like their own.
    Every size must fit into the cache (`medley_planner.capacities.memory.too_small`).
    """
    times = StepTime(model, gpu, parallelism)
    found = _within(SteadyState.of(times, sizes, role), objectives, role, prompts)
    waits = objectives.time_to_first_token_s is not None and objectives.time_to_first_token_percentile is not None
    if not waits or role is not Role.SHARED or all(output_tokens > 1 for _, output_tokens in sizes):
        return found
    longer = [(input_tokens, max(2, output_tokens)) for input_tokens, output_tokens in sizes]
    return _better(found, _within(SteadyState.of(times, longer, role), objectives, role, prompts))


def _within(state: SteadyState, objectives: Objectives, role: Role, prompts: PromptMix | None) -> SustainedRates:
    """The largest rates of a steady state within the objectives."""
    rho = _rho_at_time_per_output_token(state, objectives)
    first_token_s, percentile = objectives.time_to_first_token_s, objectives.time_to_first_token_percentile
    judged = first_token_s is not None and role is not Role.DECODE
    if first_token_s is not None and judged:
        rho = np.minimum(rho, rho_within(state.first_token_s, first_token_s))
        if percentile is not None:
            rho = np.where(state.decoded > 0, state.rho_within_wait(rho, first_token_s, percentile, prompts), rho)
    rates, best = state.largest_rates(rho)
    if first_token_s is not None and judged and (percentile is not None or role is Role.PREFILL):
        alone = state.decoded <= 0
        if np.any(alone):
            rates = np.where(alone, state.prefill_rates(rho, first_token_s, percentile, prompts), rates)
    rates = np.where(rho > 0, rates * state.units, 0.0)
    inside = np.where(rates > 0, rates * state.residence_s(best), 0.0)
    return SustainedRates(rates, inside, state.idle, state.latencies(best))


def _better(found: SustainedRates, longer: SustainedRates) -> SustainedRates:
    """The larger rates of two: what serves a token more after the first also serves the first alone.

    Prompts without any decoding are a queue of batches, in which everyone waits for a whole one. Where an objective
    leaves hardly any time for that, computing them in chunks beside others' decoding keeps more of them in time.
    """
    more = longer.requests_per_second > found.requests_per_second
    first_tokens = [Latency(0.0, latency.time_to_first_token_s) for latency in longer.loaded]
    return SustainedRates(
        np.where(more, longer.requests_per_second, found.requests_per_second),
        np.where(more, longer.concurrency, found.concurrency),
        found.idle,
        tuple(other if better else own for better, own, other in zip(more, found.loaded, first_tokens, strict=True)),
    )


def _rho_at_time_per_output_token(state: SteadyState, objectives: Objectives) -> FloatArray:
    """Largest ρ within the engine's limits and the objective for output tokens.

    A request's own mean over its steps is at the percentile what all requests' mean is with as many more requests in
    the batch as that percentile of arrivals brings: m + z·√m for m of them. The batch never grows beyond the limits.
    """
    if objectives.time_per_output_token_s is None:
        return state.limit
    bound = rho_within(state.step_s, objectives.time_per_output_token_s)
    decoded = np.maximum(state.decoded, 1.0)
    mean = mean_within(bound * decoded, objectives.time_per_output_token_percentile) / decoded
    within = np.where(bound >= state.limit, state.limit, mean)
    return np.where(state.decoded > 0, within, state.limit)


def percentile_ratios(
    times: StepTime,
    size: tuple[int, int],
    batches: Sequence[float],
    objectives: Objectives,
    prompts: PromptMix | None = None,
) -> tuple[list[float], list[float]]:
    """How much longer than the mean the objectives' percentiles are, for output tokens and for the first token.

    Args:
        times: Times of the replica's steps.
        size: Input and output tokens of the requests.
        batches: Requests that decode at once on the whole replica; one ratio is given for each.
        objectives: The percentiles; ratios are 1 where there is none.
        prompts: What else the replica gets; None is prompts of this size.
    """
    state = SteadyState.of(times, [size] * len(batches))
    decoded = np.maximum(state.decoded, 1.0)
    mean = np.asarray(batches, dtype=np.float64) / state.units
    rho = np.minimum(mean / decoded, state.limit)
    often = np.minimum(
        count_at(mean, objectives.time_per_output_token_percentile) / decoded, np.maximum(rho, state.limit)
    )
    per_token = at_rho(state.step_s, often) / at_rho(state.step_s, rho)
    if objectives.time_to_first_token_percentile is None:
        return per_token.tolist(), [1.0] * len(batches)
    waiting_s = state.waiting_s(rho, objectives.time_to_first_token_percentile, prompts)
    return per_token.tolist(), (waiting_s / at_rho(state.first_token_s, rho)).tolist()
