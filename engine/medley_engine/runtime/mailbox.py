"""Frames between a rank and its coordinator, received by a thread while the rank computes. Some need not wait for the
step that runs: they are put aside, for another thread.
"""

from __future__ import annotations

import queue
import socket
import threading

from medley_engine.memory import wire


class Mailbox:
    """Frames from the coordinator, read by a thread into ``inbox``, commands of ``apart`` into ``aside``; a frame
    ``orphaned`` tells that the coordinator went away.
    """

    def __init__(self, server: socket.socket, token: str, apart: frozenset[str] = frozenset()) -> None:
        self._server, self._token, self._apart = server, token, apart
        self.inbox: queue.Queue[wire.Frame] = queue.Queue()
        self.aside: queue.Queue[wire.Frame] = queue.Queue()
        self._connection: socket.socket | None = None
        self._lock = threading.Lock()
        # Each is written by one thread only.
        self._exports_come = self._exports_obeyed = 0
        threading.Thread(target=self._run, name="mailbox", daemon=True).start()

    def _run(self) -> None:
        while True:
            connection, _ = self._server.accept()
            try:
                wire.accept_peer(connection, self._token)
                with self._lock:
                    self._connection = connection
                self.inbox.put({"do": "hello"})
                while True:
                    frame, _ = wire.receive_frame(connection)
                    self._exports_come += frame.get("do") == "export"
                    (self.aside if frame.get("do") in self._apart else self.inbox).put(frame)
            except (EOFError, OSError):
                with self._lock:
                    self._connection = None
                connection.close()
                self.inbox.put({"do": "orphaned"})

    def wants_export(self) -> bool:
        """Whether a command that ends the running step has come."""
        return self._exports_come > self._exports_obeyed

    def exported(self) -> None:
        """Such a command was obeyed."""
        self._exports_obeyed += 1

    def send(self, frame: wire.Frame) -> None:
        """Send to the coordinator; lost where there is none (it will ask for the state when it comes back)."""
        with self._lock:
            if self._connection is None:
                return
            try:
                wire.send_frame(self._connection, frame)
            except OSError:
                self._connection = None
