# ruff: noqa: PLC0415, ASYNC220 - the engine's own dependencies may be missing; a process is started in a fixture
"""Fixtures: random checkpoints, what `transformers` says about them, and whole engines on this machine."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINE_ROOT = ROOT / "engine"
sys.path[:0] = [str(ENGINE_ROOT), str(Path(__file__).parent)]
sys.path.append(str(ROOT / "benchmarks"))

# Workers that run tests side by side look for ports apart from each other.
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_FIRST_PORT, _PORTS_PER_WORKER = 19000, 50

NEEDS_TORCH = (
    "test_engine_model.py",
    "test_engine_tensor_parallel.py",
    "test_engine_devices.py",
    "test_engine_mesh.py",
    "test_engine_serving.py",
    "test_engine_kills.py",
    "test_engine_http.py",
)
HAS_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "tokenizers", "aiohttp"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "engine: needs the engine extra (torch)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in NEEDS_TORCH:
            item.add_marker("engine")
            if not HAS_TORCH:
                item.add_marker(pytest.mark.skip(reason="torch is not installed (extra: engine)"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a random checkpoint of a family once per session and set of options."""
    from medley_engine import random_checkpoint

    made: dict[str, Path] = {}

    def make(family: str = "qwen3_moe", **options: Any) -> Path:
        key = json.dumps([family, options], sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp(family)
            random_checkpoint.write(folder, random_checkpoint.model_config(family, **{"dtype": "float64", **options}))
            made[key] = folder
        return made[key]

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint of this test alone."""
    pytest.importorskip("tokenizers", reason="tokenizers is not installed (extra: engine)")
    from medley_engine import random_checkpoint

    random_checkpoint.write(tmp_path / "model", random_checkpoint.model_config("qwen3_moe", layers=2))
    return tmp_path / "model"


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[str, int]]]:
    """A fake driver in place of CUDA's, in this process and its children. Tells what this one has not given back."""
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed (extra: engine)")
    from engine_manager import FAKE_CUDA_DRIVER, forget_driver

    from medley_engine.memory import cuda_driver

    monkeypatch.setenv(cuda_driver.FAKE_VARIABLE, str(FAKE_CUDA_DRIVER))
    forget_driver()
    yield cuda_driver.driver().outstanding
    forget_driver()


@pytest.fixture(params=["host", "cuda over a fake driver"])
def managers(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    """Makes managers of a small checkpoint, on each kind of memory in turn. What they took of GPUs they give back."""
    from engine_manager import Managers

    outstanding = request.getfixturevalue("fake_cuda") if request.param != "host" else dict
    made = Managers(folder, request.param)
    yield made
    made.close()
    assert not any(outstanding().values()), outstanding()


@pytest.fixture(scope="session")
def reference() -> Callable[[Path, list[int], int], list[int]]:
    """What `transformers` generates greedily from a checkpoint, in float64."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: engine tests)")
    import torch

    torch.set_num_threads(1)
    models: dict[Path, Any] = {}

    def generate(folder: Path, prompt: list[int], count: int) -> list[int]:
        if folder not in models:
            config = transformers.AutoConfig.from_pretrained(folder)
            config._experts_implementation = "eager"  # the grouped kernels refuse float64
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float64)
            models[folder] = model.eval()
        with torch.inference_mode():
            out = models[folder].generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=None,
            )  # fmt: skip
        return list(map(int, out[0, len(prompt) :]))

    return generate


def fake_device_memory(pid: int) -> dict[int, int]:
    """Allocations of the fake driver that a process holds: bytes by number of the file behind each."""
    from fake_cuda_driver import NAME

    held: dict[int, int] = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if NAME in line:
            (start, end), inode = (int(at, 16) for at in line.split()[0].split("-")), int(line.split()[4])
            held[inode] = end - start
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if NAME in str(entry.readlink()):
                held[entry.stat().st_ino] = entry.stat().st_size
        except FileNotFoundError:
            continue
    return held


@dataclass
class Engine:
    """A running engine and a client for it."""

    process: subprocess.Popen[bytes]
    url: str
    run_dir: Path
    log: Path
    session: Any
    model: str
    streams: list[asyncio.Task[Any]] = field(default_factory=list)

    async def get(self, path: str) -> Any:
        async with self.session.get(self.url + path) as response:
            return await response.json()

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=body) as response:
            return response.status, await response.json()

    async def complete(self, prompt: list[int], count: int, **options: Any) -> list[str]:
        """Stream a completion; returns its pieces of text. Fails on anything but a whole stream."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": count, "temperature": 0, "stream": True, **options}
        pieces, ended = [], False
        async with self.session.post(f"{self.url}/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                text = line.decode().strip()
                if text == "data: [DONE]":
                    ended = True
                elif text:
                    pieces.append(json.loads(text.removeprefix("data: "))["choices"][0]["text"])
        assert ended, "the stream broke"
        return pieces

    async def text(self, prompt: list[int], count: int, **options: Any) -> str:
        return "".join(await self.complete(prompt, count, **options))

    async def until(self, condition: Callable[[dict[str, Any]], bool], deadline_s: float = 90.0) -> dict[str, Any]:
        """Poll the status until a condition holds."""
        end = time.monotonic() + deadline_s
        status: dict[str, Any] = {}
        while time.monotonic() < end:
            try:
                status = await self.get("/scale")
                if condition(status):
                    return status
            except (TimeoutError, OSError, ValueError) as error:
                status = {"error": repr(error)}
            await asyncio.sleep(0.05)
        raise AssertionError(f"condition not met; last: {status}\n{self.log.read_text()[-3000:]}")

    async def scale(self, size: int, **options: Any) -> dict[str, Any]:
        """Scale and wait for the end of the operation."""
        status, begun = await self.post("/scale", {"dataParallel": size, **options})
        assert status == 202, begun
        while not begun["finished"]:
            await asyncio.sleep(0.02)
            begun = await self.get(f"/scale/operations/{begun['id']}")
        return begun

    async def processes(self, prefix: str) -> list[int]:
        """Processes by the supervisor's names: ``hmm``, ``coordinator``, ``rank-INSTANCE-RANK``."""
        named = (await self.get("/scale"))["processes"]
        return [pid for name, pid in sorted(named.items()) if name.startswith(prefix) and pid]

    async def device_bytes(self) -> int:
        """Memory of GPUs that any process of this engine holds, by descriptor or mapping."""
        held: dict[int, int] = {}
        for pid in [self.process.pid, *(await self.processes(""))]:
            held.update(fake_device_memory(pid))
        return sum(held.values())

    async def until_device_memory_is_in_the_book(self) -> None:
        """Poll until no process holds memory of GPUs that the manager does not know of."""
        end, seen = time.monotonic() + 20, (0, 1)
        while seen[0] != seen[1]:
            assert time.monotonic() < end, f"{seen[0]} bytes are held, the book has {seen[1]}"
            booked = sum((await self.get("/scale"))["memory"]["pools"].values())
            seen = await self.device_bytes(), booked

    def pids(self, part: str) -> list[int]:
        """Processes below this engine whose command line has ``part``."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                    command = (entry / "cmdline").read_bytes().decode(errors="replace")
                except OSError:
                    continue
                if int(parent) == self.process.pid and part in command:
                    found.append(int(entry.name))
        return sorted(found)


@pytest.fixture
async def engine(
    tmp_path: Path, checkpoint: Callable[..., Path], request: pytest.FixtureRequest
) -> AsyncIterator[Callable[..., Any]]:
    """Starts engines; each is stopped at the end, and must leave no process behind. GPUs are those of a fake driver."""
    import aiohttp

    from engine_ports import free_port

    engines: list[Engine] = []
    connector = aiohttp.TCPConnector(limit=0)
    session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120))

    async def start(folder: Path | None = None, *, wait: bool = True, **options: Any) -> Engine:
        folder = folder or checkpoint()
        if options.get("device") == "cuda":
            request.getfixturevalue("fake_cuda")
        run_dir = tmp_path / f"run{len(engines)}"
        defaults = {
            "dtype": "float64",
            "block_tokens": 8,
            "blocks_per_rank": 128,
            "port": 0,
            "standbys": 2,
            "standby_delay_s": 0.0,
        }
        arguments = []
        for name, value in {**defaults, **options}.items():
            flag = name.replace("_", "-")
            arguments += (
                [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
            )
        log = tmp_path / f"engine{len(engines)}.log"
        port = free_port(_FIRST_PORT + _PORTS_PER_WORKER * WORKER)
        arguments[arguments.index("--port") + 1] = str(port)
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "medley_engine", "serve", str(folder), "--run-dir", str(run_dir), *arguments],
                env={**os.environ, "PYTHONPATH": str(ENGINE_ROOT)}, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        made = Engine(process, f"http://127.0.0.1:{port}", run_dir, log, session, folder.name)
        engines.append(made)
        if wait:
            await made.until(lambda status: bool(status.get("ready")))
        return made

    yield start
    await session.close()
    for made in engines:
        made.process.send_signal(signal.SIGTERM)
        try:
            made.process.wait(20)
        except subprocess.TimeoutExpired:
            made.process.kill()
            made.process.wait()
            raise
        assert not made.pids(""), "processes were left behind"
