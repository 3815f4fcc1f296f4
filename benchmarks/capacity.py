"""How near the roofline is to what others estimate and measure.

python benchmarks/capacity.py                     print the tables
python benchmarks/capacity.py --write             write them to docs/capacity-tables.md
python benchmarks/capacity.py --check             fail where that page is not what the planner gives
python benchmarks/capacity.py --measured FILE     compare with measured curves: `systems/silicon_sample.csv` of the
                                                  wheel aiconfigurator-core 0.12.0, which is not part of this project
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medley_bench.report import Report, Row
from medley_planner.capacities.load_curve import LoadCurve
from medley_planner.capacities.roofline import sustained_rates
from medley_planner.catalogue.gpus import gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.catalogue.models import ModelArchitecture, ThroughputPoint
from medley_planner.fleet import Objectives, Parallelism

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "capacity-tables.md"

OTHERS = {
    ("meta-llama/Llama-3.1-8B-Instruct", 1): {"H100-80GB": 8.89, "H200": 10.99, "A100-80GB": 3.41, "L40S": 1.58},
    ("Qwen/Qwen3-32B", 2): {"H100-80GB": 4.45, "H200": 5.47, "A100-80GB": 1.38, "L40S": 0.26},
    ("Qwen/Qwen3-30B-A3B", 2): {"H100-80GB": 15.6, "H200": 21.2, "A100-80GB": 5.31, "L40S": 1.65},
}
"""Requests/s at 2048 input and 512 output tokens within TTFT 2 s and TPOT 60 ms: aiconfigurator 0.12, vLLM."""

MELANGE_COUNTS = {"H100-80GB": 8, "A100-80GB-PCIe": 9, "A10G": 39, "L4": 65}
"""GPUs of one type for 32 requests/s of Arena with Llama-2-7B within a TPOT of 120 ms: Mélange, table 3."""

ARENA_MEAN_SIZE = (329, 196)


def rate_rps(model: ModelArchitecture, gpu: str, parallel: int, size: tuple[int, int], objectives: Objectives) -> float:
    """What the roofline gives for one replica."""
    return float(
        sustained_rates(model, gpu_type(gpu), Parallelism(parallel), [size], objectives).requests_per_second[0]
    )


def page() -> str:
    """The tables as a page of the documentation."""
    lines = [
        "# Capacity estimates beside those of others",
        "",
        "Written by `python benchmarks/capacity.py --write`; what the figures mean is in",
        "[formulation-capacity.md](formulation-capacity.md).",
        "",
        "## A model of measured kernels (aiconfigurator 0.12, vLLM)",
        "",
        "Requests per second of one replica at 2048 input and 512 output tokens, TTFT ≤ 2 s, TPOT ≤ 60 ms.",
        "",
        "| model | GPUs | aiconfigurator | Medley | ratio |",
        "|---|---|---:|---:|---:|",
    ]
    for (name, parallel), theirs in OTHERS.items():
        for gpu, their_rps in theirs.items():
            ours = rate_rps(known_models()[name], gpu, parallel, (2048, 512), Objectives(0.06, 2.0))
            lines.append(f"| {name} | {parallel}×{gpu} | {their_rps:.2f} | {ours:.2f} | {ours / their_rps:.2f} |")
    lines += [
        "",
        "## Mélange, table 3 (vLLM 0.2.7, Arena, TPOT ≤ 120 ms)",
        "",
        "Requests per second of one GPU with Llama-2-7B. The paper's figures are 32 requests/s over the number of GPUs",
        "that it needs; Medley's are for the mean size of Arena, 329 input and 196 output tokens.",
        "",
        "| GPU | paper | Medley | Medley / paper | paper, A100 = 1 | Medley, A100 = 1 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    llama = known_models()["meta-llama/Llama-2-7b-hf"]
    ours_by_gpu = {gpu: rate_rps(llama, gpu, 1, ARENA_MEAN_SIZE, Objectives(0.12)) for gpu in MELANGE_COUNTS}
    a100 = "A100-80GB-PCIe"
    for gpu, count in MELANGE_COUNTS.items():
        paper, ours = 32 / count, ours_by_gpu[gpu]
        relative = f"{MELANGE_COUNTS[a100] / count:.2f} | {ours / ours_by_gpu[a100]:.2f}"
        lines.append(f"| {gpu} | {paper:.2f} | {ours:.2f} | {ours / paper:.2f} | {relative} |")
    return "\n".join([*lines, ""])


@dataclass(frozen=True)
class CurveKey:
    """What was measured, in the words of the measurements' file."""

    model: str
    system: str
    eight_bit: bool
    parallel: int
    size: tuple[int, int]
    engine: str
    version: str


MEASURED_MODELS = {
    "Qwen/Qwen3-32B": "Qwen/Qwen3-32B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.1-70B": "meta-llama/Llama-3.1-70B-Instruct",
}
MEASURED_SYSTEMS = {"h100_sxm": "H100-80GB", "h200_sxm": "H200", "b200_sxm": "B200"}


def measured_curves(rows: Sequence[Mapping[str, str]]) -> Mapping[CurveKey, LoadCurve]:
    """Load curves of dense models without data or pipeline parallelism.

    The file has the concurrency of each point; its rate follows by Little's law.
    """
    points: dict[CurveKey, list[ThroughputPoint]] = defaultdict(list)
    for row in rows:
        plain = row["attention_dp_size"] in {"", "1"} and row["pp_size"] in {"", "1"}
        known = row["model_path"] in MEASURED_MODELS and row["system"] in MEASURED_SYSTEMS
        if row["mode"] != "agg" or not known or not plain or row["precision"] == "fp4":
            continue
        size = (int(row["isl"]), int(row["osl"]))
        first_token_s, per_token_s = float(row["silicon_ttft_ms"]) / 1000, float(row["silicon_tpot_ms"]) / 1000
        key = CurveKey(
            model=row["model_path"],
            system=row["system"],
            eight_bit=row["precision"] == "fp8" or row["gemm_quant_mode"].startswith("fp8"),
            parallel=int(row["tp_size"]),
            size=size,
            engine=row["backend"],
            version=row["backend_version"],
        )
        points[key].append(
            ThroughputPoint(
                gpu=MEASURED_SYSTEMS[key.system],
                tensor_parallel=key.parallel,
                input_tokens=size[0],
                output_tokens=size[1],
                requests_per_second=float(row["batch_size"]) / (first_token_s + (size[1] - 1) * per_token_s),
                time_per_output_token_s=per_token_s,
                time_to_first_token_s=first_token_s,
            )
        )
    return {key: LoadCurve.of(measured) for key, measured in points.items()}


def ratios_to_measured(curves: Mapping[CurveKey, LoadCurve], objectives: Objectives) -> dict[str, list[float]]:
    """Estimated over measured rate by engine, for measured curves that cross an objective: their maximum is known."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for key, curve in curves.items():
        measured_rps = curve.rate_within(objectives)
        if measured_rps == 0 or measured_rps == curve.rates_rps[-1]:
            continue
        model = known_models()[MEASURED_MODELS[key.model]]
        if key.eight_bit:
            model = replace(model, weight_bytes_per_parameter=1.0)
        estimate_rps = rate_rps(model, MEASURED_SYSTEMS[key.system], key.parallel, key.size, objectives)
        ratios[key.engine].append(estimate_rps / measured_rps)
    return ratios


def compare_with_measured(path: Path) -> None:
    """Print the errors against measured curves by engine and over all, and write them as JSON."""
    with path.open(encoding="utf-8", newline="") as lines:
        curves = measured_curves(list(csv.DictReader(lines)))
    ratios = ratios_to_measured(curves, Objectives(time_per_output_token_s=0.05, time_to_first_token_s=2.0))
    everything = [ratio for of_engine in ratios.values() for ratio in of_engine]
    rows = []
    for engine, of_engine in [*sorted(ratios.items()), ("all", everything)]:
        errors = sorted(abs(ratio - 1) for ratio in of_engine)
        where = f"roofline against {len(errors)} measured curves, {engine}"
        rows += [
            Row(f"{where}: median error", statistics.median(errors), "share"),
            Row(f"{where}: error of nine in ten", errors[int(0.9 * (len(errors) - 1))], "share"),
            Row(f"{where}: median of estimate / measured", statistics.median(of_engine), "ratio"),
        ]
    report = Report("capacity", tuple(rows), note="rates within TPOT 50 ms and TTFT 2 s")
    report.show()
    report.write()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print, write or check; the exit status."""
    parser = argparse.ArgumentParser(description="How near the roofline is to what others estimate and measure.")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(REPOSITORY)}")
    parser.add_argument("--check", action="store_true", help="fail where the page is out of date")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="compare with measured curves")
    options = parser.parse_args(arguments)
    if options.measured is not None:
        compare_with_measured(options.measured)
    elif options.write:
        PAGE.write_text(page(), encoding="utf-8")
    elif options.check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
            sys.stderr.write(f"{PAGE.relative_to(REPOSITORY)} is out of date: python benchmarks/capacity.py --write\n")
            return 1
    else:
        print(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
