"""How the command answers: tables for people, JSON and YAML for programs, mistakes on standard error, exit statuses."""

from __future__ import annotations

import enum
import json
import os
import sys
from collections.abc import Iterable
from typing import Any

import yaml
from rich.console import Console, RenderableType
from rich.text import Text

from medley_operator.cli.inputs import Mistake

EXIT_OK = 0
EXIT_INFEASIBLE = 1
EXIT_BAD_INPUT = 2


class OutputFormat(enum.StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


DEFAULT_WIDTH = 120
"""Columns of a table where there is no terminal and COLUMNS does not say."""


def print_tables(tables: RenderableType) -> None:
    """Print tables on standard output, as wide as the terminal, without the blanks that they leave at ends of lines."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else DEFAULT_WIDTH
    console = Console(highlight=False, width=width)
    with console.capture() as captured:
        console.print(tables)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def print_data(value: Any, output: OutputFormat) -> None:
    """Print a value as JSON or YAML on standard output."""
    if output is OutputFormat.JSON:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120))


def print_mistakes(mistakes: Iterable[Mistake]) -> None:
    """Print what is wrong with the input on standard error, one line each."""
    print_errors(str(mistake) for mistake in mistakes)


def print_errors(messages: Iterable[str]) -> None:
    """Print errors on standard error, one line each."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    for message in messages:
        errors.print(Text.assemble(("error: ", "bold red"), message))
