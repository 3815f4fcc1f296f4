"""`medley model`: what is known of a model, from the catalogue or from its `config.json`, as a ModelProfile."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from medley_operator.api.catalogue import profile_of
from medley_operator.cli.columns import rows_table
from medley_operator.cli.inputs import STDIN, InputError, Mistake
from medley_operator.cli.prices import LIST_PRICES
from medley_planner.capacities.memory import too_small
from medley_planner.catalogue.config_fields import MAX_CHARACTERS
from medley_planner.catalogue.config_json import ConfigError, ModelReading, read_config
from medley_planner.catalogue.gpus import gpu_type
from medley_planner.catalogue.known_models import UnknownModelError, catalogue_of_models, known_model
from medley_planner.catalogue.models import ModelArchitecture
from medley_planner.fleet import GROUP_SIZES, Parallelism

CONFIG, QUANTISATION = "config.json", "hf_quant_config.json"
GIB, KIB = 2**30, 2**10
MAX_ID = 253
GPUS_OF_A_NODE = 8


@dataclass(frozen=True)
class FoundModel:
    """A model, and where its facts are from.

    Args:
        name: Its id, as services name it.
        source: Where the facts are from, for people.
        reading: The facts.
        also: Other ids with the same facts.
    """

    name: str
    source: str
    reading: ModelReading
    also: tuple[str, ...] = ()

    def profile(self) -> dict[str, Any]:
        """The ModelProfile, as a manifest to apply."""
        made = profile_of(self.name, self.reading)
        spec = made.spec.to_manifest()
        return {
            "apiVersion": made.api_version,
            "kind": made.kind,
            "metadata": {"name": made.name},
            "spec": {"model": spec["model"], "architecture": spec["architecture"]},
        }

    def to_data(self) -> dict[str, Any]:
        """What `-o json` prints: the profile, and what it is made of."""
        model = self.reading.architecture
        return {
            "profile": self.profile(),
            "family": self.reading.family,
            "dataType": self.reading.data_type,
            "weightBytes": round(model.weight_bytes),
            "keyValueBytesPerToken": model.key_value_bytes_per_token,
            "cacheBytesAtMaxContext": model.cache_bytes(model.max_context_tokens),
            "gpusForMaxContext": fewest_gpus(model),
            "source": self.source,
            "also": list(self.also),
            "notes": list(self.reading.notes),
        }


def find_model(asked: str, *, name: str | None = None) -> FoundModel:
    """The model of a file, a folder that holds a `config.json`, standard input (`-`), or the catalogue.

    Args:
        asked: The file, the folder, `-`, or an id on the hub.
        name: The model's id; by default the catalogue's, or the folder's name.

    Raises:
        InputError: There is no such file and no such model, or the file is none that can be understood.
    """
    path = Path(asked)
    if asked == STDIN:
        return _from_texts(name or "model", "standard input", _bounded(sys.stdin.buffer.read(_MAX_BYTES + 1), STDIN))
    try:
        if path.is_dir():
            return _from_folder(path, name)
        if path.is_file():
            folder = path.resolve().parent.name
            return _from_texts(name or folder or "model", str(path), _read(path))
    except OSError as error:
        raise InputError([Mistake(asked, None, "", f"cannot be read: {error.strerror or error}")]) from None
    if path.suffix == ".json":
        raise InputError([Mistake(asked, None, "", "there is no such file")])
    try:
        known = known_model(asked)
    except UnknownModelError as error:
        message = f"{error}; give the path of a config.json for one of your own"
        raise InputError([Mistake("model", None, "", message)]) from None
    own = next(known_name for known_name in known.names if known_name.casefold() == asked.casefold())
    source = f"the catalogue: {known.source}"
    return FoundModel(
        (name or own)[:MAX_ID], source, known.reading, tuple(other for other in known.names if other != own)
    )


def fewest_gpus(model: ModelArchitecture) -> dict[str, int | None]:
    """The fewest GPUs of a node, of each type with a list price, whose memory holds the model and one request of its
    longest context, in tensor parallel; None where a node of eight does not.
    """
    sizes = [size for size in GROUP_SIZES if size <= GPUS_OF_A_NODE and model.attention_heads % size == 0]
    return {
        name: next(
            (
                size
                for size in sizes
                if not too_small(model, gpu_type(name), Parallelism(size), model.max_context_tokens)
            ),
            None,
        )
        for name in sorted(LIST_PRICES)
    }


def model_tables(found: FoundModel) -> RenderableType:
    """A model for people."""
    model = found.reading.architecture
    head = Text.assemble((found.name, "bold"), f"  {found.reading.family}, from {found.source}")
    parts: list[RenderableType] = [head, rows_table(("", ""), _facts(model, found.reading))]
    if found.also:
        parts.append(Text(f"the same holds for {', '.join(found.also)}"))
    parts += [Text(f"note: {note}") for note in found.reading.notes]
    parts.append(Text("for a cluster: medley model … -o yaml   (a ModelProfile)", style="dim"))
    return Group(*parts)


def catalogue_table() -> RenderableType:
    """All models of the catalogue."""
    rows = [
        (
            name,
            _billions(known.architecture.parameters),
            _billions(known.architecture.parameters_per_token),
            known.reading.data_type,
            f"{known.architecture.weight_bytes / GIB:,.1f}",
            f"{known.architecture.key_value_bytes_per_token / KIB:,.1f}",
            f"{known.architecture.max_context_tokens:,}",
        )
        for name, known in catalogue_of_models().items()
    ]
    columns = ("model", "parameters", "per token", "weights", "GiB", "KiB/token", "context")
    return rows_table(columns, rows)


def catalogue_data() -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "model": name,
            "family": known.reading.family,
            "parameters": known.architecture.parameters,
            "activeParameters": known.architecture.parameters_per_token,
            "dataType": known.reading.data_type,
            "maxContextTokens": known.architecture.max_context_tokens,
            "source": known.source,
        }
        for name, known in catalogue_of_models().items()
    ]


_MAX_BYTES = 4 * MAX_CHARACTERS


def _facts(model: ModelArchitecture, reading: ModelReading) -> list[tuple[str, str]]:
    facts = [("parameters", f"{model.parameters:,} ({_billions(model.parameters)})")]
    if model.experts:
        active = f"{model.parameters_per_token:,} ({_billions(model.parameters_per_token)})"
        facts.append(("of them per token", active))
        facts.append(("experts", f"{model.active_experts} of {model.experts} routed for each token"))
    facts.append(("layers", _layers(model)))
    facts.append(("residual stream", f"{model.hidden_size:,} wide"))
    if model.latent_size:
        cached = f"latent attention: {model.latent_size} elements cached per layer and token"
    else:
        cached = f"{model.key_value_heads} key-value heads of {model.head_size}"
    facts.append(("attention", f"{model.attention_heads} heads, {cached}"))
    facts.append(("weights", f"{reading.data_type}, {model.weight_bytes / GIB:,.1f} GiB"))
    facts.append(("cache", f"{model.key_value_bytes_per_token / KIB:,.1f} KiB per token"))
    longest = model.cache_bytes(model.max_context_tokens) / GIB
    facts.append(("context", f"{model.max_context_tokens:,} tokens, whose cache takes {longest:,.1f} GiB"))
    fewest = fewest_gpus(model)
    held = ", ".join(f"{count}×{name}" for name, count in fewest.items() if count is not None)
    facts.append(("fits with it on", held or f"no {GPUS_OF_A_NODE} GPUs of {', '.join(fewest)}"))
    return facts


def _layers(model: ModelArchitecture) -> str:
    parts = [f"{model.layers}"]
    if model.window_layers:
        parts.append(f"{model.window_layers} of them look back {model.window_tokens:,} tokens")
    if model.constant_layers:
        state = model.state_bytes_per_request / 2**20
        parts.append(f"{model.constant_layers} cache nothing per token ({state:,.1f} MiB for a request)")
    return ", ".join(parts)


def _billions(parameters: int) -> str:
    return f"{parameters / 1e9:,.2f} B" if parameters < 100e9 else f"{parameters / 1e9:,.0f} B"


def _from_folder(path: Path, name: str | None) -> FoundModel:
    config = path / CONFIG
    if not config.is_file():
        raise InputError([Mistake(str(path), None, "", f"the folder holds no {CONFIG}")])
    beside = path / QUANTISATION
    quantisation = _read(beside) if beside.is_file() else None
    return _from_texts(name or path.resolve().name or "model", str(config), _read(config), quantisation)


def _from_texts(name: str, source: str, text: str, quantisation: str | None = None) -> FoundModel:
    shown = name.encode("utf-8", "replace").decode()[:MAX_ID]
    try:
        return FoundModel(shown, source, read_config(text, quantisation_text=quantisation))
    except ConfigError as error:
        raise InputError([Mistake(source, None, error.field, error.problem)]) from None


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return _bounded(file.read(_MAX_BYTES + 1), str(path))


def _bounded(data: bytes, shown: str) -> str:
    if len(data) > _MAX_BYTES:
        raise InputError([Mistake(shown, None, "", f"is larger than {_MAX_BYTES // 2**20} MiB")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError([Mistake(shown, None, "", "is not UTF-8 text")]) from None
