"""Mélange's table 3 (arXiv 2404.14527; Arena, TPOT ≤ 120 ms) from the roofline alone, beside the paper's.

python benchmarks/planner_table3.py            print the tables
python benchmarks/planner_table3.py --write    the same, and write docs/table3.md

The paper measured Llama-2-7B on vLLM 0.2.7; its request sizes are published as means only (329 input and 196 output
tokens). Here they are lognormal and independent with these means; how wide is an assumption, named in the table. Prices
and GPUs are the paper's; one GPU to a replica, no stock, no headroom.

Each rate is planned three times: by the roofline as it is, which is for engines of today; with one correction factor
for all GPU types, so that as many A100s serve 32 requests/s as in the paper; and with one for each GPU type, so that
every column of a single type has the paper's last figure. The factors are what a live correction would learn. Takes
about 10 s, `quick` too.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from rich.console import Console

from medley_bench.report import Row
from medley_planner.capacities.capacity import capacities
from medley_planner.catalogue.gpus import gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.fleet import FleetState, Formulation, Objectives, Parallelism, PlanOptions, Pool, Service, Stock
from medley_planner.plan import plan
from medley_planner.programme.memo import Memo
from medley_planner.result import ServicePlan
from medley_planner.wording import mix_text
from medley_planner.workload.sizes import SizeHistogram

PAGE = Path(__file__).parents[1] / "docs" / "table3.md"

MODEL = known_models()["meta-llama/Llama-2-7b-hf"]
OBJECTIVES = Objectives(time_per_output_token_s=0.12)
MEAN_TOKENS = (329, 196)
WIDTHS = (1.2, 0.9)
"""Standard deviations of the logarithms of input and output sizes: assumed, as wide as other chat traces are."""
STEPS = 8
"""Sizes per axis, of equal probability."""

GPUS = {"l4": ("L4", 0.70), "a10g": ("A10G", 1.01), "a100": ("A100-80GB-PCIe", 3.67), "h100": ("H100-80GB", 7.516)}
"""Mélange, table 1: its A100 has 1,935 GB/s, as the PCIe card has."""
POOLS = tuple(Pool(name, gpu_type(gpu), price, Stock.of(8192)) for name, (gpu, price) in GPUS.items())

PAPER: Mapping[int, tuple[str, float, Mapping[str, int]]] = {
    1: ("1×a10g + 1×l4", 1.71, {"h100": 1, "a100": 1, "a10g": 2, "l4": 3}),
    2: ("1×a10g + 2×l4", 2.41, {"h100": 1, "a100": 1, "a10g": 3, "l4": 5}),
    4: ("1×a100 + 1×l4", 4.37, {"h100": 1, "a100": 2, "a10g": 6, "l4": 9}),
    8: ("1×a100 + 3×a10g + 1×l4", 7.40, {"h100": 2, "a100": 3, "a10g": 11, "l4": 17}),
    16: ("3×a100 + 2×a10g + 2×l4", 14.43, {"h100": 4, "a100": 6, "a10g": 20, "l4": 33}),
    32: ("5×a100 + 6×a10g + 2×l4", 25.81, {"h100": 8, "a100": 9, "a10g": 39, "l4": 65}),
}
"""Mélange, table 3: its mix and cost, and how many GPUs of one type it needs."""
CALIBRATION_RPS = 32


@dataclass(frozen=True)
class Factors:
    """Correction factors by pool, and what they are."""

    name: str
    by_pool: Mapping[str, float]

    @property
    def corrections(self) -> dict[tuple[str, Parallelism], float]:
        """As a service has them."""
        return {(pool.gpu.name, Parallelism()): self.by_pool[pool.name] for pool in POOLS}


@dataclass(frozen=True)
class Line:
    """One rate with one set of factors."""

    rate_rps: int
    plan: ServicePlan
    melange: ServicePlan
    single: Mapping[str, int]


def sizes() -> SizeHistogram:
    """Arena's sizes, as far as they are known: quantiles of two lognormal distributions of the published means."""
    quantiles = [NormalDist().inv_cdf((step + 0.5) / STEPS) for step in range(STEPS)]
    axes = []
    for mean, width in zip(MEAN_TOKENS, WIDTHS, strict=True):
        shape = [math.exp(width * quantile) for quantile in quantiles]
        axes.append([max(1, round(mean * value * STEPS / math.fsum(shape))) for value in shape])
    weight = 1 / STEPS**2
    return SizeHistogram.of(*((inputs, outputs, weight) for inputs in axes[0] for outputs in axes[1]))


def rates_of_single_gpus() -> dict[str, float]:
    """Requests per second of these sizes that one GPU of each type serves, by the roofline."""
    buckets = sizes().buckets
    found = {}
    for pool in POOLS:
        each = capacities(
            model=MODEL,
            measurements=(),
            engine="vllm",
            gpu=pool.gpu,
            parallelism=Parallelism(),
            sizes=[(bucket.input_tokens, bucket.output_tokens) for bucket in buckets],
            objectives=OBJECTIVES,
            max_context_tokens=None,
        )
        busy_s = math.fsum(bucket.weight / one.requests_per_second for bucket, one in zip(buckets, each, strict=True))
        found[pool.name] = 1 / busy_s
    return found


def factors() -> tuple[Factors, Factors, Factors]:
    """None; one for all, by the paper's A100s; and one for each GPU type."""
    ours = rates_of_single_gpus()
    paper = {name: CALIBRATION_RPS / count for name, count in PAPER[CALIBRATION_RPS][2].items()}
    common = paper["a100"] / ours["a100"]
    return (
        Factors("the roofline as it is", dict.fromkeys(ours, 1.0)),
        Factors(f"one factor, {common:.2f}", dict.fromkeys(ours, common)),
        Factors("a factor for each GPU type", {name: paper[name] / ours[name] for name in ours}),
    )


def line(rate_rps: int, chosen: Factors, memo: Memo) -> Line:
    """One rate: the mix, Mélange's own formulation on the same figures, and single types."""
    service = Service(
        "arena", MODEL, rate_rps, sizes(), OBJECTIVES, tensor_parallel=(1,), corrections=chosen.corrections
    )

    def planned(formulation: Formulation, pools: tuple[Pool, ...]) -> ServicePlan:
        options = PlanOptions(formulation=formulation, explain=False)
        return plan(FleetState((service,), pools), options, memo=memo).services[0]

    single = {pool.name: sum(entry.replicas for entry in planned(Formulation.MEDLEY, (pool,)).mix) for pool in POOLS}
    return Line(rate_rps, planned(Formulation.MEDLEY, POOLS), planned(Formulation.MELANGE, POOLS), single)


def rows(*, quick: bool) -> list[Row]:
    """Print the tables and return the figures; `quick` changes nothing."""
    del quick
    text, found = page()
    Console().print(text, markup=False)
    return found


def page() -> tuple[str, list[Row]]:
    """The page of the documentation, and the figures."""
    memo = Memo()
    parts = [_introduction()]
    found: list[Row] = []
    for chosen in factors():
        lines = [line(rate_rps, chosen, memo) for rate_rps in PAPER]
        parts.append(_table(chosen, lines))
        over = [one.plan.cost_usd_per_hour / PAPER[one.rate_rps][1] for one in lines]
        saved = [_saving(one) for one in lines]
        name = f"table 3: {chosen.name}: "
        found += [
            Row(f"{name}our cost over the paper's, mean of six rates", sum(over) / len(over), "×"),
            Row(f"{name}largest difference of the two", 100 * max(abs(each - 1) for each in over), "%"),
            Row(f"{name}saved against the best single type, mean", 100 * sum(saved) / len(saved), "%"),
        ]
    return "\n".join([*parts, _reading()]), found


def _saving(one: Line) -> float:
    best = min(one.single[name] * price for name, (_, price) in GPUS.items())
    return 1 - one.plan.cost_usd_per_hour / best


def _table(chosen: Factors, lines: list[Line]) -> str:
    each = ", ".join(f"{name} {factor:.2f}" for name, factor in chosen.by_pool.items())
    made = [
        f"## With {chosen.name}",
        "",
        f"Factors on the roofline's rates: {each}.",
        "",
        "| req/s | paper's mix | $/h | our mix | $/h | Mélange's formulation, same figures | $/h "
        "| h100 paper/ours | a100 | a10g | l4 |",
        "|---:|---|---:|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for one in lines:
        mix, cost, single = PAPER[one.rate_rps]
        counts = " | ".join(f"{single[name]} / {one.single[name]}" for name in ("h100", "a100", "a10g", "l4"))
        ours, theirs = one.plan, one.melange
        made.append(
            f"| {one.rate_rps} | {mix} | {cost:.2f} | {mix_text(ours.mix)} | {ours.cost_usd_per_hour:.2f} "
            f"| {mix_text(theirs.mix)} | {theirs.cost_usd_per_hour:.2f} | {counts} |"
        )
    return "\n".join([*made, ""])


def _introduction() -> str:
    single = ", ".join(f"{name} {rate:.1f}" for name, rate in rates_of_single_gpus().items())
    return f"""\
# Mélange's table 3 from the roofline alone

Written by `python benchmarks/planner_table3.py --write`.

Llama-2-7B, Arena's mean sizes ({MEAN_TOKENS[0]} input and {MEAN_TOKENS[1]} output tokens; their spread is not
published and assumed lognormal, with standard deviations of the logarithms of {WIDTHS[0]} and {WIDTHS[1]}), mean time
per output token ≤ 120 ms, one GPU to a replica, the paper's prices. The paper's figures are measured on vLLM 0.2.7;
ours are estimates. By the roofline one GPU serves, in requests per second: {single}.
"""


def _reading() -> str:
    return """\
## Where they differ, and why

- **Absolute rates.** Engines of today serve several times as many requests on the same GPU as vLLM 0.2.7 did: it
  computed prompts in steps of their own while all other requests waited, and spent milliseconds of Python between
  steps. The roofline describes engines of today. So the first table needs a third of the GPUs, and at low rates a
  single small one serves everything. That is a difference of the engines as far as we can tell, not one that we
  measured.
- **The H100.** The paper's serves 1.12 times as much as its A100 (9 against 8 at 32 req/s); by data sheets it is 2.1
  times. A fixed cost per step weighs most on the fastest GPU. With one factor for all, our mixes therefore have H100s
  where the paper's have more A100s; with a factor for each type they have none, as the paper's.
- **L4, A10G and A100.** With one factor, small GPUs are a fifth weaker beside the A100 than in the paper (50 and 80 of
  them at 32 req/s instead of 39 and 65).
- **With a factor for each type**, which is what a live correction learns, single types need what the paper's do, and up
  to 4 req/s so do the mixes, but for one step of rounding. At 16 and 32 req/s the paper's mix is cheaper than ours. Its
  own single-type figures say that 5 A100, 6 A10G and 2 L4 serve 24 req/s of the average request, not 32: its small GPUs
  are so much better at short requests than at average ones. Our sizes, independent and of an assumed spread, hold less
  of that; the paper's measured rates by size are not published.
- **Shares of buckets.** With 64 sizes in the histogram, sharing a bucket between variants saves nothing over Mélange's
  whole slices here.
"""


def main() -> None:
    """Print the tables; write the page where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/table3.md")
    asked = parser.parse_args()
    text, found = page()
    print(text)
    for row in found:
        print(f"{row.name}: {row.value:.2f} {row.unit}")
    if asked.write:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
