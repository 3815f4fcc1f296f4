"""How long one step of an engine takes, from data sheets alone: a roofline.

A step decodes one token for each request of a batch and, with chunked prefill, computes some prompt tokens beside them.
Its time is a sum of terms, each the slower of moving bytes and computing, and the fixed costs of launching and
communicating. The formulae, with their constants and where those come from: docs/formulation-capacity.md.

The planner's steady state (`medley_planner.capacities.roofline`) and the simulator take their times from here alone.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medley_planner.capacities.memory import ReplicaMemory
from medley_planner.catalogue.gpus import GPUType
from medley_planner.catalogue.models import ModelArchitecture
from medley_planner.fleet import Parallelism

FloatArray = npt.NDArray[np.float64]

MFU = 0.60
"""Share of the peak arithmetic rate that matrix products reach."""
MBU = 0.75
"""Share of the peak memory bandwidth that reading weights reaches."""
KEY_VALUE_MBU = 0.60
"""Share of the peak memory bandwidth that reading the cache reaches."""
ATTENTION_MFU = 0.40
"""Share of the peak arithmetic rate that attention reaches."""
EXPERT_EFFICIENCY = 0.80
"""Routed experts, relative to the same work in dense layers: ragged batches and permutations."""
LAYER_OVERHEAD_S = 15e-6
"""Kernel launches and small kernels of a layer, in each step."""
EXPERT_LAYER_OVERHEAD_S = 20e-6
"""The same for what routes tokens to experts and gathers what they return: gate, choice, permutations, sums."""
LATENT_LAYER_OVERHEAD_S = 20e-6
"""The same for the smaller products and norms that compress and widen keys, values and queries (latent attention)."""
CONSTANT_LAYER_OVERHEAD_S = 20e-6
"""The same for convolution, gates and state update of a layer that keeps a constant state (linear attention)."""
STEP_OVERHEAD_S = 1e-3
"""Scheduling, sampling and detokenising, in each step."""
ALL_REDUCE_LATENCY_S = 15e-6
"""Fixed time of a collective: an all-reduce (a layer has two), a dispatch or a combine of experts' tokens."""
SEND_LATENCY_S = 15e-6
"""Fixed time of sending activations from one stage of a pipeline to the next."""
LINK_EFFICIENCY = 0.5
"""Share of the link's bandwidth that communication reaches."""

_ACTIVATION_BYTES = 2.0


@dataclass(frozen=True)
class StepTime:
    """Times of the steps of one *unit* of a replica: what steps as one batch.

    A replica has data · pipeline units. Its data parallel ranks each have requests of their own, and a pipeline is full
    only if as many batches as it has stages are in flight. All figures of a step are one unit's; the others are taken
    to be as busy.

    Batches in a pipeline follow each other through every stage, so that each waits for the slowest (`together` is how
    many of them). Ranks that share experts exchange tokens in every layer too, but one that waits for another's prompt
    has prompts of its own to compute meanwhile; measured replicas lose nothing to it.

    Args:
        model: The model that is served.
        gpu: Type of the replica's GPUs.
        parallelism: How the replica's GPUs share the work.
    """

    model: ModelArchitecture
    gpu: GPUType
    parallelism: Parallelism

    @property
    def units(self) -> int:
        """Batches of a replica that are in flight at once."""
        return self.parallelism.data * self.parallelism.pipeline

    @property
    def together(self) -> int:
        """Units whose steps follow each other, so that they take as long as the slowest of them."""
        return self.parallelism.pipeline

    def step_s(self, batch: FloatArray, context: FloatArray, chunk: FloatArray, prompt: FloatArray) -> FloatArray:
        """Seconds of a step, from when it enters the first GPU to when its tokens are there; arrays of one shape.

        Args:
            batch: Requests that decode one token each.
            context: Cached tokens of one of them, on average.
            chunk: Prompt tokens that the step computes.
            prompt: Tokens of the prompts that these belong to; each attends to half of its prompt, on average.
        """
        tokens = batch + chunk
        return (
            self._fixed_s
            + self._shared_s(tokens)
            + self._experts_s(tokens)
            + self._decode_attention_s(batch, context)
            + self._prompt_attention_s(chunk, prompt)
            + self._communication_s(tokens)
        )

    @property
    def _fixed_s(self) -> float:
        model = self.model
        layer_s = LAYER_OVERHEAD_S
        layer_s += EXPERT_LAYER_OVERHEAD_S if model.experts else 0.0
        layer_s += LATENT_LAYER_OVERHEAD_S if model.latent_size else 0.0
        layer_s += CONSTANT_LAYER_OVERHEAD_S * model.constant_layers / model.layers
        return STEP_OVERHEAD_S + layer_s * self._paced_layers

    @property
    def _paced_layers(self) -> int:
        """Layers of the fullest stage times the stages: every stage is given as long as the fullest one takes."""
        return self.parallelism.pipeline * -(-self.model.layers // self.parallelism.pipeline)

    @property
    def _pace(self) -> float:
        """What uneven stages cost: 1 where the layers can be shared out evenly."""
        return self._paced_layers / self.model.layers

    def _shared_s(self, tokens: FloatArray) -> FloatArray:
        """Matrix products outside of routed experts: the slower of reading the weights and computing."""
        model, gpus = self.model, self.parallelism.tensor
        weights = (model.shared_parameters - model.lookup_parameters) / gpus * self._pace
        read_s = weights * model.weight_bytes_per_parameter / (MBU * self.gpu.memory_bandwidth_bytes_per_s)
        per_token_s = 2 * weights / (MFU * self._flops_per_s)
        return np.maximum(read_s, per_token_s * tokens)

    def _experts_s(self, tokens: FloatArray) -> FloatArray:
        """Routed experts, spread over all of a stage's GPUs, with the tokens of all data parallel ranks.

        Of E experts of which each token takes k, n tokens touch E·(1 − (1 − k/E)ⁿ) if they choose independently.
        """
        model = self.model
        if not model.experts:
            return np.zeros_like(tokens)
        ranks = self.parallelism.data
        weights = model.expert_parameters / (self.parallelism.tensor * ranks) * self._pace
        taken = model.active_experts / model.experts
        touched = 1 - (1 - taken) ** (tokens * ranks)
        width = model.expert_bytes_per_parameter or model.weight_bytes_per_parameter
        read_s = weights * width * touched / (MBU * self.gpu.memory_bandwidth_bytes_per_s)
        compute_s = 2 * weights * taken * ranks / (MFU * self._flops_per_s) * tokens
        return np.maximum(read_s, compute_s) / EXPERT_EFFICIENCY

    @property
    def _flops_per_s(self) -> float:
        if self.model.computes_in_8_bit and self.gpu.dense_flops_8bit is not None:
            return self.gpu.dense_flops_8bit
        return self.gpu.dense_flops_16bit

    @functools.cached_property
    def _memory(self) -> ReplicaMemory:
        return ReplicaMemory.of(self.model, self.gpu, self.parallelism)

    def _decode_attention_s(self, batch: FloatArray, context: FloatArray) -> FloatArray:
        """Attention of decoded tokens: the slower of reading the cache and computing.

        Computing only counts with latent attention, where all heads attend to the same compressed tokens:
        4·heads·latent size operations for each of the cached ones.
        """
        model, memory = self.model, self._memory
        # The memory is that of the fullest stage: so many times it is every stage as long as that one takes.
        stages = self.parallelism.pipeline
        read = KEY_VALUE_MBU * self.gpu.memory_bandwidth_bytes_per_s
        window = np.minimum(context, model.window_tokens) if model.window_tokens else context
        of_windows = memory.window_key_value_bytes_per_token
        held = context * (memory.key_value_bytes_per_token - of_windows) + window * of_windows
        read_s = batch * (held + memory.state_bytes_per_request) * stages / read
        if not model.latent_size:
            return read_s
        width = model.attention_layers * model.attention_heads * model.latent_size / self.parallelism.tensor
        return np.maximum(
            read_s, 4 * width * self._pace * batch * context / (ATTENTION_MFU * self.gpu.dense_flops_16bit)
        )

    def _prompt_attention_s(self, chunk: FloatArray, prompt: FloatArray) -> FloatArray:
        """Attention of prompt tokens to half of their prompt, on average: 4·layers·heads·head size for each pair."""
        model = self.model
        reach = prompt / 2
        layers = model.attention_layers - model.window_layers + np.zeros_like(reach)
        pairs = layers * reach + model.window_layers * np.minimum(reach, model.window_tokens)
        width = model.attention_heads * model.head_size / self.parallelism.tensor
        per_pair_s = 4 * width * self._pace / (ATTENTION_MFU * self.gpu.dense_flops_16bit)
        return np.asarray(per_pair_s * chunk * pairs)

    def _communication_s(self, tokens: FloatArray) -> FloatArray:
        """What GPUs send each other, in the order of the terms below.

        - tensor: two ring all-reduces a layer (one, where the combine of experts does the work of the other); each
          sends 2·(t − 1)/t of the activations from every one of t GPUs;
        - experts under data parallelism: in every layer each of the stage's g GPUs sends its part of the tokens to the
          GPUs of their experts, (g − 1)·(1 − (1 − 1/g)ᵏ) of them other ones, and gets as much back;
        - pipeline: each stage but the last sends the activations on.
        """
        tensor, ranks, stages = self.parallelism.tensor, self.parallelism.data, self.parallelism.pipeline
        link = LINK_EFFICIENCY * self.gpu.link_bandwidth_bytes_per_s
        activations_s = self.model.hidden_size * _ACTIVATION_BYTES / link * tokens
        total = np.zeros_like(tokens)
        spread = ranks > 1 and self.model.experts > 0
        if tensor > 1:
            reduces = self._paced_layers * (1 if spread else 2)
            total = total + reduces * (ALL_REDUCE_LATENCY_S + 2 * (tensor - 1) / tensor * activations_s)
        if spread:
            gpus = tensor * ranks
            others = (gpus - 1) * (1 - (1 - 1 / gpus) ** self.model.active_experts)
            total = total + 2 * self._paced_layers * (ALL_REDUCE_LATENCY_S + others / tensor * activations_s)
        if stages > 1:
            total = total + (stages - 1) * (SEND_LATENCY_S + activations_s)
        return total
