"""Tells when attached processes have ended, however they end."""

from __future__ import annotations

import os
import select
import threading


class HolderWatch:
    """Processes by name. One thread waits (:meth:`ended`), any may add."""

    def __init__(self) -> None:
        self._epoll, self._lock = select.epoll(), threading.Lock()
        self._names: dict[int, str] = {}

    def add(self, name: str, pid: int) -> None:
        """Watch a process; one that is gone already has ended.

        Raises:
            ProcessLookupError: there is no such process.
        """
        pidfd = os.pidfd_open(pid)
        with self._lock:
            self._names[pidfd] = name
        self._epoll.register(pidfd, select.EPOLLIN)

    def ended(self, timeout_s: float) -> list[str]:
        """Wait until some have ended, or for so long; each is told once."""
        found = []
        for pidfd, _ in self._epoll.poll(timeout_s):
            self._epoll.unregister(pidfd)
            with self._lock:
                found.append(self._names.pop(pidfd))
            os.close(pidfd)
        return found
