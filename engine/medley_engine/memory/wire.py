"""Frames over a Unix socket: a JSON object each, with file descriptors where needed, between peers that know each
other.

A peer is let in when it runs as the same user (``SO_PEERCRED``, which the kernel vouches for) and shows the token of
the run, which children inherit through their environment. The directory of the sockets is closed to other users
besides.
"""

from __future__ import annotations

import array
import hmac
import json
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LENGTH = struct.Struct("!I")
_MAX_FRAME_BYTES = 256 * 1024 * 1024
_MAX_FDS = 64

Frame = dict[str, Any]


class WireError(ConnectionError):
    """The peer sent something that is no frame, or is not who it must be."""


class RemoteError(RuntimeError):
    """The peer understood the request and refused it; ``kind`` is a word to act on."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, by the kernel's word."""

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer:
    """Ask the kernel who connected."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", raw)
    return Peer(pid, uid)


def encode(frame: Frame) -> bytes:
    """One frame as bytes."""
    body = json.dumps(frame, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


def send_frame(connection: socket.socket, frame: Frame, fds: Sequence[int] = ()) -> None:
    """Send one frame, descriptors with its first bytes: so many with each as the kernel takes at once."""
    data = memoryview(encode(frame))
    batches = [list(fds[start : start + _MAX_FDS]) for start in range(0, len(fds), _MAX_FDS)]
    if len(batches) > len(data):
        raise ValueError(f"a frame of {len(data)} bytes cannot carry {len(fds)} descriptors")
    sent = 0
    for number, batch in enumerate(batches, 1):
        sent += socket.send_fds(connection, [data[sent:] if number == len(batches) else data[sent : sent + 1]], batch)
    connection.sendall(data[sent:])


def receive_frame(connection: socket.socket) -> tuple[Frame, list[int]]:
    """Receive one frame and its descriptors, which the caller now owns.

    Raises:
        EOFError: the peer closed the connection between frames.
        WireError: it closed inside one, or sent something else.
    """
    fds: list[int] = []
    head = _receive(connection, _LENGTH.size, fds)
    if not head:
        raise EOFError("peer closed the connection")
    if len(head) < _LENGTH.size:
        raise WireError("connection closed inside a frame")
    (length,) = _LENGTH.unpack(head)
    if length > _MAX_FRAME_BYTES:
        raise WireError(f"frame of {length} bytes is over the limit")
    body = _receive(connection, length, fds)
    if len(body) < length:
        raise WireError("connection closed inside a frame")
    frame = json.loads(body)
    if not isinstance(frame, dict):
        raise WireError("a frame must be an object")
    return frame, fds


def _receive(connection: socket.socket, size: int, fds: list[int]) -> bytes:
    """Read ``size`` bytes, or fewer where the peer closes; descriptors may come with any part."""
    parts: list[bytes] = []
    left = size
    while left:
        data, ancillary, _, _ = connection.recvmsg(left, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
                fds.extend(numbers)
        if not data:
            break
        parts.append(data)
        left -= len(data)
    return b"".join(parts)


def listen(path: Path) -> socket.socket:
    """Listen at ``path`` for this user only; a socket that a dead run left there is replaced."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    server.bind(str(path))
    path.chmod(0o600)
    server.listen(64)
    return server


def accept_peer(connection: socket.socket, token: str) -> tuple[Peer, Frame]:
    """Receive the greeting and check it.

    Raises:
        WireError: another user, or a wrong token.
    """
    peer = peer_of(connection)
    hello, fds = receive_frame(connection)
    for fd in fds:
        os.close(fd)
    shown = str(hello.get("token", ""))
    if peer.uid != os.getuid() or not hmac.compare_digest(shown.encode(), token.encode()):
        send_frame(connection, {"error": "unauthenticated", "message": "wrong user or token"})
        raise WireError(f"peer {peer.pid} of user {peer.uid} is not authenticated")
    send_frame(connection, {"ok": True})
    return peer, hello


def connect(path: Path, token: str, timeout_s: float = 30.0, **hello: Any) -> socket.socket:
    """Connect and greet.

    Raises:
        OSError: nobody listens there.
        RemoteError: the greeting was refused.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(timeout_s)
    try:
        connection.connect(str(path))
        call(connection, {"token": token, **hello})
    except BaseException:
        connection.close()
        raise
    return connection


def call(connection: socket.socket, request: Frame, fds: Sequence[int] = ()) -> tuple[Frame, list[int]]:
    """Send a request, return the reply and its descriptors.

    Raises:
        RemoteError: the peer refused.
    """
    send_frame(connection, request, fds)
    reply, received = receive_frame(connection)
    if "error" in reply:
        for fd in received:
            os.close(fd)
        raise RemoteError(str(reply["error"]), str(reply.get("message", "")))
    return reply, received
