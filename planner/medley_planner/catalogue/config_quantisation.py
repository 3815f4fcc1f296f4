"""How a checkpoint stores its weights, read from `quantization_config` (or ModelOpt's `hf_quant_config.json`).

Formats differ in what they leave in 16 bits. Every one leaves embeddings, norms and routers; the list of modules that a
checkpoint excludes decides about attention, dense layers and experts, each by the share of its layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from medley_planner.catalogue.config_fields import Fields
from medley_planner.catalogue.shapes import PLAIN_BYTES, Storage, Transformer

MAX_EXCLUDED = 100_000

ATTENTION, FEED_FORWARD, EXPERTS = "attention", "feed_forward", "experts"

_EXCLUSIONS = (
    "ignore",
    "ignored_layers",
    "modules_to_not_convert",
    "exclude_modules",
    "llm_int8_skip_modules",
    "exclude",
)


@dataclass(frozen=True)
class Format:
    """How matrices are stored.

    Args:
        name: What people call it.
        bytes_per_weight: Scales and zero points included.
        computes_in_bits: Width of the inputs of matrix products, where a GPU can do that.
    """

    name: str
    bytes_per_weight: float
    computes_in_bits: int = 16


def storage(quantisation: Fields | None, transformer: Transformer) -> tuple[Storage, str]:
    """The storage of a checkpoint of such a transformer, and its format's name; 16 bits where there is no section.

    Raises:
        ConfigError: The format is not known.
    """
    if quantisation is None:
        return Storage(), "bf16"
    form = _format(quantisation)
    if form is None:
        return Storage(), "bf16"
    kept = _excluded(_exclusions(quantisation), transformer)

    def stored(part: str) -> float:
        share = kept[part]
        return share * PLAIN_BYTES + (1 - share) * form.bytes_per_weight

    made = Storage(
        attention=stored(ATTENTION),
        feed_forward=stored(FEED_FORWARD),
        experts=stored(EXPERTS),
        computes_in_bits=form.computes_in_bits,
    )
    return made, form.name


def caches_in_8_bit(quantisation: Fields | None) -> bool:
    """Whether the checkpoint comes with scales for an 8-bit cache; engines use them when they are told to."""
    if quantisation is None:
        return False
    named = quantisation.name_or_section("kv_cache_scheme")
    if isinstance(named, Fields):
        return named.integer("num_bits", default=16) == 8
    return "FP8" in (named.upper(), quantisation.text("kv_cache_quant_algo").upper())


_FIXED = {
    "fp8": Format("fp8", 1.0, 8),
    "fbgemm_fp8": Format("fp8", 1.0, 8),
    "fp8_pb_wo": Format("fp8", 1.0, 8),
    "mxfp4": Format("mxfp4", 0.5 + 1 / 32),
    "nvfp4": Format("nvfp4", 0.5 + 1 / 16, 8),
}
"""Formats whose bytes follow from their name alone. A weight shares an 8-bit scale with 31 (mxfp4) or 15 (nvfp4)."""

_GROUPED = frozenset({"awq", "awq_marlin", "gptq", "gptq_marlin", "auto-round", "w4a16_awq"})


def _format(quantisation: Fields) -> Format | None:
    """The format; None where the section quantises nothing."""
    algorithm = quantisation.text("quant_algo").lower()
    method = quantisation.text("quant_method").lower()
    name = algorithm if method in {"", "modelopt"} else method
    if name in _FIXED:
        return _FIXED[name]
    if name in _GROUPED:
        bits = quantisation.integer("bits", "w_bit", default=4, maximum=8)
        return _integers(bits, quantisation.integer("group_size", "q_group_size", default=128, minimum=-1))
    if name == "bitsandbytes":
        return _bitsandbytes(quantisation)
    if name == "compressed-tensors":
        return _compressed_tensors(quantisation)
    field = "quant_algo" if name == algorithm and algorithm else "quant_method"
    raise quantisation.error(field, f"{name[:60]!r} is no known way to store weights" if name else "is missing")


def _integers(bits: int, group: int, *, zero_points: bool = True) -> Format:
    """Integer weights with one 16-bit scale and one zero point per group; a group of -1 is a whole row."""
    overhead = 0.0 if group <= 0 else (16 + (bits if zero_points else 0)) / 8 / group
    return Format(f"int{bits}", bits / 8 + overhead)


def _bitsandbytes(quantisation: Fields) -> Format:
    if quantisation.flag("load_in_4bit", "_load_in_4bit", default=False):
        scale = 1 / 64 if quantisation.flag("bnb_4bit_use_double_quant", default=False) else 4 / 64
        return Format("int4", 0.5 + scale)
    return Format("int8", 1.0)


def _compressed_tensors(quantisation: Fields) -> Format | None:
    """The format of the first group; sparsity is not counted. None where it quantises no weights."""
    groups = quantisation.section("config_groups")
    group = next(iter(groups.sections()), None) if groups is not None else None
    weights = None if group is None else group.section("weights")
    if group is None or weights is None:
        return None
    bits = weights.integer("num_bits", maximum=16)
    if bits == 16:
        return None
    inputs = group.section("input_activations")
    computes = 8 if inputs is not None and inputs.integer("num_bits", default=16) <= 8 else 16
    size = weights.integer("group_size", default=-1, minimum=-1)
    if weights.text("type", default="int") == "float":
        overhead = 1 / size if bits == 4 and size > 0 else 0.0
        return Format({8: "fp8", 4: "nvfp4"}.get(bits, f"fp{bits}"), bits / 8 + overhead, computes)
    made = _integers(bits, size, zero_points=not weights.flag("symmetric", default=True))
    return Format(made.name, made.bytes_per_weight, computes)


def _exclusions(quantisation: Fields) -> tuple[str, ...]:
    for name in _EXCLUSIONS:
        found = quantisation.texts(name)
        if found:
            if len(found) > MAX_EXCLUDED:
                raise quantisation.error(name, f"lists more than {MAX_EXCLUDED} modules")
            return found
    return ()


def _excluded(modules: Iterable[str], transformer: Transformer) -> dict[str, float]:
    """The share of each part's layers that the patterns keep in 16 bits.

    A layer counts as kept where any of the part's matrices is: that errs towards more memory.
    """
    layers = sum(kind.count for kind in transformer.layers)
    places: dict[str, set[int]] = {ATTENTION: set(), FEED_FORWARD: set(), EXPERTS: set()}
    everywhere: set[str] = set()
    for module in modules:
        name = module.replace("\\", "").lower()
        layer = _layer(name)
        for part in _parts(name):
            if layer is None:
                everywhere.add(part)
            elif layer < layers:
                places[part].add(layer)
    having = {
        ATTENTION: sum(kind.count for kind in transformer.layers if kind.attention.weights.matrices),
        FEED_FORWARD: sum(kind.count for kind in transformer.layers if kind.feed_forward.weights.matrices),
        EXPERTS: sum(kind.count for kind in transformer.layers if kind.feed_forward.experts),
    }
    return {
        part: 1.0 if part in everywhere else min(1.0, len(kept) / max(1, having[part])) for part, kept in places.items()
    }


_ELSEWHERE = ("vision", "visual", "router", "norm", "embed", "projector", "mtp", "indexer", "gate.")
_ROUTERS = frozenset({"gate", "shared_expert_gate", "wg"})
_MIXING = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "out_proj"})


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a layer that a pattern names; routers, norms and other towers are none."""
    last = name.rstrip("*.$").rpartition(".")[2]
    if any(word in name for word in _ELSEWHERE) or last in _ROUTERS:
        return ()
    found: tuple[str, ...] = ()
    if "attn" in name or "attention" in name or ("mixer." in name and last in _MIXING):
        found = (ATTENTION,)
    elif "shared_expert" in name:
        found = (FEED_FORWARD,)
    elif "experts" in name:
        found = (EXPERTS,)
    elif any(word in name for word in ("mlp", "feed_forward", "block_sparse_moe", "ffn")):
        found = (FEED_FORWARD,) if last.endswith("_proj") else (FEED_FORWARD, EXPERTS)
    elif "layers." in name and last.isdecimal():
        found = (ATTENTION, FEED_FORWARD, EXPERTS)
    return found


def _layer(name: str) -> int | None:
    """The layer that a pattern names; None where it names all."""
    _, found, rest = name.partition("layers.")
    digits = rest.partition(".")[0].rstrip("*$")
    return int(digits) if found and digits.isdecimal() and len(digits) <= 6 else None
