"""SIGKILL of each part in the middle of an operation. The whole matrix is in benchmarks/engine_kills.py."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

PROMPT = [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("armed", "device", "kills"),
    [
        (False, "cpu", [("hmm", "preparing"), ("rank", "draining"), ("coordinator", "attaching")]),
        (True, "cpu", [("hmm", "switching"), ("rank", "idle"), ("coordinator", "releasing")]),
        (True, "cuda", [("hmm", "releasing"), ("rank", "idle"), ("rank", "releasing"), ("hmm", "idle")]),
    ],
    ids=["standbys", "armed standbys", "fake GPUs"],
)
async def test_whatever_dies_the_old_or_the_new_configuration_serves(engine, checkpoint, armed, device, kills):
    folder = checkpoint()
    options = {"device": device, "arm_standbys": armed}
    served = await engine(folder, max_data_parallel=2, standbys=1, phase_delay_s=0.4, **options)
    expected = await served.text(PROMPT, 30)

    def settled(status):
        return (
            status.get("ready")
            and not status["operation"]
            and len(status["standbys"]) == 1
            and status["armed"] == (status["standbys"] if armed else [])
            and len(status["memory"]["holders"]) == status["dataParallel"] + sum(status["armed"])
            and len(status["memory"]["configs"]) == 1 + len(status["armed"])
            and sum(name.startswith("rank-") for name in status["processes"])
            == status["dataParallel"] + sum(status["standbys"])
        )

    for victim, phase in kills:
        before = await served.until(settled)
        stream = asyncio.create_task(served.text(PROMPT, 30))
        if phase != "idle":
            _, operation = await served.post("/scale", {"dataParallel": 3 - before["dataParallel"]})
            while operation["phase"] != phase:
                assert not operation["finished"], operation
                operation = await served.get(f"/scale/operations/{operation['id']}")
        if victim == "rank":
            active = (await served.get("/scale"))["active"]
            pid = (await served.processes(f"rank-{active}-"))[0]
        else:
            (pid,) = await served.processes(victim)
        os.kill(pid, signal.SIGKILL)
        after = await served.until(settled)
        assert after["dataParallel"] in (1, 2)
        if victim == "coordinator":
            await asyncio.wait([stream])
            stream.exception()
        else:
            assert await stream == expected, (victim, phase)
        if victim == "hmm":
            assert after["memory"]["restored"]
            assert after["memory"]["diskBytesRead"] == 0, "the pages survived, the disk is not read again"
        assert await served.text(PROMPT, 30) == expected
        sockets = list(served.run_dir.glob("rank-*.sock"))
        assert len(sockets) == len(await served.processes("rank-"))
        if device == "cuda":
            await served.until_device_memory_is_in_the_book()
