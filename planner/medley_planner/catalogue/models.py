"""What a model costs to run: its architecture in numbers, and throughput that somebody measured.

The numbers are those of a model's `config.json`; nothing here knows how fast any GPU is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DATA_TYPE_BYTES = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.53,
    "mxfp4": 0.53125,
    "nvfp4": 0.5625,
}
"""Bytes per element of a stored type.

int4 counts one 16-bit scale and one 4-bit zero point for every group of 128 weights (AWQ, GPTQ);
mxfp4 one 8-bit scale for every 32 weights, nvfp4 one for every 16.
"""


class ModelError(ValueError):
    """A figure of a model or of a measurement is impossible; the message starts with the field's name.

    Args:
        field: Name of the field in Python.
        problem: What is wrong with it.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


@dataclass(frozen=True, kw_only=True)
class ModelArchitecture:
    """A decoder-only transformer, as far as memory and time depend on it.

    Args:
        parameters: All parameters, experts included.
        active_parameters: Parameters that one token passes through; None for a dense model: all of them.
        layers: Transformer layers.
        hidden_size: Width of the residual stream.
        attention_heads: Query heads.
        key_value_heads: Heads that are cached; equal to `attention_heads` without grouped-query attention.
        head_size: Width of a head; with latent attention, the mean width of a head's query and its value.
        experts: Routed experts of a layer; 0 for a dense model.
        active_experts: Routed experts that one token passes through; 0 for a dense model.
        weight_bytes_per_parameter: Bytes of a stored weight.
        key_value_bytes_per_element: Bytes of a cached key or value.
        max_context_tokens: Longest input and output together that the model was made for.
        expert_bytes_per_parameter: Bytes of a stored weight of the routed experts, where they are stored in another
            type than the rest; None is `weight_bytes_per_parameter`.
        computes_in_bits: Width of the inputs of matrix products where the GPU can do that, 8 or 16; None follows from
            `weight_bytes_per_parameter`.
        lookup_parameters: Parameters that are looked up and never multiplied by: an input embedding that is not also
            the output's.
        latent_size: Width of what a layer caches for a token with latent attention (MLA): the compressed keys and
            values, and the rotary part of the key, all heads sharing it; 0 without. `key_value_heads` is then 1.
        window_layers: Layers that attend to the last `window_tokens` tokens only and cache no more of them.
        window_tokens: That window; 0 without such layers.
        constant_layers: Layers that cache nothing per token (linear attention, state spaces).
        state_bytes_per_request: What those cache for a request, whatever its length.

    Raises:
        ModelError: A figure is impossible or does not agree with another one.
    """

    parameters: int
    layers: int
    hidden_size: int
    attention_heads: int
    key_value_heads: int
    head_size: int
    max_context_tokens: int
    active_parameters: int | None = None
    experts: int = 0
    active_experts: int = 0
    weight_bytes_per_parameter: float = 2.0
    key_value_bytes_per_element: float = 2.0
    expert_bytes_per_parameter: float | None = None
    computes_in_bits: int | None = None
    lookup_parameters: int = 0
    latent_size: int = 0
    window_layers: int = 0
    window_tokens: int = 0
    constant_layers: int = 0
    state_bytes_per_request: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            "parameters",
            "layers",
            "hidden_size",
            "attention_heads",
            "key_value_heads",
            "head_size",
            "max_context_tokens",
        ):
            _require_integer(name, getattr(self, name), minimum=1)
        for name in ("weight_bytes_per_parameter", "key_value_bytes_per_element"):
            _require_positive(name, getattr(self, name))
        if self.attention_heads % self.key_value_heads:
            raise ModelError(
                "key_value_heads", f"{self.key_value_heads} does not divide the {self.attention_heads} attention heads"
            )
        self._check_experts()
        self._check_storage()
        self._check_cache()

    def _check_storage(self) -> None:
        if self.expert_bytes_per_parameter is not None:
            _require_positive("expert_bytes_per_parameter", self.expert_bytes_per_parameter)
        if self.computes_in_bits not in (None, 8, 16):
            raise ModelError("computes_in_bits", f"must be 8 or 16, is {self.computes_in_bits!r}")
        _require_integer("lookup_parameters", self.lookup_parameters, minimum=0)
        if self.lookup_parameters >= self.shared_parameters:
            raise ModelError(
                "lookup_parameters",
                f"{self.lookup_parameters} leaves nothing of the {self.shared_parameters:.0f} parameters outside of "
                "routed experts",
            )

    def _check_cache(self) -> None:
        for name in ("latent_size", "window_layers", "window_tokens", "constant_layers"):
            _require_integer(name, getattr(self, name), minimum=0)
        if self.latent_size and self.key_value_heads != 1:
            raise ModelError("key_value_heads", f"must be 1 with latent attention, is {self.key_value_heads}")
        if self.constant_layers >= self.layers:
            raise ModelError("constant_layers", f"{self.constant_layers} leaves none of the {self.layers} layers")
        if self.window_layers > self.attention_layers:
            raise ModelError("window_layers", f"{self.window_layers} is more than all {self.attention_layers} others")
        if (self.window_layers > 0) != (self.window_tokens > 0):
            raise ModelError("window_tokens", "must be given together with window_layers, or neither")
        if not math.isfinite(self.state_bytes_per_request) or self.state_bytes_per_request < 0:
            raise ModelError(
                "state_bytes_per_request", f"must be a number, at least 0, is {self.state_bytes_per_request!r}"
            )

    def _check_experts(self) -> None:
        _require_integer("experts", self.experts, minimum=0)
        _require_integer("active_experts", self.active_experts, minimum=0)
        if self.active_parameters is not None:
            _require_integer("active_parameters", self.active_parameters, minimum=1)
            if self.active_parameters > self.parameters:
                raise ModelError(
                    "active_parameters", f"{self.active_parameters} is more than all {self.parameters} parameters"
                )
        if self.experts == 0:
            if self.active_experts:
                raise ModelError("active_experts", f"is {self.active_experts}, but there are no experts")
            if self.active_parameters not in (None, self.parameters):
                raise ModelError("active_parameters", "is less than all parameters, but there are no experts")
            return
        if not 1 <= self.active_experts <= self.experts:
            raise ModelError("active_experts", f"must be between 1 and the {self.experts} experts")
        if self.active_parameters is None:
            raise ModelError("active_parameters", "must be given for a model with experts")
        if self.shared_parameters < 0:
            raise ModelError(
                "active_parameters",
                f"{self.active_parameters} is too few for {self.active_experts} of {self.experts} experts "
                f"of a model with {self.parameters} parameters",
            )

    @property
    def parameters_per_token(self) -> int:
        """Parameters that one token passes through."""
        return self.parameters if self.active_parameters is None else self.active_parameters

    @property
    def expert_parameters(self) -> float:
        """Parameters of all routed experts of all layers.

        From parameters = shared + E·e and active = shared + k·e, with E experts of which k are active:
        e = (parameters − active) / (E − k).
        """
        if self.experts == self.active_experts:
            return 0.0
        idle = self.parameters - self.parameters_per_token
        return idle * self.experts / (self.experts - self.active_experts)

    @property
    def shared_parameters(self) -> float:
        """Parameters that every token passes through: all but the routed experts."""
        return self.parameters - self.expert_parameters

    @property
    def weight_bytes(self) -> float:
        """Memory of all weights."""
        if self.expert_bytes_per_parameter is None:
            return self.parameters * self.weight_bytes_per_parameter
        shared = self.shared_parameters * self.weight_bytes_per_parameter
        return shared + self.expert_parameters * self.expert_bytes_per_parameter

    @property
    def attention_layers(self) -> int:
        """Layers that attend to earlier tokens, with a window or without."""
        return self.layers - self.constant_layers

    @property
    def key_value_bytes_per_token_and_layer(self) -> float:
        """Memory of what one layer that attends caches for one token."""
        width = self.latent_size or 2 * self.key_value_heads * self.head_size
        return width * self.key_value_bytes_per_element

    @property
    def key_value_bytes_per_token(self) -> float:
        """Memory of the cached keys and values of one token, over all layers and heads, within any window."""
        return self.attention_layers * self.key_value_bytes_per_token_and_layer

    @property
    def window_key_value_bytes_per_token(self) -> float:
        """The part of `key_value_bytes_per_token` that layers with a window hold, for the last `window_tokens` only."""
        return self.window_layers * self.key_value_bytes_per_token_and_layer

    def cache_bytes(self, tokens: float) -> float:
        """Memory of the cache of one request of so many tokens."""
        beyond_window = max(0.0, tokens - self.window_tokens)
        held = tokens * self.key_value_bytes_per_token - beyond_window * self.window_key_value_bytes_per_token
        return held + self.state_bytes_per_request

    @property
    def computes_in_8_bit(self) -> bool:
        """Whether matrix products run on 8-bit inputs where a GPU can do that; 4-bit weights are widened to 16 bits."""
        if self.computes_in_bits is not None:
            return self.computes_in_bits == 8
        return self.weight_bytes_per_parameter == DATA_TYPE_BYTES["fp8"]


@dataclass(frozen=True, kw_only=True)
class ThroughputPoint:
    """One measured operating point of one replica: at this rate of requests of this size, these mean latencies.

    Args:
        gpu: Name of the GPU type, as in the catalogue.
        tensor_parallel: GPUs that shared every matrix product.
        engine: Engine that was measured; None if the figures hold for any.
        pipeline_parallel: Stages of the replica's pipeline.
        data_parallel: Data parallel ranks of the replica; all figures are the whole replica's.
        input_tokens: Input size of the requests.
        output_tokens: Output size of the requests.
        requests_per_second: Rate that the replica sustained.
        time_per_output_token_s: Mean time between output tokens at that rate.
        time_to_first_token_s: Mean time to the first token at that rate.

    Raises:
        ModelError: A figure is impossible.
    """

    gpu: str
    tensor_parallel: int
    input_tokens: int
    output_tokens: int
    requests_per_second: float
    time_per_output_token_s: float
    time_to_first_token_s: float
    engine: str | None = None
    pipeline_parallel: int = 1
    data_parallel: int = 1

    def __post_init__(self) -> None:
        if not self.gpu:
            raise ModelError("gpu", "must not be empty")
        for name in ("tensor_parallel", "input_tokens", "output_tokens", "pipeline_parallel", "data_parallel"):
            _require_integer(name, getattr(self, name), minimum=1)
        for name in ("requests_per_second", "time_per_output_token_s", "time_to_first_token_s"):
            _require_positive(name, getattr(self, name))


def _require_integer(field: str, value: object, *, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelError(field, f"must be an integer, is {value!r}")
    if value < minimum:
        raise ModelError(field, f"must be at least {minimum}, is {value}")


def _require_positive(field: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ModelError(field, f"must be a positive number, is {value!r}")
