"""The manager at its socket: one thread for each connection, one that watches attached processes."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

from medley_engine.config import parse_model_config
from medley_engine.layout import Layout
from medley_engine.memory import wire
from medley_engine.memory.checkpoint import Checkpoint
from medley_engine.memory.daemon import Manager


def serve(manager: Manager, path: Path, token: str) -> None:
    """Serve until the process is told to end."""
    server = wire.listen(path)
    threading.Thread(target=_reap_forever, args=(manager,), name="reaper", daemon=True).start()
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_converse, args=(manager, connection, token), daemon=True).start()


def _reap_forever(manager: Manager) -> None:
    while True:
        manager.reap(1.0)


def _converse(manager: Manager, connection: socket.socket, token: str) -> None:
    with connection:
        try:
            peer, _ = wire.accept_peer(connection, token)
            while True:
                request, fds = wire.receive_frame(connection)
                for fd in fds:
                    os.close(fd)
                reply, give = manager.handle(request, peer)
                wire.send_frame(connection, reply, give)
        except (EOFError, ConnectionError):
            return


def build_manager(model: Path, dtype: str, tensor_parallel: int, page_bytes: int, **options: Any) -> Manager:
    """A manager for a checkpoint folder."""
    checkpoint = Checkpoint(model)
    layout = Layout(parse_model_config(checkpoint.raw_config), dtype, tensor_parallel, page_bytes)
    return Manager(checkpoint, layout, **options)
