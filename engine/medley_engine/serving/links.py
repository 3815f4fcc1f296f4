"""Asynchronous conversations with ranks, the supervisor and the manager."""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medley_engine.memory.client import ManagerClient
from medley_engine.memory.wire import Frame, RemoteError, encode

_LENGTH = struct.Struct("!I")


class RankLostError(ConnectionError):
    """The rank's process is gone."""


class RankLink:
    """One rank: requests with replies, and frames that it sends by itself.

    ``on_frame`` gets what the rank sends unasked; ``on_lost`` is called once, when the connection ends without
    :meth:`close`.
    """

    def __init__(self, path: Path, on_frame: Callable[[Frame], None], on_lost: Callable[[], None]) -> None:
        self._path, self._on_frame, self._on_lost = path, on_frame, on_lost
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._ids = itertools.count(1)
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self.hello: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self.closed = False

    async def connect(self, token: str, deadline_s: float, alive: Callable[[], bool]) -> None:
        """Connect as soon as the rank listens.

        Raises:
            RankLostError: its process ended first, or the deadline passed.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(str(self._path))
                break
            except (FileNotFoundError, ConnectionRefusedError) as error:
                if not alive() or loop.time() > end:
                    raise RankLostError(f"{self._path.name} never listened") from error
                await asyncio.sleep(0.02)
        self._write({"token": token, "role": "coordinator"})
        self._task = asyncio.create_task(self._read(reader))
        await asyncio.wait_for(asyncio.shield(self.hello), max(1.0, end - loop.time()))

    def _write(self, frame: Frame) -> None:
        if self._writer is None or self._writer.is_closing():
            raise RankLostError(f"{self._path.name} is gone")
        self._writer.write(encode(frame))

    def tell(self, do: str, **fields: Any) -> None:
        """Send a command that has no reply."""
        self._write({"do": do, **fields})

    async def ask(self, do: str, deadline_s: float = 120.0, **fields: Any) -> Frame:
        """Send a command and wait for its reply.

        Raises:
            RankLostError: the rank went away.
            RemoteError: it refused.
            TimeoutError: it did not answer in time.
        """
        number = next(self._ids)
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._write({"do": do, "id": number, **fields})
            reply = await asyncio.wait_for(future, deadline_s)
        finally:
            self._waiting.pop(number, None)
        if "error" in reply:
            raise RemoteError("rank_error", f"{do}: {reply['error']}")
        return reply

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                self._take(json.loads(await reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            self._fail()

    def _take(self, frame: Frame) -> None:
        if "hello" in frame:
            if not self.hello.done():
                self.hello.set_result(frame)
        elif "re" in frame:
            future = self._waiting.get(frame["re"] or 0)
            if future is not None and not future.done():
                future.set_result(frame)
        elif "ok" not in frame:
            self._on_frame(frame)

    def _fail(self) -> None:
        lost = RankLostError(f"{self._path.name} is gone")
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(lost)
        if not self.hello.done():
            self.hello.set_exception(lost)
            self.hello.exception()
        if self._writer is not None:
            self._writer.close()
        if not self.closed:
            self.closed = True
            self._on_lost()

    def close(self) -> None:
        """End the conversation; ``on_lost`` is not called any more."""
        self.closed = True
        if self._task is not None:
            self._task.cancel()
        if self._writer is not None:
            self._writer.close()


class SupervisorLink:
    """Asks the supervisor to start and end rank processes; one request at a time."""

    def __init__(self, run_dir: Path, token: str) -> None:
        self._path, self._token = run_dir / "supervisor.sock", token
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, do: str, **fields: Any) -> Frame:
        """One request.

        Raises:
            RemoteError: refused.
        """
        # A caller that is cancelled must not leave half a conversation behind for the next one.
        reply = await asyncio.shield(asyncio.create_task(self._turn(do, fields)))
        if "error" in reply:
            raise RemoteError(str(reply["error"]), str(reply.get("message", "")))
        return reply

    async def _turn(self, do: str, fields: dict[str, Any]) -> Frame:
        async with self._lock:
            if self._streams is None:
                self._streams = await asyncio.open_unix_connection(str(self._path))
                await self._talk({"token": self._token, "role": "coordinator"})
            return await self._talk({"do": do, **fields})

    async def _talk(self, frame: Frame) -> Frame:
        assert self._streams is not None
        reader, writer = self._streams
        writer.write(encode(frame))
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        reply: Frame = json.loads(await reader.readexactly(length))
        return reply


class ManagerLink:
    """The manager's requests without blocking the event loop."""

    def __init__(self, run_dir: Path, token: str) -> None:
        self._client = ManagerClient(run_dir / "hmm.sock", token, role="coordinator", deadline_s=30.0)

    async def ask(self, do: str, **fields: Any) -> Frame:
        """One request; see :meth:`ManagerClient.call`."""
        return await asyncio.to_thread(self._client.call, do, **fields)
