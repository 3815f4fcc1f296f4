"""Ports for engines that benchmarks and tests start."""

from __future__ import annotations

import socket

_PORTS_TRIED = 1000


def free_port(preferred: int) -> int:
    """The first port of loopback from ``preferred`` on at which nothing listens.

    One that the kernel picks would be of the range from which it takes the local ports of connections: somebody's next
    connection may have it before it is listened on.
    """
    for port in range(preferred, preferred + _PORTS_TRIED):
        with socket.socket() as probe:
            # As servers bind: connections that ended a moment ago do not keep a port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port from {preferred} on")
