"""How the story is told: chapters, the commands a user would type, what they printed, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass
class Chapter:
    """One part of the story; `outcome` is what the closing table says of it."""

    title: str
    outcome: str = ""
    elapsed_s: float = 0.0
    state: str = "told"


class Telling:
    """Prints the story as it happens and keeps what the closing table needs."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.chapters: list[Chapter] = []
        self._started_s = time.monotonic()

    @contextmanager
    def chapter(self, title: str) -> Iterator[Chapter]:
        """A headed, timed part; one that raises is recorded as failed, and the error goes on."""
        chapter = Chapter(title)
        self.chapters.append(chapter)
        self.console.print()
        self.console.rule(f"[bold cyan]{len(self.chapters)}. {escape(title)}", align="left", style="cyan")
        started_s = time.monotonic()
        try:
            yield chapter
        except BaseException:
            chapter.state = "failed"
            raise
        finally:
            chapter.elapsed_s = time.monotonic() - started_s

    def say(self, text: str) -> None:
        """A sentence of the story; rich markup is allowed."""
        self.console.print(text)

    def skip(self, title: str, why: str) -> None:
        """A part that this machine cannot tell, with the reason."""
        self.chapters.append(Chapter(title, outcome=f"skipped: {why}", state="skipped"))
        self.console.print(f"\n[yellow]{escape(title)}: skipped, {escape(why)}[/yellow]")

    def command(self, line: str) -> None:
        """A command as a user would type it."""
        self.console.print(f"[bold]$ {escape(line)}[/bold]")

    def output(self, text: str, *, most_lines: int = 40) -> None:
        """What a command printed, indented; a long one is cut, and says so."""
        lines = text.rstrip("\n").split("\n")
        for line in lines[:most_lines]:
            self.console.print(f"  {escape(line)}", overflow="ignore", no_wrap=True, crop=False)
        if len(lines) > most_lines:
            self.console.print(f"  [dim]… {len(lines) - most_lines} more lines[/dim]")

    def closing_table(self) -> Table:
        """The story in one table."""
        table = Table(title="The story", title_justify="left", header_style="bold", expand=False)
        table.add_column("#", justify="right")
        table.add_column("what changed")
        table.add_column("what Medley did")
        table.add_column("s", justify="right")
        colours = {"told": "green", "failed": "red", "skipped": "yellow"}
        for number, chapter in enumerate(self.chapters, 1):
            table.add_row(
                str(number),
                f"[{colours[chapter.state]}]{escape(chapter.title)}",
                escape(chapter.outcome),
                f"{chapter.elapsed_s:.1f}",
            )
        table.add_section()
        table.add_row("", "all", "", f"{self.elapsed_s:.1f}")
        return table

    @property
    def elapsed_s(self) -> float:
        """Seconds since the story began."""
        return time.monotonic() - self._started_s
