"""Descriptors that outlive the manager: the supervisor keeps them, as systemd's descriptor store does for a service."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from medley_engine.memory import wire


class KeptDescriptors:
    """The supervisor's side: answers to requests, each with the descriptors that came with it."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def put(self, request: wire.Frame, fds: list[int]) -> tuple[wire.Frame, list[int]]:
        """Keep one under a name, in place of what is kept there."""
        name = str(request["name"])
        self._forget(name)
        (self._fds[name],) = fds
        return {}, []

    def drop(self, request: wire.Frame, _fds: list[int]) -> tuple[wire.Frame, list[int]]:
        """Close some; names that are not kept are no error."""
        for name in request["names"]:
            self._forget(str(name))
        return {}, []

    def take(self, _request: wire.Frame, _fds: list[int]) -> tuple[wire.Frame, list[int]]:
        """Duplicates of all."""
        names = sorted(self._fds)
        return {"names": names}, [self._fds[name] for name in names]

    def _forget(self, name: str) -> None:
        fd = self._fds.pop(name, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close all, and let the memory behind them go."""
        for name in list(self._fds):
            self._forget(name)


class SupervisorKeeper:
    """The manager's side: its way to have descriptors kept."""

    def __init__(self, run_dir: Path, token: str) -> None:
        self._connection = wire.connect(run_dir / "supervisor.sock", token, role="hmm")

    def put(self, name: str, fd: int) -> None:
        """See ``FdKeeper``."""
        wire.call(self._connection, {"do": "put_fd", "name": name}, [fd])

    def drop(self, names: Sequence[str]) -> None:
        """See ``FdKeeper``."""
        wire.call(self._connection, {"do": "drop_fds", "names": list(names)})

    def take(self) -> dict[str, int]:
        """Descriptors that a predecessor left."""
        reply, fds = wire.call(self._connection, {"do": "take_fds"})
        return dict(zip(reply["names"], fds, strict=True))
