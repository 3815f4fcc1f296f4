"""The steady state of continuous batching: latencies of a replica over how much it serves.

The formulae, with the names used here, and how far they are from measurements: docs/formulation-capacity.md.

The state of a replica is one number, ρ: requests finished per step of a unit (`StepTime`), the same for arrivals.
With inputs of `i` and outputs of `o` tokens, d = o − 1 of them decoded (the first comes out of the prefill),
a step decodes B = ρ·d tokens, one for each running request, and prefills q = ρ·i tokens on average.
A step's time grows with ρ, so that latency objectives bound ρ from above; the rate is ρ over the mean time of a step.

Every quantity is an array over (sizes, ρ on a fixed grid). Between grid points, times are taken as linear in ρ.
That makes the largest rate exact for the interpolated curves,
and so never smaller on a GPU that is better in any respect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medley_planner.capacities.latency import Latency
from medley_planner.capacities.memory import ReplicaMemory
from medley_planner.capacities.percentiles import UNKNOWN_SQUARED_CV, PromptMix, largest_load, waiting_services
from medley_planner.capacities.step_budget import DEFAULT_STEP_TOKENS
from medley_planner.capacities.step_time import StepTime
from medley_planner.fleet import Role

FloatArray = npt.NDArray[np.float64]

MAX_SEQUENCES = 256
"""Requests that a data parallel rank decodes at once (vLLM's `--max-num-seqs`)."""
MAX_STEP_TOKENS = DEFAULT_STEP_TOKENS
"""Tokens of a step, decoded and prefilled together (vLLM's `--max-num-batched-tokens`)."""
KEY_VALUE_TRANSFER_BYTES_PER_S = 3.125e9
"""What a GPU can send to another node: a network of 25 Gbit/s, or its link to peers where that is slower.

A prefill replica hands the cache of a prompt over to a decode replica at this rate.
"""

_STEPS_PER_OCTAVE = 8
_IDLE_OCTAVES = np.arange(-28, -16)
_BUSY_OCTAVES = np.arange(-16 * _STEPS_PER_OCTAVE, 11 * _STEPS_PER_OCTAVE + 1) / _STEPS_PER_OCTAVE
_RHO: FloatArray = np.exp2(np.append(_IDLE_OCTAVES, _BUSY_OCTAVES))
"""Finished requests per step, from one in 2²⁸ steps (an idle replica) to `MAX_STEP_TOKENS` of one token.

Coarse where a replica has less than a request at once, unless its answers are longer than 65,000 tokens.
"""


_BISECTIONS = 40
"""Halvings of an interval of ρ: to a part in 10¹²."""


@dataclass(frozen=True)
class SteadyState:
    """Latencies of one unit of a replica over ρ, for each size.

    Args:
        units: Units of the replica.
        decoded: Tokens that are decoded for a request, after the first; (sizes,).
        prompts: Tokens that are prefilled for a request; (sizes,).
        step_s: Mean time of a step, which is the time per output token; (sizes, ρ).
        first_token_s: Mean time to the first token where no prompt waits for another; (sizes, ρ).
        prompt_s: Time that a prompt takes where others wait behind it, so that every step is full; (sizes, ρ).
        limit: Largest ρ that the engine's limits allow: requests at once, tokens of a step, and the cache, where a
            running request holds its input and, on average, half of its output; (sizes,). The units of a pipeline share
            the cache, and the requests at once, of their data parallel rank.
    """

    units: int
    decoded: FloatArray
    prompts: FloatArray
    step_s: FloatArray
    first_token_s: FloatArray
    prompt_s: FloatArray
    limit: FloatArray

    @classmethod
    def of(
        cls,
        times: StepTime,
        sizes: Sequence[tuple[int, int]],
        role: Role = Role.SHARED,
        *,
        step_tokens: int = MAX_STEP_TOKENS,
        max_sequences: float = MAX_SEQUENCES,
    ) -> SteadyState:
        """The steady state of a replica whose steps take these times.

        Args:
            times: Times of steps.
            sizes: Requests, as (input tokens, output tokens).
            role: A prefill replica decodes nothing, a decode replica prefills nothing.
            step_tokens: Most tokens of a step, decoded and prefilled together.
            max_sequences: Most requests that a data parallel rank decodes at once.
        """
        size_array = np.asarray(sizes, dtype=np.float64).reshape(-1, 2)
        inputs, outputs = size_array[:, :1], size_array[:, 1:]
        decoded = np.zeros_like(outputs) if role is Role.PREFILL else outputs - 1
        prompts = inputs
        if role is Role.DECODE:
            decoded, prompts = np.maximum(decoded, 1.0), np.zeros_like(inputs)
        context = inputs + (decoded + 1) / 2
        batch = np.where(decoded > 0, np.maximum(_RHO * decoded, 1.0), 0.0)
        room = np.maximum(step_tokens - batch, 1.0)
        prefilled = _RHO * prompts
        chunk = np.maximum(np.minimum(np.maximum(prompts, 1.0), room), prefilled)
        none = np.zeros_like(chunk)
        decode_s = np.where(decoded > 0, times.step_s(batch, context, none, inputs), 0.0)
        mixed_s = times.step_s(batch, context, chunk, inputs)
        mixed_share = prefilled / chunk
        if times.together > 1:
            # Where nothing is decoded every batch is alike, and none waits for another.
            waits = 1 - (1 - np.minimum(mixed_share, 1.0)) ** times.together
            mixed_share = np.where(decoded > 0, waits, mixed_share)
        step_s = (1 - mixed_share) * decode_s + mixed_share * mixed_s
        chunks = np.maximum(prompts / chunk, 1.0)
        first_token_s = step_s / 2 + chunks * mixed_s
        prompt_s = prompts / room * times.step_s(batch, context, room, inputs)
        if role is Role.PREFILL:
            first_token_s = first_token_s + _transfer_s(times, inputs)
        memory = ReplicaMemory.of(times.model, times.gpu, times.parallelism)
        together = np.minimum(max_sequences, memory.requests(context[:, 0])) / times.parallelism.pipeline
        by_batch = np.where(decoded[:, 0] > 0, together / np.maximum(decoded[:, 0], 1.0), np.inf)
        limit = np.minimum(by_batch, step_tokens / (prompts[:, 0] + decoded[:, 0]))
        return cls(times.units, decoded[:, 0], prompts[:, 0], step_s, first_token_s, prompt_s, limit)

    @property
    def idle(self) -> tuple[Latency, ...]:
        """Latencies with hardly any load."""
        return self.latencies(np.full(len(self.decoded), _RHO[0]))

    def latencies(self, rho: FloatArray) -> tuple[Latency, ...]:
        """Mean latencies at one ρ for each size."""
        per_token_s = np.where(self.decoded > 0, at_rho(self.step_s, rho), 0.0)
        both = zip(per_token_s.tolist(), at_rho(self.first_token_s, rho).tolist(), strict=True)
        return tuple(Latency(*latencies) for latencies in both)

    def waiting_s(self, rho: FloatArray, percentile: float | None, prompts: PromptMix | None = None) -> FloatArray:
        """Time to the first token at one ρ for each size, with the wait for prompts that came before."""
        prompt_s = at_rho(self.prompt_s, rho)
        others_s, squared_cv = self._others(prompt_s, prompts)
        load = np.where(rho > 0, rho / at_rho(self.step_s, rho), 0.0) * prompt_s
        with np.errstate(invalid="ignore"):
            waited = np.where(prompt_s > 0, waiting_services(load, percentile, squared_cv) * others_s, 0.0)
        return at_rho(self.first_token_s, rho) + waited

    def rho_within_wait(
        self, rho: FloatArray, first_token_s: float, percentile: float, prompts: PromptMix | None = None
    ) -> FloatArray:
        """The largest ρ up to `rho` at which this percentile of prompts has its first token in time."""
        low, high = np.zeros_like(rho), rho
        within = self.waiting_s(rho, percentile, prompts) <= first_token_s
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            holds = self.waiting_s(middle, percentile, prompts) <= first_token_s
            low, high = np.where(holds, middle, low), np.where(holds, high, middle)
        return np.where(within, rho, low)

    def prefill_rates(
        self, rho: FloatArray, first_token_s: float, percentile: float | None, prompts: PromptMix | None = None
    ) -> FloatArray:
        """The largest rates per unit of requests of which nothing is decoded; prompts that wait count.

        ρ says how many prompts share a step, and the load for how much of its time the replica computes at all.
        """
        service_s = self.step_s / _RHO
        others_s, squared_cv = self._others(service_s, prompts)
        slack = (first_token_s - self.first_token_s) / others_s
        rates = np.where(rho[:, None] >= _RHO, largest_load(slack, percentile, squared_cv) / service_s, 0.0)
        return np.asarray(np.max(rates, axis=1))

    def _others(self, own_s: FloatArray, prompts: PromptMix | None) -> tuple[FloatArray, float]:
        """The time of the prompts that one waits for, and how much it varies, from the time of its own.

        A prompt's time is taken as proportional to its tokens.
        """
        if prompts is None:
            return own_s, UNKNOWN_SQUARED_CV
        tokens = np.maximum(self.prompts, 1.0)
        ratio = prompts.mean_tokens / tokens
        return own_s * (ratio if own_s.ndim == 1 else ratio[:, None]), prompts.squared_cv

    def largest_rates(self, rho: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The largest rates per unit over all ρ up to the given ones, and where they are: engines may run below limits.

        Within a segment of the grid the rate is monotone, so that its maximum is at a grid point or at the end.
        """
        at_end = np.where(rho > 0, rho / at_rho(self.step_s, rho), 0.0)
        on_grid = np.where(rho[:, None] >= _RHO, _RHO / self.step_s, 0.0)
        best = np.argmax(on_grid, axis=1)
        largest = on_grid[np.arange(len(rho)), best]
        return np.maximum(at_end, largest), np.where(at_end >= largest, rho, _RHO[best])

    def rates_at(self, concurrency: FloatArray) -> FloatArray:
        """Requests per second of a replica that always has so many requests inside, for each size (Little's law).

        More requests than the engine's limits allow wait, and do not change the rate.
        """
        inside = self.units * _RHO / self.step_s * (self.first_token_s + self.decoded[:, None] * self.step_s)
        at = np.array([np.interp(count, row, _RHO) for count, row in zip(concurrency, inside, strict=True)])
        rho = np.minimum(at, self.limit)
        return np.asarray(self.units * rho / at_rho(self.step_s, rho))

    def residence_s(self, rho: FloatArray) -> FloatArray:
        """Time that a request is in the replica, from its first prompt token to its last output token, at one ρ."""
        return at_rho(self.first_token_s, rho) + self.decoded * at_rho(self.step_s, rho)


def at_rho(values: FloatArray, rho: FloatArray) -> FloatArray:
    """Each row's value at its ρ, linear between grid points."""
    above = np.clip(np.searchsorted(_RHO, rho), 1, len(_RHO) - 1)
    rows = np.arange(len(values))
    share = np.clip((rho - _RHO[above - 1]) / (_RHO[above] - _RHO[above - 1]), 0.0, 1.0)
    low = values[rows, above - 1]
    return np.asarray(low + share * (values[rows, above] - low))


def _transfer_s(times: StepTime, inputs: FloatArray) -> FloatArray:
    """Time to hand the cache of a prompt over to a decode replica: each GPU sends its part."""
    memory = ReplicaMemory.of(times.model, times.gpu, times.parallelism)
    sent_per_s = min(KEY_VALUE_TRANSFER_BYTES_PER_S, times.gpu.link_bandwidth_bytes_per_s)
    return memory.request_bytes(inputs) / sent_per_s


def rho_within(latency_s: FloatArray, objective_s: float) -> FloatArray:
    """Largest ρ at which each row's latency, which grows with ρ, is within the objective; 0 where none is."""
    count = np.argmax(np.append(latency_s > objective_s, np.ones((len(latency_s), 1), dtype=bool), axis=1), axis=1)
    rows = np.arange(len(latency_s))
    above = np.clip(count, 1, len(_RHO) - 1)
    below = above - 1
    low, high = latency_s[rows, below], latency_s[rows, above]
    rise = np.where(high > low, high - low, 1.0)
    share = np.clip((objective_s - low) / rise, 0.0, 1.0)
    rho = _RHO[below] + share * (_RHO[above] - _RHO[below])
    return np.where(count == 0, 0.0, np.where(count == len(_RHO), _RHO[-1], rho))
