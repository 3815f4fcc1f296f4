"""Talks to the manager; reconnects when it was replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from socket import socket
from typing import Any

from medley_engine.memory import wire


class ManagerUnavailableError(ConnectionError):
    """Nobody answers at the manager's socket within the deadline."""


class ManagerClient:
    """One connection, one request at a time; safe to share between threads.

    Requests are idempotent (or name what they change), so a request whose reply was lost is sent again to the new
    manager.
    """

    def __init__(self, path: Path, token: str, role: str, deadline_s: float = 20.0) -> None:
        self._path, self._token, self._role = path, token, role
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._connection: socket | None = None

    def call(self, do: str, deadline_s: float | None = None, **fields: Any) -> wire.Frame:
        """A request without descriptors."""
        reply, fds = self.call_fds(do, deadline_s, **fields)
        if fds:
            raise wire.WireError(f"{do} returned descriptors that nobody asked for")
        return reply

    def call_fds(self, do: str, deadline_s: float | None = None, **fields: Any) -> tuple[wire.Frame, list[int]]:
        """A request and the descriptors of its reply.

        Raises:
            ManagerUnavailableError: nobody answered within the deadline.
            wire.RemoteError: the manager refused.
        """
        end = time.monotonic() + (self._deadline_s if deadline_s is None else deadline_s)
        with self._lock:
            while True:
                try:
                    if self._connection is None:
                        self._connection = wire.connect(self._path, self._token, role=self._role)
                    return wire.call(self._connection, {"do": do, **fields})
                except (OSError, EOFError) as error:
                    self._drop()
                    if time.monotonic() >= end:
                        raise ManagerUnavailableError(f"manager does not answer: {error}") from error
                    time.sleep(0.02)

    def lease(self, holder: str, count: int) -> tuple[list[int], int | None]:
        """Ask for KV blocks; returns them and how many the pool may lend in all. None where the manager is away just
        now (the caller asks again at its next step).
        """
        try:
            reply = self.call("kv_lease", deadline_s=0.0, holder=holder, count=count)
        except ManagerUnavailableError:
            return [], None
        return list(reply["blocks"]), int(reply["capacity"])

    def release(self, holder: str, blocks: Sequence[int]) -> bool:
        """Give KV blocks back; False where the manager is away just now."""
        try:
            self.call("kv_release", deadline_s=0.0, holder=holder, blocks=list(blocks))
        except ManagerUnavailableError:
            return False
        return True

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()
