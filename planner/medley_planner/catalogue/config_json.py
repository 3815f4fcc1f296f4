"""A model's `config.json`, as text, to its architecture.

The parameters are not in the file: they follow from the shapes of all weights (`medley_planner.catalogue.shapes`).
The text may come from anywhere; whatever it holds, the answer is an architecture or a `ConfigError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from medley_planner.catalogue.config_families import reader
from medley_planner.catalogue.config_fields import ConfigError, Fields, parse_object, shown
from medley_planner.catalogue.config_quantisation import caches_in_8_bit, storage
from medley_planner.catalogue.models import ModelArchitecture, ModelError
from medley_planner.catalogue.shapes import Transformer

__all__ = ["ConfigError", "ModelReading", "read_config", "read_config_values"]

MAX_CONTEXT_TOKENS = 10_000_000
MAX_PARAMETERS = 100_000_000_000_000
MIN_PARAMETERS = 1_000_000
MAX_STATE_BYTES = 1e12

_CONTEXT = ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length", "max_sequence_length")
_CONTEXT_NOT_STRETCHED = frozenset({"default", "su", "longrope", "llama3", "mrope", "proportional"})
_INNER = ("text_config", "llm_config", "language_config", "thinker_config")

_FAMILY_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "falcon": {"max_position_embeddings": 2048},
        "gemma3_text": {
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
        },
    }
)
"""What a family's config may leave out and its modelling code fills in."""

_SAME_FAMILY = MappingProxyType(
    {
        "deepseek_v32": "deepseek_v3",
        "glm_moe_dsa": "deepseek_v3",
        "kimi_k2": "deepseek_v3",
        "mimo": "qwen2",
        "qwen2_5_vl": "qwen2",
        "qwen2_5_vl_text": "qwen2",
        "qwen2_vl": "qwen2",
        "qwen2_vl_text": "qwen2",
        "qwen3_vl_moe_text": "qwen3_moe",
        "qwen3_vl_text": "qwen3",
    }
)
"""Families that are built like another one."""


@dataclass(frozen=True)
class ModelReading:
    """What a `config.json` says.

    Args:
        family: Its `model_type`, that of the language model where it wraps one.
        architecture: What the planner needs.
        transformer: The shapes that the parameters follow from.
        data_type: How the weights are stored: `bf16` for all 16-bit ones, `fp8`, `int4`, `mxfp4`, …
        notes: What is worth knowing beside the figures, as sentences.
    """

    family: str
    architecture: ModelArchitecture
    transformer: Transformer
    data_type: str
    notes: tuple[str, ...]


def read_config(text: str, *, quantisation_text: str | None = None) -> ModelReading:
    """The architecture that a `config.json` describes.

    Args:
        text: The file's text.
        quantisation_text: Text of the `hf_quant_config.json` beside it, where there is one: it says how weights are
            stored in checkpoints whose config does not.

    Raises:
        ConfigError: It is no such file, its family is not known, or a field is missing or impossible.
    """
    values = parse_object(text)
    if quantisation_text is not None and values.get("quantization_config") is None:
        found = parse_object(quantisation_text).get("quantization")
        if not isinstance(found, dict):
            raise ConfigError("quantization", f"must be an object, is {shown(found)} (hf_quant_config.json)")
        values = {**values, "quantization_config": {"quant_method": "modelopt", **found}}
    return read_config_values(values)


def read_config_values(values: Mapping[str, Any]) -> ModelReading:
    """The same for a config that is parsed already; `read_config` for text that comes from anywhere.

    Raises:
        ConfigError: As `read_config`.
    """
    outer = Fields(values)
    notes: list[str] = []
    fields, family = _language_model(outer, values, notes)
    shapes_of = reader(_SAME_FAMILY.get(family, family), fields)
    context = _context_tokens(fields, family)
    transformer = shapes_of(fields, context)
    quantisation = outer.section("quantization_config") or fields.section("quantization_config")
    stored, data_type = storage(quantisation, transformer)
    if caches_in_8_bit(quantisation):
        notes.append("the checkpoint has scales for an 8-bit cache; with --kv-cache-dtype fp8 it takes half the memory")
    if fields.text("torch_dtype", "dtype", default=outer.text("torch_dtype", "dtype")) == "float32":
        notes.append("the checkpoint's 32-bit weights are taken for the 16 bits that engines cast them to")
    if "index_topk" in fields:
        notes.append("attention over an index of tokens is taken for full attention: estimates err on the safe side")
    if fields.integer("num_nextn_predict_layers", "num_mtp_modules", default=0, minimum=0):
        notes.append("layers that predict further tokens (MTP) are not counted: they serve speculative decoding only")
    try:
        architecture = transformer.architecture(max_context_tokens=context, storage=stored)
    except ModelError as error:
        raise ConfigError(error.field, error.problem) from error
    for name, count in (
        ("parameters", architecture.parameters),
        ("active_parameters", architecture.parameters_per_token),
    ):
        if not MIN_PARAMETERS <= count <= MAX_PARAMETERS:
            raise ConfigError(name, f"is {count} by the shapes, must be {MIN_PARAMETERS} to {MAX_PARAMETERS}")
    if architecture.state_bytes_per_request > MAX_STATE_BYTES:
        raise ConfigError("state_bytes_per_request", f"is {architecture.state_bytes_per_request:g} by the shapes")
    return ModelReading(family, architecture, transformer, data_type, tuple(notes))


def _language_model(outer: Fields, values: Mapping[str, Any], notes: list[str]) -> tuple[Fields, str]:
    """The fields of the language model, and its family; what it is wrapped in is told in a note."""
    family = outer.text("model_type")
    inner = next((name for name in _INNER if name in outer), None)
    if inner is None:
        if not family:
            raise outer.error("model_type", "is missing: is this a model's config.json?")
        fields = outer
    else:
        section = outer.section(inner)
        assert section is not None
        values = values[inner]
        fields = section
        family = fields.text("model_type", default=family)
        notes.append("counted is the language model; other towers of the model take memory beside it")
    defaults = _FAMILY_DEFAULTS.get(family)
    if defaults is not None:
        fields = Fields(
            {**defaults, **{name: value for name, value in values.items() if value is not None}}, inner or ""
        )
    return fields, family


def _context_tokens(fields: Fields, family: str) -> int:
    """The longest context, as engines derive it: the trained positions, stretched where the rotary scaling says so.

    Cohere's `model_max_length` goes before the positions. YaRN stretches `original_max_position_embeddings`, linear and
    dynamic scaling the positions; Llama 3's and LongRoPE's positions are the stretched ones already. More than
    `MAX_CONTEXT_TOKENS` are cut to that.
    """
    names = ("model_max_length", *_CONTEXT) if family.startswith("cohere") else _CONTEXT
    positions = min(fields.integer(*names, maximum=2**40), MAX_CONTEXT_TOKENS)
    scaling = fields.section("rope_scaling", "rope_parameters")
    if scaling is None or "gemma3" in family:
        return positions
    kind = scaling.text("rope_type", "type", default="default")
    if kind in _CONTEXT_NOT_STRETCHED:
        return positions
    if kind == "yarn":
        positions = scaling.integer("original_max_position_embeddings", default=positions, maximum=MAX_CONTEXT_TOKENS)
    factor = scaling.number("factor", default=1.0, minimum=1.0, maximum=10_000.0)
    return min(round(positions * factor), MAX_CONTEXT_TOKENS)
