"""What a model costs to run: its architecture in numbers, and throughput that somebody measured.

The numbers are those of a model's `config.json`; nothing here knows how fast any GPU is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DATA_TYPE_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.53}
"""Bytes per element of a stored type.

int4 counts one 16-bit scale and one 4-bit zero point for every group of 128 weights (AWQ, GPTQ).
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
        head_size: Width of a head.
        experts: Routed experts of a layer; 0 for a dense model.
        active_experts: Routed experts that one token passes through; 0 for a dense model.
        weight_bytes_per_parameter: Bytes of a stored weight.
        key_value_bytes_per_element: Bytes of a cached key or value.
        max_context_tokens: Longest input and output together that the model was made for.

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
        return self.parameters * self.weight_bytes_per_parameter

    @property
    def key_value_bytes_per_token(self) -> float:
        """Memory of the cached keys and values of one token, over all layers and heads."""
        return 2 * self.layers * self.key_value_heads * self.head_size * self.key_value_bytes_per_element

    @property
    def computes_in_8_bit(self) -> bool:
        """Whether matrix products run on 8-bit inputs where a GPU can do that; 4-bit weights are widened to 16 bits."""
        return self.weight_bytes_per_parameter == DATA_TYPE_BYTES["fp8"]


@dataclass(frozen=True, kw_only=True)
class ThroughputPoint:
    """One measured operating point of one replica: at this rate of requests of this size, these mean latencies.

    Args:
        gpu: Name of the GPU type, as in the catalogue.
        tensor_parallel: GPUs of the replica.
        engine: Engine that was measured; None if the figures hold for any.
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

    def __post_init__(self) -> None:
        if not self.gpu:
            raise ModelError("gpu", "must not be empty")
        for name in ("tensor_parallel", "input_tokens", "output_tokens"):
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
