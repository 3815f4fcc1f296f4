"""Every rank of an instance connected to every other by a Unix socket, for collectives of one node.

The ranks of one node exchange a few kilobytes three times per layer. A general library hands each exchange to threads
of its own and back, which on a machine with fewer cores than ranks costs more than what is computed between two
exchanges. Here the rank's own thread writes to its peers and reads from them: the socket's buffer holds what a peer
has not read yet. A peer that dies is noticed at once, as the end of its stream.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medley_engine.memory import wire

_LENGTH = struct.Struct("<Q")
_BUFFER_BYTES = 1 << 20
_RETRY_S = 0.002
_AT_ONCE = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class PeerLostError(RuntimeError):
    """A rank of the instance is gone, or silent for too long. No error of a connection, which commands of the
    coordinator get over: after this one, nobody knows how far the others' messages were read, so the rank must end.
    """


class Mesh:
    """Connections of one rank to the others. Ranks must call :meth:`swap` in the same order."""

    def __init__(self, prefix: Path, rank: int, size: int, token: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._peers: dict[int, socket.socket] = {}
        own = self._path(prefix, rank)
        end = time.monotonic() + timeout_s
        with wire.listen(own) as server:
            try:
                for peer in range(rank):
                    self._peers[peer] = self._connect(self._path(prefix, peer), rank, token, end)
                while len(self._peers) < size - 1:
                    server.settimeout(max(0.01, end - time.monotonic()))
                    connection, _ = server.accept()
                    connection.settimeout(timeout_s)
                    try:
                        _, hello = wire.accept_peer(connection, token)
                    except (wire.WireError, EOFError):
                        # Nobody of this instance, or somebody who is gone already.
                        connection.close()
                    else:
                        self._peers[int(hello["rank"])] = connection
            finally:
                own.unlink(missing_ok=True)
        wait = struct.pack("@ll", int(timeout_s), int(timeout_s % 1 * 1e6))
        for connection in self._peers.values():
            # The kernel's own time limit: Python's costs a system call for each read.
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)

    @staticmethod
    def _path(prefix: Path, rank: int) -> Path:
        return prefix.with_name(f"{prefix.name}-{rank}.mesh")

    @staticmethod
    def _connect(path: Path, rank: int, token: str, end: float) -> socket.socket:
        while True:
            try:
                return wire.connect(path, token, rank=rank)
            except (FileNotFoundError, ConnectionRefusedError) as error:
                if time.monotonic() > end:
                    raise PeerLostError(f"{path.name} never listened") from error
                time.sleep(_RETRY_S)

    def swap(self, give: Mapping[int, Any], take: Iterable[int]) -> dict[int, bytearray]:
        """Send to each rank of ``give`` its bytes, and receive as much as each rank of ``take`` sends.

        Raises:
            PeerLostError: one of them is gone, or sent nothing for too long.
        """
        rest = {}
        for peer, data in give.items():
            left = _send(self._peers[peer], b"".join((_LENGTH.pack(len(data)), data)))
            if left:
                rest[peer] = left
        coming = {peer: _Incoming(self._peers[peer]) for peer in take}
        if rest:
            self._push(rest, coming)
        for incoming in coming.values():
            while not incoming.done:
                incoming.advance(0)
        return {peer: incoming.data for peer, incoming in coming.items()}

    def _push(self, rest: dict[int, memoryview], coming: Mapping[int, _Incoming]) -> None:
        """Send what does not fit into buffers while reading what comes, else ranks could wait for each other."""
        numbers = {self._peers[peer].fileno(): peer for peer in {*rest, *coming}}
        while rest:
            poll = select.poll()
            for fd, peer in numbers.items():
                reads = peer in coming and not coming[peer].done
                poll.register(fd, (select.POLLOUT if peer in rest else 0) | (select.POLLIN if reads else 0))
            events = poll.poll(1000 * self._timeout_s)
            if not events:
                raise PeerLostError(f"ranks {sorted(rest)} do not read")
            for fd, event in events:
                peer = numbers[fd]
                if event & ~select.POLLOUT and peer in coming and not coming[peer].done:
                    coming[peer].advance(socket.MSG_DONTWAIT)
                if event & ~select.POLLIN and peer in rest:
                    left = _send(self._peers[peer], rest.pop(peer))
                    if left:
                        rest[peer] = left

    def close(self) -> None:
        """End all connections."""
        for connection in self._peers.values():
            connection.close()


def _send(peer: socket.socket, data: bytes | memoryview) -> memoryview | None:
    """Send without waiting; returns what did not fit."""
    try:
        sent = peer.send(data, _AT_ONCE)
    except BlockingIOError:
        sent = 0
    except OSError as error:
        raise PeerLostError(str(error)) from error
    return memoryview(data)[sent:] if sent < len(data) else None


class _Incoming:
    """One message of a peer: its length, then ``data``, complete when ``done``."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer, self._at, self._sized = peer, 0, False
        self.data = bytearray(_LENGTH.size)
        self.done = False

    def advance(self, flags: int) -> None:
        """Read more of it: what is there, or (``flags`` 0) waiting for more."""
        try:
            count = self._peer.recv_into(memoryview(self.data)[self._at :], 0, flags)
        except BlockingIOError:
            if flags:
                return
            raise PeerLostError("a rank sent nothing for too long") from None
        except OSError as error:
            raise PeerLostError(str(error)) from error
        if not count:
            raise PeerLostError("a rank ended its stream")
        self._at += count
        if self._at == len(self.data) and not self._sized:
            (length,) = _LENGTH.unpack(self.data)
            self.data, self._at, self._sized = bytearray(length), 0, True
        self.done = self._sized and self._at == len(self.data)
