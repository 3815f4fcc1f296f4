"""YAML documents as plain JSON values, with the line of every field, and bounds on what a file can make us do (pure).

PyYAML's constructors lose positions and can be made to build objects or to blow up; here its parser is used alone,
and the values are built from its nodes. Scalars are read as kubectl reads them, which is not how PyYAML does: no dates,
no sexagesimals, `1e3` is a number. JSON is read too, being YAML.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

MAX_DEPTH = 64
MAX_VALUES = 500_000
MAX_REPEATED_VALUES = 20_000
"""Values that aliases may add: nobody writes so many, and a few lines can ask for any number."""

MAX_NUMBER_CHARACTERS = 64
MAX_SLOWLY_READ_CHARACTERS = 2**18
"""What libyaml does not read is read by the slow parser up to this length: in about a second."""


Path = tuple[str | int, ...]


class DocumentError(ValueError):
    """A document that cannot be read. `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
        self.message = message


@dataclass(frozen=True)
class Document:
    """One document of a YAML file.

    Args:
        value: What it holds: dicts, lists, strings, numbers, booleans and None.
        lines: The line, from 1, of every field and list item by its path; `()` is the document itself.
    """

    value: Any
    lines: dict[Path, int]

    def line_of(self, path: Path) -> int:
        """The line of a field; of a field that is not there, that of the object where it should be."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return 1


def documents(text: str) -> Iterator[Document]:
    """The documents of a YAML file, empty ones left out.

    Raises:
        DocumentError: The text is not YAML, or nested too deep, or expands too far, or says what JSON cannot.
    """
    builder = _Builder()
    try:
        for node in _nodes(text):
            lines: dict[Path, int] = {(): node.start_mark.line + 1}
            value = builder.document(node, lines)
            if value is not None:
                yield Document(value, lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise DocumentError(1 if mark is None else mark.line + 1, _problem(error)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DocumentError(line, f"the character U+{error.character:04X} is not allowed in YAML") from None


def _problem(error: yaml.MarkedYAMLError) -> str:
    return ", ".join(part for part in (error.context, error.problem) if part) or "is not YAML"


def _nodes(text: str) -> Iterator[yaml.Node]:
    """The documents' nodes, by libyaml where it reads the text: several times as fast.

    Where it does not, PyYAML's own parser has the word: it also reads what JSON allows and libyaml does not, and its
    errors are the better ones. A text that would take it long is left to libyaml, with JSON's escapes made readable.
    """
    if yaml.__with_libyaml__:
        try:
            yield from list(_composed(_FastLoader(text)))
        except (yaml.YAMLError, UnicodeEncodeError):
            if len(text) > MAX_SLOWLY_READ_CHARACTERS:
                yield from _composed(_FastLoader(_with_whole_characters(text)))
                return
        else:
            return
    yield from _composed(_Loader(text))


def _with_whole_characters(text: str) -> str:
    """JSON with characters in place of their escaped halves, which libyaml refuses; other text as it is."""
    return _ESCAPED_HALVES.sub(_whole_character, text) if text.lstrip()[:1] in {"{", "["} else text


def _whole_character(match: re.Match[str]) -> str:
    high, low = int(match[2], 16), int(match[3], 16)
    return match[1] + chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))


_ESCAPED_HALVES = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


def _composed(loader: _Loader) -> Iterator[yaml.Node]:
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                yield node
    finally:
        loader.dispose()


class _Composer(yaml.composer.Composer):
    """Refuses deep nesting before it exhausts the stack; the parser it is put together with gives the events."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[attr-defined]
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Resolver(yaml.resolver.BaseResolver):
    """Kubectl's scalars."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own interface


class _Loader(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser, _Composer, _Resolver):
    """From text to nodes, in Python."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        _Composer.__init__(self)
        _Resolver.__init__(self)


if TYPE_CHECKING or not yaml.__with_libyaml__:
    _FastLoader = _Loader
else:

    class _FastLoader(_Composer, yaml.cyaml.CParser, _Resolver):
        """From text to nodes, by libyaml."""

        def __init__(self, text: str) -> None:
            yaml.cyaml.CParser.__init__(self, text)
            _Composer.__init__(self)
            _Resolver.__init__(self)


_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
)
for _name, _pattern, _first in _SCALARS:
    _Resolver.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), list(_first))


@dataclass
class _Builder:
    """Builds values from nodes; counts them over all documents of a file, so that aliases cannot multiply them."""

    values: int = 0
    repeated: int = 0
    _open: set[int] = field(default_factory=set)
    _built: set[int] = field(default_factory=set)
    _repeating: int = 0

    def document(self, node: yaml.Node, lines: dict[Path, int]) -> Any:
        """The value of a document; aliases do not reach into another one, whose nodes may be gone."""
        self._built.clear()
        return self.build(node, (), lines)

    def build(self, node: yaml.Node, path: Path, lines: dict[Path, int]) -> Any:
        """The value of a node."""
        self.values += 1
        if self.values > MAX_VALUES:
            raise _error(node, f"holds more than {MAX_VALUES:,} values")
        if self._repeating:
            self.repeated += 1
            if self.repeated > MAX_REPEATED_VALUES:
                raise _error(node, f"its aliases add more than {MAX_REPEATED_VALUES:,} values")
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if id(node) in self._open or len(path) > MAX_DEPTH:
            raise _error(node, "contains itself")
        again = id(node) in self._built
        self._built.add(id(node))
        self._open.add(id(node))
        self._repeating += again
        try:
            if isinstance(node, yaml.SequenceNode):
                return self._sequence(node, path, lines)
            assert isinstance(node, yaml.MappingNode)
            return self._mapping(node, path, lines)
        finally:
            self._open.remove(id(node))
            self._repeating -= again

    def _sequence(self, node: yaml.SequenceNode, path: Path, lines: dict[Path, int]) -> list[Any]:
        _check_tag(node, "seq")
        made = []
        for index, item in enumerate(node.value):
            lines[*path, index] = item.start_mark.line + 1
            made.append(self.build(item, (*path, index), lines))
        return made

    def _mapping(self, node: yaml.MappingNode, path: Path, lines: dict[Path, int]) -> dict[str, Any]:
        _check_tag(node, "map")
        made: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                merged = self._merged(value_node, path, lines) | merged
                continue
            key = _key(key_node)
            if key in made:
                raise _error(key_node, f"the key {key!r} is given twice")
            lines[*path, key] = key_node.start_mark.line + 1
            made[key] = self.build(value_node, (*path, key), lines)
        return merged | made

    def _merged(self, node: yaml.Node, path: Path, lines: dict[Path, int]) -> dict[str, Any]:
        """What `<<: *base` brings in: a mapping, or a list of mappings of which the first wins."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        made: dict[str, Any] = {}
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                raise _error(source, "only a mapping can be merged")
            made = self.build(source, path, lines) | made
        return made


def _scalar(node: yaml.ScalarNode) -> Any:
    text = _text(node)
    match node.tag.removeprefix(_TAG):
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() in {"yes", "true", "on"}
        case "int" | "float" as kind:
            return _number(node, kind)
        case _:
            raise _error(node, f"the tag {node.tag} cannot be read as JSON")


def _number(node: yaml.ScalarNode, kind: str) -> int | float:
    text = node.value.replace("_", "")
    if len(text) > MAX_NUMBER_CHARACTERS:
        raise _error(node, f"a number of {len(text)} characters")
    try:
        if kind == "float":
            value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            if not math.isfinite(value):
                raise _error(node, f"{node.value} is not a number in JSON")
            return value
        digits = text.lstrip("+-")
        octal = len(digits) > 1 and digits.isdigit() and digits[0] == "0"
        return int(text, 8) if octal else int(text, 0)
    except ValueError:
        raise _error(node, f"{node.value!r} is not a number") from None


def _key(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _error(node, "keys must be plain strings")
    value = _scalar(node)
    if isinstance(value, bool):
        return str(value).lower()
    return _text(node)


def _text(node: yaml.ScalarNode) -> str:
    """The text of a scalar; two halves of a surrogate pair, which JSON escapes such characters with, become one."""
    text = str(node.value)
    if text.isascii():
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _error(node, "half of a surrogate pair is not a character") from None


def _check_tag(node: yaml.Node, wanted: str) -> None:
    if node.tag != _TAG + wanted:
        raise _error(node, f"the tag {node.tag} cannot be read as JSON")


def _error(node: yaml.Node, message: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=node.start_mark)
