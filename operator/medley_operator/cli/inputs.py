"""Files to API objects: read, bounded, checked, and every mistake told with its file, line and field."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medley_operator.api import GROUP
from medley_operator.api.base import ApiModel
from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.manifest import FieldPath, InvalidManifestError, parse_any, path_text
from medley_operator.api.modelprofile import ModelProfile
from medley_operator.cli.yaml_documents import Document, DocumentError, documents

MAX_FILE_BYTES = 8 * 2**20
MAX_TOTAL_BYTES = 64 * 2**20
MAX_FILES = 2_000
MAX_OBJECTS = 20_000
SUFFIXES = frozenset({".yaml", ".yml", ".json"})
KUSTOMIZATIONS = frozenset({"kustomization.yaml", "kustomization.yml", "Kustomization"})
STDIN = "-"


@dataclass(frozen=True)
class Mistake:
    """One thing wrong in the input.

    Args:
        file: The file, as the user named it.
        line: The line, from 1; None where the file as a whole is wrong.
        field: The field; empty where none is to blame.
        message: What is wrong, and what would be right.
    """

    file: str
    line: int | None
    field: str
    message: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.field}: {self.message}" if self.field else f"{place}: {self.message}"


class InputError(Exception):
    """The input is wrong; `mistakes` tells where, at least once."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = _in_order(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


def _in_order(mistakes: Iterable[Mistake]) -> tuple[Mistake, ...]:
    """The mistakes of each file by line, files in the order in which they were given."""
    told = list(mistakes)
    files = {name: place for place, name in enumerate(dict.fromkeys(mistake.file for mistake in told))}
    return tuple(sorted(told, key=lambda mistake: (files[mistake.file], mistake.line or 0)))


@dataclass(frozen=True)
class Source:
    """Where an object was read: a document of a file, or an item of a List in it."""

    file: str
    document: Document
    prefix: FieldPath = ()

    def mistake(self, path: FieldPath, message: str) -> Mistake:
        """A mistake in a field of the object."""
        name = "" if not path else path_text(path)
        return Mistake(self.file, self.document.line_of((*self.prefix, *path)), name, message)


@dataclass
class Inputs:
    """The objects of all files.

    `sources` is by (kind, namespace, name); `ignored` counts objects of kinds that planning does not need.
    """

    services: list[LLMService] = field(default_factory=list)
    pools: dict[str, GPUPool] = field(default_factory=dict)
    profiles: dict[str, ModelProfile] = field(default_factory=dict)
    config_maps: dict[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)
    sources: dict[tuple[str, str, str], Source] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)

    def source_of(self, service: LLMService) -> Source:
        """Where a service was read."""
        return self.sources["LLMService", service.namespace, service.name]


def read_inputs(names: Iterable[str]) -> Inputs:
    """The objects of files and folders (recursively), `-` being the standard input.

    Raises:
        InputError: Something is wrong; all mistakes that could be found are told together.
    """
    inputs = Inputs()
    mistakes: list[Mistake] = []
    total = 0
    for file, text in _texts(names, mistakes):
        total += len(text)
        if total > MAX_TOTAL_BYTES:
            raise InputError(
                [Mistake(file, None, "", f"more than {MAX_TOTAL_BYTES // 2**20} MiB in all files together")]
            )
        try:
            for document in documents(text):
                for source, manifest in _objects(file, document):
                    _add(inputs, source, manifest, mistakes)
        except DocumentError as error:
            mistakes.append(Mistake(file, error.line, "", error.message))
        if len(inputs.sources) > MAX_OBJECTS:
            raise InputError([Mistake(file, None, "", f"more than {MAX_OBJECTS} objects")])
    if mistakes:
        raise InputError(mistakes)
    inputs.services.sort(key=lambda service: service.key)
    return inputs


def _texts(names: Iterable[str], mistakes: list[Mistake]) -> Iterator[tuple[str, str]]:
    """Every file's name and text; what cannot be read becomes a mistake."""
    count = 0
    for name in names:
        for path in _files(name, mistakes):
            count += 1
            if count > MAX_FILES:
                raise InputError([Mistake(name, None, "", f"more than {MAX_FILES} files")])
            shown = STDIN if path is None else str(path)
            try:
                data = _read(path)
                if len(data) > MAX_FILE_BYTES:
                    mistakes.append(Mistake(shown, None, "", f"larger than {MAX_FILE_BYTES // 2**20} MiB"))
                    continue
                yield ("standard input" if path is None else shown), data.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                line = data.count(b"\n", 0, error.start) + 1
                mistakes.append(Mistake(shown, line, "", "is not UTF-8 text"))
            except (OSError, ValueError) as error:
                mistakes.append(_unreadable(shown, error))


def _files(name: str, mistakes: list[Mistake]) -> list[Path | None]:
    if name == STDIN:
        return [None]
    path = Path(name)
    try:
        return _files_of(path, mistakes) if path.is_dir() else [path]
    except (OSError, ValueError) as error:
        mistakes.append(_unreadable(name, error))
        return []


def _unreadable(name: str, error: OSError | ValueError) -> Mistake:
    """A file that cannot be read, or (a ValueError) whose name no file can have."""
    reason = error.strerror if isinstance(error, OSError) else None
    return Mistake(name, None, "", f"cannot be read: {reason or error}")


def _files_of(path: Path, mistakes: list[Mistake]) -> list[Path | None]:
    found = sorted(
        candidate
        for candidate in path.rglob("*")
        if candidate.suffix in SUFFIXES
        and candidate.name not in KUSTOMIZATIONS
        and not any(part.startswith(".") for part in candidate.relative_to(path).parts)
        and candidate.is_file()
    )
    if not found:
        mistakes.append(Mistake(str(path), None, "", "the folder holds no .yaml, .yml or .json file"))
    return list(found)


def _read(path: Path | None) -> bytes:
    """At most one byte more than is allowed."""
    if path is None:
        return sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


def _objects(file: str, document: Document) -> Iterator[tuple[Source, Any]]:
    """The objects of a document: itself, or the items of a List."""
    value = document.value
    if isinstance(value, dict) and value.get("kind") == "List" and isinstance(value.get("items"), list):
        for index, item in enumerate(value["items"]):
            yield Source(file, document, ("items", index)), item
    else:
        yield Source(file, document), value


def _add(inputs: Inputs, source: Source, manifest: Any, mistakes: list[Mistake]) -> None:
    """Put one object where it belongs."""
    if not isinstance(manifest, dict):
        mistakes.append(source.mistake((), "is not a Kubernetes object: an object with apiVersion and kind is needed"))
        return
    version, kind = manifest.get("apiVersion"), manifest.get("kind")
    for name, value in (("apiVersion", version), ("kind", kind)):
        if not isinstance(value, str) or not value:
            mistakes.append(source.mistake((name,), "is required"))
            return
    if (version, kind) == ("v1", "ConfigMap"):
        _add_config_map(inputs, source, manifest, mistakes)
    elif str(version).partition("/")[0] == GROUP:
        try:
            _add_object(inputs, source, parse_any(manifest), mistakes)
        except InvalidManifestError as error:
            mistakes += [source.mistake(wrong.path, wrong.message) for wrong in error.errors]
    else:
        inputs.ignored[str(kind)] = inputs.ignored.get(str(kind), 0) + 1


def _add_object(inputs: Inputs, source: Source, made: ApiModel, mistakes: list[Mistake]) -> None:
    if isinstance(made, LLMService):
        if _is_new(inputs, source, ("LLMService", made.namespace, made.name), mistakes):
            inputs.services.append(made)
    elif isinstance(made, GPUPool):
        if _is_new(inputs, source, ("GPUPool", "", made.name), mistakes):
            inputs.pools[made.name] = made
    elif isinstance(made, ModelProfile) and _is_new(inputs, source, ("ModelProfile", "", made.name), mistakes):
        inputs.profiles[made.name] = made


def _add_config_map(inputs: Inputs, source: Source, manifest: dict[str, Any], mistakes: list[Mistake]) -> None:
    metadata, data = manifest.get("metadata"), manifest.get("data") or {}
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(name, str):
        mistakes.append(source.mistake(("metadata", "name"), "is required"))
        return
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        mistakes.append(source.mistake(("data",), "must be a map to strings"))
        return
    namespace = str(metadata.get("namespace") or "default")
    if _is_new(inputs, source, ("ConfigMap", namespace, name), mistakes):
        inputs.config_maps[namespace, name] = data


def _is_new(inputs: Inputs, source: Source, identity: tuple[str, str, str], mistakes: list[Mistake]) -> bool:
    first = inputs.sources.get(identity)
    if first is not None:
        kind, namespace, name = identity
        where = f"{first.file}:{first.document.line_of(first.prefix)}"
        shown = f"{namespace}/{name}" if namespace else name
        mistakes.append(source.mistake(("metadata", "name"), f"{kind} {shown} is there already, at {where}"))
        return False
    inputs.sources[identity] = source
    return True
