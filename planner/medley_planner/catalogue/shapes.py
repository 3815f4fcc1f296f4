"""A transformer as the shapes of its weights, and what follows from them: how many parameters, read how often.

A layer attends (or keeps a state), then feeds forward, densely or through experts. Layers of the same kind are counted,
not listed. Of every part, the weights of matrix products are told from the rest (norms, biases, routers): only the
former are ever quantised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from medley_planner.catalogue.models import ModelArchitecture, ModelError

Value = TypeVar("Value")

PLAIN_BYTES = 2.0
"""Bytes of a weight that is not quantised. Engines cast 32-bit checkpoints to 16 bits."""


@dataclass(frozen=True)
class Weights:
    """Parameters of a part of a layer.

    Args:
        matrices: Those of matrix products.
        rest: Norms, biases, routers and the like.
    """

    matrices: int = 0
    rest: int = 0

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.matrices + self.rest


@dataclass(frozen=True, kw_only=True)
class Attention:
    """How a layer looks back, and what it caches for that.

    Args:
        weights: Its parameters.
        heads: Query heads; 0 where the layer does not attend.
        key_value_heads: Heads that are cached.
        head_size: Width of a head; with latent attention, the mean of a head's query and its value.
        latent_size: Width of what is cached for a token, for all heads together, with latent attention; else 0.
        window_tokens: Tokens that it looks back at most; 0 is no bound.
        state_bytes: What it keeps for a request where it caches nothing per token.
    """

    weights: Weights = Weights()
    heads: int = 0
    key_value_heads: int = 0
    head_size: int = 0
    latent_size: int = 0
    window_tokens: int = 0
    state_bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """The second half of a layer.

    Args:
        weights: What every token passes through: a dense layer, or shared experts and the router.
        experts: Routed experts.
        active_experts: Those that a token passes through.
        expert: Parameters of one of them.
    """

    weights: Weights = Weights()
    experts: int = 0
    active_experts: int = 0
    expert: Weights = Weights()


@dataclass(frozen=True)
class Layers:
    """So many layers of one kind; `norms` are the parameters of a layer's norms."""

    count: int
    attention: Attention
    feed_forward: FeedForward
    norms: int = 0


@dataclass(frozen=True)
class Storage:
    """Bytes of a stored weight, by what it is a part of; embeddings, norms, biases and routers are never quantised.

    Args:
        attention: Matrices of attention.
        feed_forward: Matrices that every token passes through: dense layers and shared experts.
        experts: Matrices of routed experts.
        computes_in_bits: Width of the inputs of matrix products: 8 or 16.
    """

    attention: float = PLAIN_BYTES
    feed_forward: float = PLAIN_BYTES
    experts: float = PLAIN_BYTES
    computes_in_bits: int = 16


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A decoder-only transformer by the shapes of its weights.

    Args:
        hidden_size: Width of the residual stream.
        vocabulary: Rows of the embedding.
        tied: The output's embedding is the input's.
        layers: Its layers, by kind.
        rest: Parameters outside of layers and embeddings: the last norm, the output's bias.
    """

    hidden_size: int
    vocabulary: int
    tied: bool
    layers: tuple[Layers, ...]
    rest: int

    @property
    def embedding(self) -> int:
        """Parameters of the input's embedding."""
        return self.vocabulary * self.hidden_size

    @property
    def output(self) -> int:
        """Parameters of the output's embedding; 0 where it is the input's."""
        return 0 if self.tied else self.embedding

    @property
    def expert_parameters(self) -> int:
        """Parameters of all routed experts."""
        return self._sum(lambda layers: layers.feed_forward.experts * layers.feed_forward.expert.parameters)

    @property
    def parameters(self) -> int:
        """All parameters, each counted once."""
        return self._always + self.expert_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes through, embeddings included."""
        return self._always + self._sum(
            lambda layers: layers.feed_forward.active_experts * layers.feed_forward.expert.parameters
        )

    @property
    def _always(self) -> int:
        """Parameters outside of routed experts."""
        return (
            self.embedding
            + self.output
            + self.rest
            + self._sum(
                lambda layers: (
                    layers.attention.weights.parameters + layers.feed_forward.weights.parameters + layers.norms
                )
            )
        )

    def architecture(self, *, max_context_tokens: int, storage: Storage | None = None) -> ModelArchitecture:
        """What memory and time depend on.

        Raises:
            ModelError: Layers that attend differ in a way that `ModelArchitecture` cannot tell: in their heads, or
                their windows, or their experts.
        """
        stored = storage or Storage()
        attending = [layers for layers in self.layers if layers.attention.heads]
        attention = _only("attention", {_without_window(layers.attention) for layers in attending})
        windowed = [layers for layers in attending if layers.attention.window_tokens]
        routed = {(layers.feed_forward.experts, layers.feed_forward.active_experts) for layers in self.layers}
        experts, active_experts = _only("experts", (routed - {(0, 0)}) or {(0, 0)})
        shared_bytes, expert_bytes = self._mean_bytes(stored)
        return ModelArchitecture(
            parameters=self.parameters,
            active_parameters=self.active_parameters if experts else None,
            layers=sum(layers.count for layers in self.layers),
            hidden_size=self.hidden_size,
            attention_heads=attention[0],
            key_value_heads=attention[1],
            head_size=attention[2],
            latent_size=attention[3],
            experts=experts,
            active_experts=active_experts,
            weight_bytes_per_parameter=shared_bytes,
            expert_bytes_per_parameter=expert_bytes if experts and expert_bytes != shared_bytes else None,
            computes_in_bits=stored.computes_in_bits if stored != Storage() else None,
            lookup_parameters=0 if self.tied else self.embedding,
            window_layers=sum(layers.count for layers in windowed),
            window_tokens=_only("window", {layers.attention.window_tokens for layers in windowed} or {0}),
            constant_layers=sum(layers.count for layers in self.layers if not layers.attention.heads),
            state_bytes_per_request=float(sum(layers.count * layers.attention.state_bytes for layers in self.layers)),
            max_context_tokens=max_context_tokens,
        )

    def _mean_bytes(self, stored: Storage) -> tuple[float, float]:
        """Mean bytes of a parameter outside of routed experts, and of one of theirs."""
        saved = (PLAIN_BYTES - stored.attention) * self._sum(lambda layers: layers.attention.weights.matrices)
        saved += (PLAIN_BYTES - stored.feed_forward) * self._sum(lambda layers: layers.feed_forward.weights.matrices)
        routed = self._sum(lambda layers: layers.feed_forward.experts * layers.feed_forward.expert.matrices)
        saved_by_experts = (PLAIN_BYTES - stored.experts) * routed
        return (
            PLAIN_BYTES - saved / self._always,
            PLAIN_BYTES - saved_by_experts / max(self.expert_parameters, 1),
        )

    def _sum(self, figure: Callable[[Layers], int]) -> int:
        return sum(layers.count * figure(layers) for layers in self.layers)


def _without_window(attention: Attention) -> tuple[int, int, int, int]:
    return attention.heads, attention.key_value_heads, attention.head_size, attention.latent_size


def _only(what: str, values: set[Value]) -> Value:
    """The one value of a set."""
    if len(values) == 1:
        return next(iter(values))
    if not values:
        raise ModelError(what, "no layer has any")
    raise ModelError(what, f"differs between layers ({len(values)} kinds), which is not supported")
