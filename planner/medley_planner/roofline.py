"""Throughput of a replica from data sheets alone: a steady state of continuous batching under a roofline.

The formulae, with the names used here, and how far they are from measurements: docs/formulation-capacity.md.

The state of a replica is one number, ρ: requests finished per step of the engine, the same for arrivals.
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

from medley_planner.fleet import Objectives
from medley_planner.gpus import GPUType
from medley_planner.latency import Latency
from medley_planner.memory import ReplicaMemory
from medley_planner.models import ModelArchitecture

FloatArray = npt.NDArray[np.float64]

MFU = 0.60
"""Share of the peak arithmetic rate that matrix products reach."""
MBU = 0.75
"""Share of the peak memory bandwidth that reading weights reaches."""
KEY_VALUE_MBU = 0.60
"""Share of the peak memory bandwidth that reading the cache reaches."""
ATTENTION_MFU = 0.40
"""Share of the peak arithmetic rate that attention over a prompt reaches."""
EXPERT_EFFICIENCY = 0.80
"""Routed experts, relative to the same work in dense layers: ragged batches and permutations."""
LAYER_OVERHEAD_S = 15e-6
"""Kernel launches and small kernels of a layer, in each step."""
STEP_OVERHEAD_S = 1e-3
"""Scheduling, sampling and detokenising, in each step."""
ALL_REDUCE_LATENCY_S = 15e-6
"""Fixed time of an all-reduce; a layer has two."""
LINK_EFFICIENCY = 0.5
"""Share of the link's bandwidth that an all-reduce reaches."""

MAX_SEQUENCES = 256
"""Requests that the engine decodes at once (vLLM's `--max-num-seqs`)."""
MAX_STEP_TOKENS = 2048
"""Tokens of a step, decoded and prefilled together (vLLM's `--max-num-batched-tokens`)."""

_STEPS_PER_OCTAVE = 8
_RHO: FloatArray = np.exp2(np.arange(-28 * _STEPS_PER_OCTAVE, 11 * _STEPS_PER_OCTAVE + 1) / _STEPS_PER_OCTAVE)
"""Finished requests per step, from one in 2²⁸ steps (an idle replica) to `MAX_STEP_TOKENS` of one token."""

_ACTIVATION_BYTES = 2.0


@dataclass(frozen=True)
class SustainedRates:
    """What a replica sustains within the objectives, for each size.

    Args:
        requests_per_second: Largest rates; 0 where even an idle replica misses an objective.
        idle: Mean latencies with hardly any load: no load has better ones.
    """

    requests_per_second: FloatArray
    idle: tuple[Latency, ...]


def sustained_rates(
    model: ModelArchitecture,
    gpu: GPUType,
    tensor_parallel: int,
    sizes: Sequence[tuple[int, int]],
    objectives: Objectives,
) -> SustainedRates:
    """The largest rates that one replica sustains within the objectives, for each (input tokens, output tokens).

    Nothing waits in a queue: the figures are means of a steady state, and headroom for bursts is the plan's.
    Every size must fit into the cache (`medley_planner.memory.too_small`).
    """
    replica = _Replica(model, gpu, tensor_parallel)
    size_array = np.asarray(sizes, dtype=np.float64).reshape(-1, 2)
    inputs, outputs = size_array[:, :1], size_array[:, 1:]
    step_s, first_token_s = _latencies(replica, inputs, outputs)
    rho = _rho_within_limits(replica, inputs[:, 0], outputs[:, 0])
    decodes = outputs[:, 0] > 1
    if objectives.time_per_output_token_s is not None:
        bound = _rho_within(step_s, objectives.time_per_output_token_s)
        rho = np.where(decodes, np.minimum(rho, bound), rho)
    if objectives.time_to_first_token_s is not None:
        rho = np.minimum(rho, _rho_within(first_token_s, objectives.time_to_first_token_s))
    idle = zip(np.where(decodes, step_s[:, 0], 0.0).tolist(), first_token_s[:, 0].tolist(), strict=True)
    return SustainedRates(_largest_rate(step_s, rho), tuple(Latency(*latencies) for latencies in idle))


def _latencies(replica: _Replica, inputs: FloatArray, outputs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean time of a step, which is the time per output token, and mean time to the first token; both (sizes, ρ)."""
    decoded = outputs - 1
    context = inputs + outputs / 2
    batch = np.where(decoded > 0, np.maximum(_RHO * decoded, 1.0), 0.0)
    prefilled = _RHO * inputs
    room = np.maximum(MAX_STEP_TOKENS - batch, 1.0)
    chunk = np.maximum(np.minimum(inputs, room), prefilled)
    decode_s = np.where(decoded > 0, replica.step_s(batch, context, np.zeros_like(chunk), inputs), 0.0)
    mixed_s = replica.step_s(batch, context, chunk, inputs)
    mixed_share = prefilled / chunk
    step_s = (1 - mixed_share) * decode_s + mixed_share * mixed_s
    chunks = np.maximum(inputs / chunk, 1.0)
    first_token_s = step_s / 2 + chunks * mixed_s
    return step_s, first_token_s


@dataclass(frozen=True)
class _Replica:
    """Times of one engine step on a replica; arrays in, arrays out."""

    model: ModelArchitecture
    gpu: GPUType
    tensor_parallel: int

    def step_s(self, batch: FloatArray, context: FloatArray, chunk: FloatArray, prompt: FloatArray) -> FloatArray:
        """Time of a step that decodes `batch` requests of `context` tokens and prefills `chunk` tokens of a prompt."""
        tokens = batch + chunk
        return (
            STEP_OVERHEAD_S
            + LAYER_OVERHEAD_S * self.model.layers
            + self._products_s(tokens)
            + self._cache_read_s(batch * context)
            + self._prompt_attention_s(chunk, prompt)
            + self._all_reduce_s(tokens)
        )

    @property
    def _flops_per_s(self) -> float:
        if self.model.computes_in_8_bit and self.gpu.dense_flops_8bit is not None:
            return self.gpu.dense_flops_8bit
        return self.gpu.dense_flops_16bit

    def _products_s(self, tokens: FloatArray) -> FloatArray:
        """Matrix products of a step: the slower of reading weights and computing, for shared weights and for experts.

        Of E routed experts of which each token takes k, n tokens touch E·(1 − (1 − k/E)ⁿ) if they choose independently.
        """
        model, gpus = self.model, self.tensor_parallel
        read = MBU * self.gpu.memory_bandwidth_bytes_per_s
        compute = MFU * self._flops_per_s
        shared = model.shared_parameters / gpus
        shared_s = np.maximum(shared * model.weight_bytes_per_parameter / read, 2 * shared * tokens / compute)
        if not model.experts:
            return shared_s
        all_experts = model.expert_parameters / gpus
        taken = model.active_experts / model.experts
        touched = 1 - (1 - taken) ** tokens
        experts_s = np.maximum(
            all_experts * touched * model.weight_bytes_per_parameter / read,
            2 * all_experts * taken * tokens / compute,
        )
        return shared_s + experts_s / EXPERT_EFFICIENCY

    def _cache_read_s(self, cached_tokens: FloatArray) -> FloatArray:
        memory = ReplicaMemory.of(self.model, self.gpu, self.tensor_parallel)
        read = KEY_VALUE_MBU * self.gpu.memory_bandwidth_bytes_per_s
        return cached_tokens * memory.key_value_bytes_per_token / read

    def _prompt_attention_s(self, chunk: FloatArray, prompt: FloatArray) -> FloatArray:
        """Attention of prompt tokens to half of their prompt, on average: 4·layers·heads·head size per pair."""
        width = self.model.layers * self.model.attention_heads * self.model.head_size / self.tensor_parallel
        return 4 * width * chunk * (prompt / 2) / (ATTENTION_MFU * self.gpu.dense_flops_16bit)

    def _all_reduce_s(self, tokens: FloatArray) -> FloatArray:
        """Two ring all-reduces a layer; each sends 2·(p − 1)/p of the activations from every one of p GPUs."""
        gpus = self.tensor_parallel
        if gpus == 1:
            return np.zeros_like(tokens)
        sent_bytes = 2 * (gpus - 1) / gpus * self.model.hidden_size * _ACTIVATION_BYTES * tokens
        link = LINK_EFFICIENCY * self.gpu.link_bandwidth_bytes_per_s
        return 2 * self.model.layers * (ALL_REDUCE_LATENCY_S + sent_bytes / link)


def _rho_within_limits(replica: _Replica, inputs: FloatArray, outputs: FloatArray) -> FloatArray:
    """Largest ρ that the engine's limits allow: requests at once, tokens of a step, and the cache.

    A running request holds its input and, on average, half of its output.
    """
    memory = ReplicaMemory.of(replica.model, replica.gpu, replica.tensor_parallel)
    batch = np.minimum(MAX_SEQUENCES, memory.key_value_tokens / (inputs + outputs / 2))
    by_batch = np.where(outputs > 1, batch / np.maximum(outputs - 1, 1), np.inf)
    return np.minimum(by_batch, MAX_STEP_TOKENS / (inputs + outputs - 1))


def _rho_within(latency_s: FloatArray, objective_s: float) -> FloatArray:
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


def _largest_rate(step_s: FloatArray, rho: FloatArray) -> FloatArray:
    """The largest ρ / step time over all ρ up to the given ones: an engine may run below its limits.

    Within a segment of the grid the rate is monotone, so that its maximum is at a grid point or at the end.
    """
    at_end = np.zeros_like(rho)
    for row, end in enumerate(rho):
        if end > 0:
            at_end[row] = end / np.interp(end, _RHO, step_s[row])
    allowed = rho[:, None] >= _RHO
    on_grid = np.max(np.where(allowed, _RHO / step_s, 0.0), axis=1)
    rates: FloatArray = np.maximum(at_end, on_grid)
    return rates
