"""Measured end-to-end points of replicas, from a file that another project publishes, as questions to an estimator.

`silicon_sample.csv` is part of the wheel of aiconfigurator-core 0.12.0 (Apache-2.0), which Medley does not ship:

    pip download --no-deps aiconfigurator-core==0.12.0 && unzip -j aiconfigurator_core-*.whl '*/silicon_sample.csv'

It is found where MEDLEY_SILICON_SAMPLE names it, else in an installed aiconfigurator-core.

Each row is a closed loop: so many requests of one size in the replica at all times, and the mean latencies they had.
The rate follows by Little's law: requests inside over the time that each is inside.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medley_planner.catalogue.gpus import BYTES_PER_MIB, GPUType, gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.catalogue.models import DATA_TYPE_BYTES, ModelArchitecture
from medley_planner.fleet import Parallelism

SAMPLE_VARIABLE = "MEDLEY_SILICON_SAMPLE"

LARGEST_REPLICA_GPUS = 8
"""A replica does not span nodes; the file's larger ones do, or are products of two sizes that name the same GPUs."""

MODELS = {
    "meta-llama/Llama-3.1-70B": "meta-llama/Llama-3.1-70B-Instruct",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-ai/DeepSeek-R1",
    "nvidia/DeepSeek-V3.1-NVFP4": "deepseek-ai/DeepSeek-V3.1",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Llama-3.1-8B-Instruct",
    "nvidia/Qwen3-32B-NVFP4": "Qwen/Qwen3-32B",
    "zhipuai/GLM-5": "zai-org/GLM-5",
}
"""The file's names of models that the catalogue has under another one."""


@dataclass(frozen=True)
class Group:
    """What one live correction factor would be learnt for: everything but the size of requests and the load."""

    model: str
    system: str
    precision: str
    parallelism: Parallelism
    engine: str
    version: str


@dataclass(frozen=True)
class Point:
    """One measured point.

    Args:
        name: The file's own name of it.
        group: Model, GPUs and engine.
        model: The architecture as it was served, quantised.
        gpu: Type of the replica's GPUs.
        size: Input and output tokens of the requests.
        concurrency: Requests inside at all times.
        time_per_output_token_s: Measured mean.
        time_to_first_token_s: Measured mean.
    """

    name: str
    group: Group
    model: ModelArchitecture
    gpu: GPUType
    size: tuple[int, int]
    concurrency: int
    time_per_output_token_s: float
    time_to_first_token_s: float

    @property
    def requests_per_second(self) -> float:
        """By Little's law: requests inside over the time that each is inside."""
        return self.concurrency / (self.time_to_first_token_s + (self.size[1] - 1) * self.time_per_output_token_s)

    @property
    def is_dense(self) -> bool:
        """Whether the model has no experts."""
        return self.model.experts == 0


def sample_path(given: Path | None = None) -> Path | None:
    """Where the file is: as given, else as the environment names it, else in an installed package; None if nowhere."""
    named = os.environ.get(SAMPLE_VARIABLE)
    if given is not None or named:
        return given or Path(named or "")
    package = importlib.util.find_spec("aiconfigurator_core")
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0], "systems", "silicon_sample.csv")
    return path if path.exists() else None


def points(path: Path) -> tuple[list[Point], Counter[str]]:
    """The points that describe one replica on one node, and how many rows were left out for which reason."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    left_out: Counter[str] = Counter()
    found: list[Point] = []
    for row in rows:
        if row["mode"] != "agg":
            left_out["prefill and decode on separate replicas"] += 1
            continue
        parallelism = _parallelism(row)
        if parallelism is None:
            left_out["a replica of more than one node"] += 1
            continue
        found.append(_point(row, parallelism))
    return found, left_out


def _point(row: Mapping[str, str], parallelism: Parallelism) -> Point:
    size = (int(row["isl"]), int(row["osl"]))
    inside = re.search(r"silicon_concurrency=(\d+)", row["silicon_data_source"])
    concurrency = int(inside.group(1)) if inside else int(row["batch_size"]) * parallelism.data
    per_token_s, first_token_s = float(row["silicon_tpot_ms"]) / 1000, float(row["silicon_ttft_ms"]) / 1000
    precision = row["precision"] or "bf16"
    group = Group(
        row["model_path"], row["system"], precision, parallelism, row["backend"], row["backend_version"] or "unnamed"
    )
    model = quantised(MODELS.get(row["model_path"], row["model_path"]), precision)
    return Point(row["id"], group, model, systems()[row["system"]], size, concurrency, per_token_s, first_token_s)


def _parallelism(row: Mapping[str, str]) -> Parallelism | None:
    """How the replica's GPUs share the work; None where they are on several nodes.

    Rows of some sources multiply sizes that name the same GPUs: `tp8_ep8` is 8 GPUs, and is written as a tensor (or
    attention data) parallel size of 64 with experts in 8 · 8 parts.
    """
    sizes = {name: int(row[name] or 1) or 1 for name in ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")}
    tensor, data = sizes["tp_size"], sizes["attention_dp_size"]
    expert_gpus = sizes["moe_tp_size"] * sizes["moe_ep_size"]
    if tensor * data > LARGEST_REPLICA_GPUS:
        product = expert_gpus if sizes["moe_tp_size"] == sizes["moe_ep_size"] or tensor == data else 0
        root = round(product**0.5)
        if root * root != tensor * data or root > LARGEST_REPLICA_GPUS:
            return None
        return Parallelism(1, 1, root) if data > 1 else Parallelism(root)
    if expert_gpus > tensor * data and expert_gpus % tensor == 0:
        data = expert_gpus // tensor
    return Parallelism(tensor, int(row["pp_size"] or 1), data)


def quantised(name: str, precision: str) -> ModelArchitecture:
    """The catalogue's model with weights in this precision.

    Publishers of quantised models with experts keep attention in the type that they trained it in, and quantise all of
    a dense model's products. 4-bit floats are multiplied like 8-bit ones; where only weights are 4-bit, in 16 bits.
    """
    model = known_models()[name]
    if precision in {"int4", "bf16"} or (precision == "fp4" and model.expert_bytes_per_parameter not in {None, 1.0}):
        return model
    width = DATA_TYPE_BYTES["fp8" if precision == "fp8" else "nvfp4"]
    if not model.experts:
        return replace(model, weight_bytes_per_parameter=width, computes_in_bits=8)
    shared = min(model.weight_bytes_per_parameter, DATA_TYPE_BYTES["bf16"])
    return replace(model, weight_bytes_per_parameter=shared, expert_bytes_per_parameter=width, computes_in_bits=8)


@functools.cache
def systems() -> Mapping[str, GPUType]:
    """The file's GPU systems; those that the catalogue lacks from their makers' data sheets."""
    b200 = gpu_type("B200")
    grace = replace(b200, dense_flops_16bit=2.5e15, dense_flops_8bit=5e15)
    return {
        "h100_sxm": gpu_type("H100-80GB"),
        "h200_sxm": gpu_type("H200"),
        "b200_sxm": b200,
        "b300_sxm": replace(b200, name="B300", memory_bytes=275040 * BYTES_PER_MIB),
        "gb200": replace(grace, name="GB200", memory_bytes=189471 * BYTES_PER_MIB),
        "gb300": replace(grace, name="GB300", memory_bytes=284208 * BYTES_PER_MIB),
    }


def groups_of(measured: Sequence[Point]) -> Mapping[Group, list[Point]]:
    """Points by group, each in the order of size and load."""
    found: dict[Group, list[Point]] = {}
    for point in sorted(measured, key=lambda point: (str(point.group), point.size, point.concurrency, point.name)):
        found.setdefault(point.group, []).append(point)
    return found
