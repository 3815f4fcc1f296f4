"""Capacities from aiconfigurator-core, which adds up measured times of kernels.

It is an extra of 616 MB with its dependencies, pinned to one version, and never part of the operator's image. It runs
in a process of its own (`aiconfigurator_worker`), by the interpreter that MEDLEY_AICONFIGURATOR_PYTHON names, else by
this one. Nothing is downloaded: models are given to it as folders with a config.json.

A table look-up takes a fraction of a second, so that many sizes are asked about on a coarse grid and interpolated, and
answers are kept, in a file too where one is given.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from medley_operator.estimators import aiconfigurator_worker
from medley_operator.estimators.model_folder import config_values, write_config
from medley_planner.capacities.estimate import OBJECTIVE_NOT_MET, Capacity, Question, Size
from medley_planner.capacities.latency import Latency
from medley_planner.capacities.roofline import MAX_SEQUENCES, sustained_rates
from medley_planner.catalogue.models import DATA_TYPE_BYTES
from medley_planner.fleet import Objectives, Role

VERSION = aiconfigurator_worker.VERSION
SOURCE = f"aiconfigurator {VERSION}"
PYTHON_VARIABLE = "MEDLEY_AICONFIGURATOR_PYTHON"

SYSTEMS: Mapping[str, str] = MappingProxyType(
    {
        "A100-80GB": "a100_sxm",
        "A100-80GB-PCIe": "a100_pcie",
        "B200": "b200_sxm",
        "H100-80GB": "h100_sxm",
        "H100-PCIe": "h100_pcie",
        "H200": "h200_sxm",
        "L40S": "l40s",
        "RTX-PRO-6000": "rtx_pro_6000_server",
    }
)
"""The package's name of each GPU type of the catalogue that it has measured kernels of."""

QUANTISATIONS: Mapping[tuple[str, float], str] = MappingProxyType(
    {
        ("vllm", DATA_TYPE_BYTES["bf16"]): "",
        ("sglang", DATA_TYPE_BYTES["bf16"]): "",
        ("sglang", DATA_TYPE_BYTES["fp8"]): "fp8_block",
    }
)
"""The package's name of products by engine and bytes of a weight, for tables that are used.

Not vLLM's `fp8_block`: in this version FP8 comes out slower than BF16 there, which no GPU measures.
"""

EXACT_SIZES = 8
"""So many sizes are asked about as they are; more, on the grid."""
GRID_STEP = 4
"""Ratio of neighbouring sizes of the grid."""

_Corner = tuple[Size, float]


class AIConfiguratorError(RuntimeError):
    """The package is not installed, or of another version, or its process ended."""


def is_installed() -> bool:
    """Whether there is something to ask."""
    return bool(os.environ.get(PYTHON_VARIABLE)) or importlib.util.find_spec("aiconfigurator_core") is not None


class AIConfigurator:
    """Capacities by the package's tables. Compares by identity; a context manager, which ends its process.

    Args:
        cache: File in which answers are kept between runs; None keeps them in memory only.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._points: dict[str, Any] = _read(cache)
        self._unable: set[str] = set()
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="medley-models-")
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process and keep what was learnt."""
        with self._lock:
            if self._process is not None:
                # Ends its input, which ends it.
                self._process.communicate(timeout=30)
                self._process = None
            if self._cache is not None:
                self._cache.parent.mkdir(parents=True, exist_ok=True)
                kept = json.dumps(dict(sorted(self._points.items())), indent=0)
                self._cache.write_text(kept, encoding="utf-8")
            self._folder.cleanup()

    def source(self, question: Question) -> str:
        """`aiconfigurator VERSION` for whole requests of models, GPUs and engines that its tables have."""
        known = (
            question.role is Role.SHARED
            and question.gpu.name in SYSTEMS
            and (question.engine, question.model.weight_bytes_per_parameter) in QUANTISATIONS
            and config_values(question.model) is not None
        )
        return SOURCE if known and _variant_key(question) not in self._unable else ""

    def estimate(self, question: Question, sizes: Sequence[Size]) -> tuple[Capacity | None, ...]:
        """A capacity for each size; None for all where the tables lack something that this model needs."""
        if len(sizes) <= EXACT_SIZES:
            corners = {size: _itself(size) for size in sizes}
        else:
            corners = {size: _corners(size, question.context_tokens) for size in sizes}
        wanted = sorted({corner for around in corners.values() for corner, _ in around})
        points = self._ask(question, wanted)
        if points is None:
            return (None,) * len(sizes)
        between = [size for size in sizes if any(points[corner] is None for corner, _ in corners[size])]
        exact = self._ask(question, [size for size in between if size not in points])
        points |= exact or {}
        shares = _percentile_shares(question, sizes)
        return tuple(
            _capacity(size, _itself(size) if size in between else corners[size], points, share)
            for size, share in zip(sizes, shares, strict=True)
        )

    def _ask(self, question: Question, sizes: Sequence[Size]) -> dict[Size, dict[str, float] | None] | None:
        """The best point at each size; None where the tables cannot say."""
        base = _variant_key(question)
        keys = {size: f"{base} {size[0]}x{size[1]}" for size in sizes}
        with self._lock:
            missing = [size for size in sizes if keys[size] not in self._points]
            if missing:
                answer = self._exchange(self._message(question, missing))
                if "error" in answer:
                    self._unable.add(base)
                    return None
                self._points |= {keys[size]: point for size, point in zip(missing, answer["points"], strict=True)}
            return {size: self._points[keys[size]] for size in sizes}

    def _message(self, question: Question, sizes: Sequence[Size]) -> dict[str, Any]:
        values = config_values(question.model)
        assert values is not None
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
        folder = Path(self._folder.name, digest)
        if not folder.exists():
            folder.mkdir()
            write_config(values, folder)
        objectives = question.objectives
        return {
            "folder": str(folder),
            "system": SYSTEMS[question.gpu.name],
            "engine": question.engine,
            "tensor": question.parallelism.tensor,
            "pipeline": question.parallelism.pipeline,
            "data": question.parallelism.data,
            "moe": question.model.experts > 0,
            "quantisation": QUANTISATIONS[question.engine, question.model.weight_bytes_per_parameter],
            "max_batch": MAX_SEQUENCES,
            "time_to_first_token_ms": _milliseconds(objectives.time_to_first_token_s),
            "time_per_output_token_ms": _milliseconds(objectives.time_per_output_token_s),
            "sizes": [list(size) for size in sizes],
        }

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise AIConfiguratorError(f"the process of {SOURCE} ended with status {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        python = os.environ.get(PYTHON_VARIABLE) or sys.executable
        # Started by its path, so that the interpreter needs none of Medley's own dependencies.
        process = subprocess.Popen(
            [python, aiconfigurator_worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        version = json.loads(first)["version"] if first else None
        if version != VERSION:
            process.kill()
            process.communicate()
            told = "is not installed there" if version is None else f"is {version}"
            raise AIConfiguratorError(f"{python}: aiconfigurator-core {VERSION} is needed, it {told}")
        self._process = process
        return process


def _read(cache: Path | None) -> dict[str, Any]:
    """What was kept; nothing where the file is not there or is no such file."""
    if cache is None or not cache.exists():
        return {}
    try:
        kept = json.loads(cache.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return kept if isinstance(kept, dict) else {}


def _variant_key(question: Question) -> str:
    """Everything but the size that an answer depends on, as text."""
    objectives = question.objectives
    parts = (
        VERSION,
        json.dumps(config_values(question.model), sort_keys=True),
        question.engine,
        question.gpu.name,
        str(question.parallelism),
        str(question.model.weight_bytes_per_parameter),
        str(objectives.time_per_output_token_s),
        str(objectives.time_to_first_token_s),
        str(MAX_SEQUENCES),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _corners(size: Size, context_tokens: int) -> tuple[_Corner, ...]:
    """The grid's sizes around one, with their weights in logarithms; the size itself where the grid leaves the context.

    The grid has powers of `GRID_STEP`, so that services with other sizes ask for the same points.
    """
    axes: list[list[tuple[int, float]]] = []
    for tokens in size:
        low = math.floor(math.log(tokens, GRID_STEP) + 1e-9)
        share = math.log(tokens, GRID_STEP) - low
        ends = [(GRID_STEP**low, 1 - share), (GRID_STEP ** (low + 1), share)]
        axes.append([(place, weight) for place, weight in ends if weight > 1e-9])
    corners = tuple(((i, o), w * v) for i, w in axes[0] for o, v in axes[1])
    return corners if all(i + o <= context_tokens for (i, o), _ in corners) else _itself(size)


def _itself(size: Size) -> tuple[_Corner, ...]:
    return ((size, 1.0),)


def _percentile_shares(question: Question, sizes: Sequence[Size]) -> list[float]:
    """What an objective at a percentile leaves of the rate with the same objective for the mean, by the roofline."""
    objectives = question.objectives
    if not objectives.at_percentiles:
        return [1.0] * len(sizes)
    means = Objectives(objectives.time_per_output_token_s, objectives.time_to_first_token_s)
    asked, eased = (
        sustained_rates(
            question.model, question.gpu, question.parallelism, sizes, which, prompts=question.prompts
        ).requests_per_second.tolist()
        for which in (objectives, means)
    )
    return [one / other if other > 0 else 0.0 for one, other in zip(asked, eased, strict=True)]


def _capacity(
    size: Size, around: Sequence[_Corner], points: Mapping[Size, dict[str, float] | None], share: float
) -> Capacity:
    """The capacity between the given sizes; the logarithms of the figures are linear in those of the sizes."""
    known = [(point, weight) for corner, weight in around if (point := points.get(corner)) is not None]
    if len(known) < len(around) or share == 0:
        detail = f"no load on {size[0]} input and {size[1]} output tokens keeps the objectives, by its tables"
        return Capacity(0.0, OBJECTIVE_NOT_MET, detail, SOURCE)

    def mean(name: str) -> float:
        return math.exp(math.fsum(weight * math.log(max(point[name], 1e-9)) for point, weight in known))

    latency = Latency(mean("time_per_output_token_s"), mean("time_to_first_token_s"))
    source = SOURCE if share == 1 else f"{SOURCE}, percentiles by roofline"
    return Capacity(mean("requests_per_second") * share, "", "", source, mean("concurrency") * share, latency)


def _milliseconds(time_s: float | None) -> float | None:
    return None if time_s is None else time_s * 1000
