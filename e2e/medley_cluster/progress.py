"""Steps with their elapsed time, shown as they go: a bring-up that takes minutes must never look hung.

In a terminal the running steps are a live table; elsewhere (CI logs) each slow step prints a line now and then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

HEARTBEAT_S = 20.0


@dataclass
class Step:
    """One piece of work; `note` says what was special about it ("cached", "3 images")."""

    name: str
    started_s: float = field(default_factory=time.monotonic)
    ended_s: float | None = None
    note: str = ""
    failed: bool = False

    @property
    def elapsed_s(self) -> float:
        """How long it has run, or ran."""
        return (self.ended_s or time.monotonic()) - self.started_s


class Steps:
    """Collects and shows steps; safe to use from several threads. Use it as a context manager for the live table."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, quiet=quiet, highlight=False)
        self.finished: list[Step] = []
        self.skipped: dict[str, str] = {}
        self._running: list[Step] = []
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._closing = threading.Event()
        self._heartbeat: threading.Thread | None = None

    def __enter__(self) -> Steps:
        if self.console.is_terminal and not self.console.quiet:
            self._live = Live(console=self.console, get_renderable=self._render, transient=True, refresh_per_second=8)
            self._live.start()
        else:
            self._heartbeat = threading.Thread(target=self._report_slow_steps, daemon=True)
            self._heartbeat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        if self._live:
            self._live.stop()
            self._live = None
        if self._heartbeat:
            self._heartbeat.join(timeout=1.0)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Time what happens inside, and print a line when it is over."""
        step = Step(name)
        with self._lock:
            self._running.append(step)
        try:
            yield step
        except BaseException:
            step.failed = True
            raise
        finally:
            step.ended_s = time.monotonic()
            with self._lock:
                self._running.remove(step)
                self.finished.append(step)
            mark = "[red]✘[/red]" if step.failed else "[green]✔[/green]"
            note = f"  [dim]{escape(step.note)}[/dim]" if step.note else ""
            self.console.print(f"{mark} {escape(name):<44} {step.elapsed_s:7.2f} s{note}")

    def skip(self, what: str, why: str) -> None:
        """Say that a part of the cluster is left out, and why."""
        self.skipped[what] = why
        self.console.print(f"[yellow]–[/yellow] {escape(what)}: skipped, {escape(why)}")

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(escape(text))

    def _render(self) -> Table:
        table = Table.grid(padding=(0, 1))
        with self._lock:
            running = list(self._running)
        for step in running:
            table.add_row(Spinner("dots"), escape(step.name), f"{step.elapsed_s:.0f} s", escape(step.note))
        return table

    def _report_slow_steps(self) -> None:
        while not self._closing.wait(HEARTBEAT_S):
            with self._lock:
                slow = [step for step in self._running if step.elapsed_s >= HEARTBEAT_S]
            for step in slow:
                self.console.print(f"… {escape(step.name)} {step.elapsed_s:.0f} s {escape(step.note)}")
