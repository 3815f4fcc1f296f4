"""Child processes that outlive the command that started them, and that can be told apart from everybody else's.

Each is recorded with its pid *and* start time, so a reused pid is never killed; each carries the cluster's state folder
in its environment, so that what a crash left unrecorded (and containerd's shims) is found again.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from medley_cluster.waiting import WaitTimeoutError, wait_until

OWNER_VARIABLE = "MEDLEY_CLUSTER_STATE"

# Children of this very process, whatever object started them: once ended, they must be waited for.
_children: set[int] = set()


class ProcessDiedError(RuntimeError):
    """A process of the cluster ended by itself; the message ends with the last lines of its log."""


def start_time_ticks(pid: int) -> int | None:
    """When a live process started, in clock ticks since boot; None when it is gone or a zombie.

    A zombie with other threads is still ending: it may hold its ports for a moment.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    state, threads, started = fields[0], int(fields[17]), int(fields[19])
    return None if state in "ZX" and threads <= 1 else started


@dataclass(frozen=True)
class ProcessRecord:
    """What is needed to find a process again and be sure that it is the same one."""

    name: str
    pid: int
    start_ticks: int
    argv: list[str]

    def alive(self) -> bool:
        """Whether it runs."""
        return start_time_ticks(self.pid) == self.start_ticks


class ProcessTable:
    """The processes of one cluster: records under `run/`, logs under `logs/`."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self._run_dir = state_dir / "run"
        self._log_dir = state_dir / "logs"

    def log_path(self, name: str) -> Path:
        """The log of the process with this name."""
        return self._log_dir / f"{name}.log"

    def get(self, name: str) -> ProcessRecord | None:
        """The record of a process, whether it runs or not."""
        try:
            return ProcessRecord(**json.loads((self._run_dir / f"{name}.json").read_text()))
        except FileNotFoundError:
            return None

    def all(self) -> list[ProcessRecord]:
        """All records."""
        return [record for path in sorted(self._run_dir.glob("*.json")) if (record := self.get(path.stem))]

    def alive(self, name: str) -> bool:
        """Whether it runs."""
        _reap()
        record = self.get(name)
        return record is not None and record.alive()

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> ProcessRecord:
        """Start a process in a session of its own, unless it runs already. It outlives this process."""
        existing = self.get(name)
        if existing and existing.alive():
            return existing
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._log_dir.mkdir(parents=True, exist_ok=True)
        log, flags = str(self.log_path(name)), os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o644)]
        environment = {**os.environ, **(env or {}), OWNER_VARIABLE: str(self.state_dir)}
        pid = os.posix_spawnp(
            argv[0],
            list(argv),
            environment,
            file_actions=[*actions, (os.POSIX_SPAWN_DUP2, 1, 2)],
            setsid=True,
        )
        _children.add(pid)
        ticks = start_time_ticks(pid)
        record = ProcessRecord(name, pid, ticks if ticks is not None else -1, list(argv))
        temporary = self._run_dir / f".{name}.tmp"
        temporary.write_text(json.dumps(asdict(record)))
        temporary.rename(self._run_dir / f"{name}.json")
        return record

    def stop(self, name: str, grace_s: float = 10.0, kill: bool = False) -> None:
        """Ask the process to end, insist after `grace_s`, and forget it."""
        record = self.get(name)
        if record is None:
            return
        terminate([record], grace_s, kill)
        _reap()
        (self._run_dir / f"{name}.json").unlink(missing_ok=True)

    def check(self, name: str) -> None:
        """Raise with the end of its log when the process is not running."""
        if not self.alive(name):
            raise ProcessDiedError(f"{name} has ended. {self.log_tail(name)}")

    def log_tail(self, name: str, lines: int = 15) -> str:
        """The end of a log, for error messages."""
        path = self.log_path(name)
        try:
            tail = path.read_text(errors="replace").splitlines()[-lines:]
        except FileNotFoundError:
            return f"No log at {path}."
        return f"End of {path}:\n" + "\n".join(tail)

    def stragglers(self) -> list[ProcessRecord]:
        """Processes that carry this cluster's mark in their environment, recorded or not."""
        mark = f"{OWNER_VARIABLE}={self.state_dir}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            pid = int(entry.name)
            ticks = start_time_ticks(pid)
            if mark in environment and ticks is not None:
                argv = [part.decode(errors="replace") for part in command if part]
                found.append(ProcessRecord(Path(argv[0]).name if argv else "?", pid, ticks, argv))
        return found


def _reap() -> None:
    for pid in list(_children):
        if os.waitpid(pid, os.WNOHANG)[0]:
            _children.discard(pid)


def terminate(records: Sequence[ProcessRecord], grace_s: float, kill: bool = False) -> None:
    """End processes, all at once: a polite signal first, then SIGKILL for those that stay."""
    _send(records, signal.SIGKILL if kill else signal.SIGTERM)
    try:
        wait_until(lambda: not any(record.alive() for record in records), grace_s, "processes end")
    except WaitTimeoutError:
        _send(records, signal.SIGKILL)
        wait_until(lambda: not any(record.alive() for record in records), 5.0, "killed processes end")


def _send(records: Sequence[ProcessRecord], number: signal.Signals) -> None:
    for record in records:
        if record.alive():
            try:
                os.kill(record.pid, number)
            except ProcessLookupError:
                continue
