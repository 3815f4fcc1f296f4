"""What one service costs on our mix, on every single GPU type, and on Mélange's own formulation.

python benchmarks/mix.py            print the tables, write benchmarks/results/mix.json
python benchmarks/mix.py --write    the same, and write docs/mix-table.md
python benchmarks/mix.py --check    fail where that page is not what the planner gives

Prices and objectives are those of the Mélange paper, request sizes those of the Azure conversation trace.
All three sides see the same capacities; stock is unlimited, since Mélange knows none, and no capacity is kept free.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from medley_bench.report import Report, Row
from medley_planner.catalogue.gpus import gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.fleet import FleetState, Formulation, Objectives, PlanOptions, Pool, Service, Stock
from medley_planner.plan import plan
from medley_planner.result import Outcome, ServicePlan
from medley_planner.wording import mix_text
from medley_planner.workload.presets import preset

PAGE = Path(__file__).parents[1] / "docs" / "mix-table.md"

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
MAX_CONTEXT_TOKENS = 16_384
PRESET = "azure-conversation-2023"
RATES_RPS = (1, 2, 4, 8, 16, 32)


PRICES_USD = {"l4": ("L4", 0.70), "a10g": ("A10G", 1.01), "a100": ("A100-80GB", 3.67), "h100": ("H100-80GB", 7.516)}
"""Mélange, table 1."""

POOLS = tuple(Pool(name, gpu_type(gpu), price, Stock.of(8192)) for name, (gpu, price) in PRICES_USD.items())


INTRODUCTION = """\
# One service on a mix of GPU types

Written by `python benchmarks/mix.py --write`.

Llama-3.1-8B with a context of 16,384 tokens and the request sizes of the Azure conversation trace (preset `{preset}`).
Prices are those of the Mélange paper: {prices} $/h.
Capacities are estimates by [roofline](formulation-capacity.md) and the same on every side.
Stock is unlimited and no capacity is kept free, as in the paper.
*Mélange* is its own formulation with four slices per bucket; ours shares buckets in any proportion, so that it never
costs more. TPOT is the mean time per output token. Costs are in $/h.

Two things decide how much a mix saves.
With one GPU to a replica, as in the paper, small GPUs take the short requests and fill up what large ones leave.
Where replicas may take several GPUs, a few small ones together are often the best single type, and what remains is that
*which* type is best changes with the rate: whoever settles on one pays up to the second figure of the last column."""


@dataclass(frozen=True)
class Scenario:
    """What all rates of one table have in common; no tensor parallel sizes are all of them."""

    title: str
    time_per_output_token_s: float
    tensor_parallel: tuple[int, ...] = ()


SCENARIOS = (
    Scenario("TPOT ≤ 120 ms, one GPU to a replica", 0.120, (1,)),
    Scenario("TPOT ≤ 120 ms", 0.120),
    Scenario("TPOT ≤ 40 ms", 0.040),
)
"""Mélange's loose and tight objective; the paper has one GPU to a replica."""


@dataclass(frozen=True)
class Line:
    """One rate of one scenario.

    Args:
        scenario: The scenario.
        rate_rps: Requests per second.
        ours: Our plan.
        melange: Mélange's.
        single_usd_per_hour: The cheapest fleet of each GPU type alone; None where it cannot serve.
        seconds: Time to plan ours, without explanation.
    """

    scenario: Scenario
    rate_rps: float
    ours: ServicePlan
    melange: ServicePlan
    single_usd_per_hour: dict[str, float | None]
    seconds: float

    @property
    def saved_percent(self) -> tuple[float, float]:
        """What our mix saves against the best and the worst single type that can serve."""
        singles = [cost for cost in self.single_usd_per_hour.values() if cost is not None]
        best, worst = (100 * (1 - self.ours.cost_usd_per_hour / cost) for cost in (min(singles), max(singles)))
        return best, worst


def planned(
    scenario: Scenario, rate_rps: float, options: PlanOptions, pools: tuple[str, ...] | None = None
) -> ServicePlan:
    """The plan of the service."""
    service = Service(
        name="chat",
        model=known_models()[MODEL],
        rate_rps=rate_rps,
        sizes=preset(PRESET).sizes,
        objectives=Objectives(time_per_output_token_s=scenario.time_per_output_token_s),
        pools=pools,
        tensor_parallel=scenario.tensor_parallel,
        max_context_tokens=MAX_CONTEXT_TOKENS,
    )
    return plan(FleetState((service,), POOLS), options).service("chat")


def line(scenario: Scenario, rate_rps: float) -> Line:
    """Plan one rate on every side."""
    quick = PlanOptions(explain=False)
    started = time.perf_counter()
    ours = planned(scenario, rate_rps, quick)
    seconds = time.perf_counter() - started
    singles = {name: planned(scenario, rate_rps, quick, (name,)) for name in PRICES_USD}
    return Line(
        scenario=scenario,
        rate_rps=rate_rps,
        ours=ours,
        melange=planned(scenario, rate_rps, PlanOptions(formulation=Formulation.MELANGE)),
        single_usd_per_hour={
            name: each.cost_usd_per_hour if each.outcome is Outcome.PLANNED else None for name, each in singles.items()
        },
        seconds=seconds,
    )


def page(lines: list[Line]) -> str:
    """The tables as a page of the documentation."""
    prices = ", ".join(f"{gpu} {price:g}" for gpu, price in PRICES_USD.values())
    text = [INTRODUCTION.format(preset=PRESET, prices=prices)]
    singles = " | ".join(f"{name} only" for name in PRICES_USD)
    for scenario in SCENARIOS:
        text += [
            "",
            f"## {scenario.title}",
            "",
            f"| req/s | our mix | ours | Mélange | {singles} | saved, best to worst |",
            "|---:|---|---:|---:|" + "---:|" * len(PRICES_USD) + "---:|",
        ]
        for each in lines:
            if each.scenario == scenario:
                costs = ["–" if cost is None else f"{cost:.2f}" for cost in each.single_usd_per_hour.values()]
                best, worst = each.saved_percent
                text.append(
                    f"| {each.rate_rps} | {mix_text(each.ours.mix)} | {each.ours.cost_usd_per_hour:.2f} | "
                    f"{each.melange.cost_usd_per_hour:.2f} | {' | '.join(costs)} | {best:.0f} – {worst:.0f} % |"
                )
    return "\n".join(text) + "\n"


def report(lines: list[Line]) -> Report:
    """The figures for machines."""
    rows = []
    for each in lines:
        name = f"{each.rate_rps} req/s, {each.scenario.title}"
        best, worst = each.saved_percent
        ours, theirs = each.ours.cost_usd_per_hour, each.melange.cost_usd_per_hour
        rows += [
            Row(f"{name}: our mix, {mix_text(each.ours.mix)}", ours, "$/h", "≤ Mélange", ours <= theirs + 1e-6),
            Row(f"{name}: Mélange, {mix_text(each.melange.mix)}", theirs, "$/h"),
            *(
                Row(f"{name}: {pool} only", "cannot serve" if cost is None else cost, "" if cost is None else "$/h")
                for pool, cost in each.single_usd_per_hour.items()
            ),
            Row(f"{name}: saved against the best single type", best, "%", "≥ 0", best >= -1e-6),
            Row(f"{name}: saved against the worst single type", worst, "%"),
            Row(f"{name}: proven gap", 100 * each.ours.gap, "%", "≤ 0.01", each.ours.gap <= 1e-4),
            Row(f"{name}: time to plan", each.seconds, "s"),
        ]
    return Report("mix", tuple(rows))


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="write docs/mix-table.md")
    what.add_argument("--check", action="store_true", help="fail where docs/mix-table.md is out of date")
    arguments = parser.parse_args()
    lines = [line(scenario, rate_rps) for scenario in SCENARIOS for rate_rps in RATES_RPS]
    if arguments.check:
        if PAGE.read_text(encoding="utf-8") == page(lines):
            return 0
        print(f"{PAGE.name} is out of date: python benchmarks/mix.py --write", file=sys.stderr)
        return 1
    figures = report(lines)
    figures.show()
    print(f"wrote {figures.write().relative_to(PAGE.parents[1])}")
    if arguments.write:
        PAGE.write_text(page(lines), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(PAGE.parents[1])}")
    return 0 if all(row.met is not False for row in figures.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
