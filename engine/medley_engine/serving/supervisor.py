"""The parent of every process of an engine. It keeps what must survive them and starts what died; it computes nothing.

It holds the descriptors of the manager's pools (as systemd's descriptor store does for a service) and the listening
HTTP socket, so that a killed manager finds its pages again and a killed coordinator's new clients wait in the backlog
instead of being refused. Children are tied to it by ``PR_SET_PDEATHSIG``: if it goes, everything goes, and the kernel
frees all memory.

One thread, no locks: the kernel ties children to the *thread* that started them.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medley_engine.memory import wire
from medley_engine.serving.keeping import KeptDescriptors
from medley_engine.serving.settings import Settings

log = logging.getLogger("medley.engine.supervisor")

TOKEN_VARIABLE = "MEDLEY_ENGINE_TOKEN"  # noqa: S105 - the name of the variable
_MODULES = {
    "hmm": "medley_engine.memory",
    "coordinator": "medley_engine.serving.coordinator",
    "zygote": "medley_engine.runtime.zygote",
}
_BACKOFF_S = (0.0, 0.0, 0.1, 0.5, 2.0, 5.0)
_STEADY_S = 30.0
_KEPT = ("zygote", "hmm", "coordinator")
_PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Child:
    """A process of this supervisor. Ranks are not started again: whoever asked for them decides."""

    key: str
    pid: int
    pidfd: int
    started_s: float

    def kill(self) -> None:
        """End it. Its id is its own until it is waited for, so this never hits another process."""
        os.kill(self.pid, signal.SIGKILL)


def _tie_to_parent() -> None:
    """Runs in the child before exec."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Supervisor:
    """Loop over sockets, children and signals."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._token = secrets.token_hex(32)
        self._kept = KeptDescriptors()
        self._children: dict[str, Child] = {}
        self._exits: dict[str, int] = {}
        self._failures: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._unborn: dict[str, Any] = {}
        self._zygote: socket.socket | None = None
        self._zygote_ready = False
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        if settings.device == "cuda":
            # One descriptor for each item of each GPU; children inherit the limit.
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        run = settings.run_path
        run.mkdir(parents=True, exist_ok=True)
        run.chmod(0o700)
        for stale in [*run.glob("*.sock"), *run.glob("*.mesh"), run / "state.json"]:
            stale.unlink(missing_ok=True)
        (run / "token").write_text(self._token)
        (run / "token").chmod(0o600)
        self._server = wire.listen(run / "supervisor.sock")
        self._selector.register(self._server, selectors.EVENT_READ, self._accept)
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_r, selectors.EVENT_READ, self._drain_wake)

    def run(self) -> int:
        """Supervise until told to stop; returns the exit status."""
        signal.set_wakeup_fd(self._wake_w)
        # Ranks are forked by the zygote's children and become this process's when those end.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._terminate)
        for key in _KEPT:
            self._start(key)
        try:
            while not (self._stopping and "coordinator" not in self._children):
                for ready, _ in self._selector.select(self._wait_s()):
                    ready.data(ready.fileobj)
                self._start_due()
        finally:
            self._kill_all()
        return 0

    # --- children ----------------------------------------------------------------------------------------------

    def _start(self, key: str) -> None:
        passed: tuple[int, ...] = ()
        far: socket.socket | None = None
        arguments = [sys.executable, "-m", _MODULES[key], self._settings.dump()]
        if key == "coordinator":
            passed = (self._listener.fileno(),)
        elif key == "zygote":
            near, far = socket.socketpair()
            near.settimeout(5.0)
            self._zygote, self._zygote_ready = near, False
            self._selector.register(near, selectors.EVENT_READ, self._hear_zygote)
            passed = (far.fileno(),)
        arguments += [str(fd) for fd in passed]
        environment = {**os.environ, TOKEN_VARIABLE: self._token}
        # Ranks share few cores: without these, every library starts a thread per core in each of them.
        threads = str(self._settings.threads)
        environment.update({"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads})
        process = subprocess.Popen(
            arguments,
            env=environment,
            pass_fds=passed,
            preexec_fn=_tie_to_parent,  # noqa: PLW1509 - this process has one thread
            stdin=subprocess.DEVNULL,
        )
        if far is not None:
            far.close()
        self._adopt(key, process.pid)
        process.returncode = 0  # waited for by pidfd, like ranks, which no Popen started

    def _adopt(self, key: str, pid: int) -> None:
        child = Child(key, pid, os.pidfd_open(pid), time.monotonic())
        self._children[key] = child
        self._exits.pop(key, None)
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda _: self._ended(child))

    def _hear_zygote(self, channel: socket.socket) -> None:
        try:
            frame, _ = wire.receive_frame(channel)
        except (EOFError, OSError):
            self._selector.unregister(channel)
            channel.close()
            return
        if "ready" in frame:
            self._zygote_ready = True
            for key, spec in self._unborn.items():
                wire.send_frame(channel, {"key": key, "spec": spec})
            return
        key = str(frame["key"])
        self._adopt(key, int(frame["pid"]))
        if self._unborn.pop(key, None) is None:
            # Nobody wants it any more.
            self._children[key].kill()

    def _ended(self, child: Child) -> None:
        _, status = os.waitpid(child.pid, 0)
        status = os.waitstatus_to_exitcode(status)
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        del self._children[child.key]
        self._exits[child.key] = status
        if child.key.startswith("rank-"):
            self._sweep(child.key)
        if child.key in _KEPT and not self._stopping:
            steady = time.monotonic() - child.started_s > _STEADY_S
            failures = self._failures[child.key] = 0 if steady else self._failures.get(child.key, 0) + 1
            delay = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
            self._due[child.key] = time.monotonic() + delay
            log.warning("%s ended with status %s, started again in %.1f s", child.key, status, delay)

    def _sweep(self, key: str) -> None:
        """A rank that ended leaves its socket, and the one that its group met at where it did not meet."""
        run = self._settings.run_path
        (run / f"{key}.sock").unlink(missing_ok=True)
        (run / f"{key.removeprefix('rank-')}.mesh").unlink(missing_ok=True)

    def _wait_s(self) -> float | None:
        return max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None

    def _start_due(self) -> None:
        for key in [k for k, at in self._due.items() if at <= time.monotonic()]:
            del self._due[key]
            if not self._stopping:
                self._start(key)

    def _terminate(self, _number: int, _frame: Any) -> None:
        self._stopping = True
        coordinator = self._children.get("coordinator")
        if coordinator is not None:
            os.kill(coordinator.pid, signal.SIGTERM)

    def _kill_all(self) -> None:
        # The zygote first, so that nothing is born any more.
        for child in sorted(self._children.values(), key=lambda c: c.key != "zygote"):
            child.kill()
            os.waitpid(child.pid, 0)
        self._kept.close()
        for left in [*self._settings.run_path.glob("*.sock"), *self._settings.run_path.glob("*.mesh")]:
            left.unlink(missing_ok=True)

    # --- requests ----------------------------------------------------------------------------------------------

    def _drain_wake(self, _: Any) -> None:
        try:
            os.read(self._wake_r, 4096)
        except BlockingIOError:
            return

    def _accept(self, _: Any) -> None:
        connection, _address = self._server.accept()
        connection.settimeout(5.0)
        try:
            wire.accept_peer(connection, self._token)
        except (OSError, EOFError, ValueError) as error:
            log.warning("refused a connection: %s", error)
            connection.close()
            return
        self._selector.register(connection, selectors.EVENT_READ, self._serve)

    def _serve(self, connection: socket.socket) -> None:
        try:
            request, fds = wire.receive_frame(connection)
            reply, given = self._answer(request, fds)
            wire.send_frame(connection, reply, given)
        except (EOFError, OSError, ValueError):
            self._selector.unregister(connection)
            connection.close()

    def _answer(self, request: wire.Frame, fds: list[int]) -> tuple[wire.Frame, list[int]]:
        answers: dict[str, Callable[[wire.Frame, list[int]], tuple[wire.Frame, list[int]]]] = {
            "put_fd": self._kept.put,
            "drop_fds": self._kept.drop,
            "take_fds": self._kept.take,
            "spawn": self._spawn,
            "kill": self._kill,
            "children": self._list_children,
        }
        answer = answers.get(str(request.get("do")))
        if answer is None:
            return {"error": "unknown_request", "message": f"no request {request.get('do')!r}"}, []
        return answer(request, fds)

    def _spawn(self, request: wire.Frame, _fds: list[int]) -> tuple[wire.Frame, list[int]]:
        key = f"rank-{request['key']}"
        if key not in self._children and key not in self._unborn:
            self._unborn[key] = request["spec"]
            if self._zygote_ready and self._zygote is not None:
                wire.send_frame(self._zygote, {"key": key, "spec": request["spec"]})
        return {}, []

    def _kill(self, request: wire.Frame, _fds: list[int]) -> tuple[wire.Frame, list[int]]:
        key = f"rank-{request['key']}"
        self._unborn.pop(key, None)
        if key in self._children:
            self._children[key].kill()
        return {}, []

    def _list_children(self, _request: wire.Frame, _fds: list[int]) -> tuple[wire.Frame, list[int]]:
        children = {key: child.pid for key, child in self._children.items()}
        return {"children": {**dict.fromkeys(self._unborn, 0), **children}, "exits": self._exits}, []


def bind(host: str, port: int) -> socket.socket:
    """The listening socket, which outlives coordinators."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(4096)
    return listener
