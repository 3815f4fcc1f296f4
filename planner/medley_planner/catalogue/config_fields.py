"""The fields of a model's `config.json`: bounded when parsed, typed when read, named when wrong.

A `config.json` comes from anywhere. Size, nesting and numbers are bounded before anything is computed from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

MAX_CHARACTERS = 4 * 2**20
MAX_DEPTH = 24
MAX_DIGITS = 18
MAX_DIGITS_OF_FRACTIONS = 100
MAX_SHOWN = 60

MAX_LAYERS = 10_000
MAX_WIDTH = 1_000_000
MAX_HEADS = 10_000
MAX_HEAD_SIZE = 10_000
MAX_EXPERTS = 100_000
MAX_VOCABULARY = 10_000_000


class ConfigError(ValueError):
    """A `config.json` cannot be understood; the message starts with the field, where one is to blame.

    Args:
        field: The field's path, such as `text_config.hidden_size`; empty where it is the whole.
        problem: What is wrong with it.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem


def parse_object(text: str) -> Mapping[str, Any]:
    """A JSON object of untrusted text.

    Raises:
        ConfigError: It is none, is too large or too deep, names a field twice, or has a number of absurd length.
            NaN and infinity, which some publishers write, are told where a field that counts has them.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError("", f"is larger than {MAX_CHARACTERS // 2**20} MiB")
    _check_depth(text)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_whole, parse_float=_float, parse_constant=float)
    except json.JSONDecodeError as error:
        raise ConfigError("", f"is not JSON: {error.msg}, line {error.lineno}, column {error.colno}") from error
    if not isinstance(value, dict):
        raise ConfigError("", f"must be a JSON object, is {shown(value)}")
    return value


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


class Fields:
    """Fields of an object in a `config.json`. A null is the same as a field that is not there.

    Where several names are given, they mean the same in different families; the first that is there counts.

    Args:
        values: The object.
        path: Its place, for messages; empty for the outermost one.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values = values
        self._path = path

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def path(self, name: str) -> str:
        """A field's path, for messages."""
        return f"{self._path}.{name}" if self._path else name

    def error(self, name: str, problem: str) -> ConfigError:
        """An error that names a field of this object."""
        return ConfigError(self.path(name), problem)

    def integer(self, *names: str, default: int | None = None, minimum: int = 1, maximum: int = MAX_WIDTH) -> int:
        """A whole number within bounds.

        Raises:
            ConfigError: It is none, out of bounds, or missing without a default.
        """
        name, value = self._first(names)
        if value is None:
            if default is None:
                alternatives = "" if len(names) == 1 else f" (or {', '.join(names[1:])})"
                raise self.error(names[0], f"is missing{alternatives}")
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, f"must be a whole number, is {shown(value)}")
        if not minimum <= value <= maximum:
            raise self.error(name, f"must be between {minimum} and {maximum}, is {value}")
        return value

    def number(self, name: str, *, default: float, minimum: float, maximum: float) -> float:
        """A number within bounds."""
        value = self._values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, f"must be a number, is {shown(value)}")
        if not minimum <= value <= maximum:
            raise self.error(name, f"must be between {minimum:g} and {maximum:g}, is {value:g}")
        return float(value)

    def flag(self, *names: str, default: bool) -> bool:
        """True or false."""
        name, value = self._first(names)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, f"must be true or false, is {shown(value)}")
        return value

    def text(self, *names: str, default: str = "") -> str:
        """A string."""
        name, value = self._first(names)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(name, f"must be a string, is {shown(value)}")
        return value

    def texts(self, *names: str) -> tuple[str, ...]:
        """A list of strings; empty where there is none."""
        name, value = self._first(names)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(name, f"must be a list of strings, is {shown(value)}")
        return tuple(value)

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers, at least 0; empty where there is none."""
        value = self._values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(
            isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= MAX_WIDTH for item in value
        ):
            raise self.error(name, f"must be a list of whole numbers, at least 0, is {shown(value)}")
        return tuple(value)

    def section(self, *names: str) -> Fields | None:
        """An object within this one; None where there is none."""
        name, value = self._first(names)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, f"must be an object, is {shown(value)}")
        return Fields(value, self.path(name))

    def name_or_section(self, name: str) -> str | Fields:
        """A string, empty where there is none, or an object within this one: some fields have been both."""
        return self.text(name) if isinstance(self._values.get(name), str) else self.section(name) or ""

    def sections(self) -> Sequence[Fields]:
        """All objects within this one, in their order."""
        return [Fields(value, self.path(name)) for name, value in self._values.items() if isinstance(value, dict)]

    def _first(self, names: Sequence[str]) -> tuple[str, Any]:
        for name in names:
            value = self._values.get(name)
            if value is not None:
                return name, value
        return names[0], None


def _check_depth(text: str) -> None:
    """Refuse nesting before the parser meets it: it recurses."""
    depth = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ConfigError("", f"is nested deeper than {MAX_DEPTH} levels")
        elif character in "]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ConfigError(name[:MAX_SHOWN], "is there twice")
            seen.add(name)
    return made


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS + 1:
        raise ConfigError("", f"has a number of more than {MAX_DIGITS} digits")
    return int(digits)


def _float(digits: str) -> float:
    if len(digits) > MAX_DIGITS_OF_FRACTIONS:
        raise ConfigError("", f"has a number of more than {MAX_DIGITS_OF_FRACTIONS} digits")
    return float(digits)
