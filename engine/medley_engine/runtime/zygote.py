"""The process that rank processes are forked from, so that a standby costs milliseconds and shares its libraries'
memory.

Importing torch takes seconds of processor time and hundreds of megabytes, which a standby started during service
would take from the ranks that serve. This process imports once and computes nothing (a fork after torch has computed
may hang), so each rank begins where the import ended. Ranks are forked twice and thereby become children of the
supervisor, which is marked as subreaper: they live on when this process dies, and end with the supervisor.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import time
import traceback
from typing import Any

from medley_engine.memory import wire
from medley_engine.runtime import rank


def _begin_rank(spec: dict[str, Any], supervisor: int, middle: int) -> None:
    """The rank's whole life; never returns.

    It is the supervisor's child once the process between them has ended; where the supervisor has ended too, it is
    somebody else's, and ends.
    """
    status = 1
    try:
        while os.getppid() == middle:
            time.sleep(0.001)
        rank.die_with_parent(supervisor)
        rank.serve(spec)
        status = 0
    except BaseException:  # noqa: BLE001 - the last frame of this process
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _fork(channel: socket.socket, request: wire.Frame, supervisor: int) -> None:
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    own = os.getpid()
    born = os.fork()
    if born == 0:
        channel.close()
        _begin_rank(request["spec"], supervisor, own)
    wire.send_frame(channel, {"key": request["key"], "pid": born})
    os._exit(0)


def main() -> None:
    """Entry point: ``python -m medley_engine.runtime.zygote SETTINGS CHANNEL``, started by the supervisor."""
    channel = socket.socket(fileno=int(sys.argv[2]))
    supervisor = os.getppid()
    json.loads(sys.argv[1])
    gc.collect()
    gc.freeze()
    wire.send_frame(channel, {"ready": True})
    while True:
        try:
            request, _ = wire.receive_frame(channel)
        except EOFError:
            return
        _fork(channel, request, supervisor)


if __name__ == "__main__":
    main()
