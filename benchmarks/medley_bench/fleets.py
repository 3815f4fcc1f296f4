"""Fleets to measure the planner with: seeded, of real models and GPU types, competing for stock that does not suffice.

The capacities are the planner's own estimates for real models on real GPUs, so that the shape of the problem (which
variants dominate, how much types differ from size to size) is that of a real fleet; rates, sizes and objectives are
drawn.
Only one type is ample, which costs more for the same work than most: all can be served, and most cannot have what they
would like best.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from medley_planner.capacities.capacity import capacities
from medley_planner.catalogue.gpus import gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.fleet import FleetState, Objectives, PlanOptions, Pool, ReplicaBounds, Service, Stock
from medley_planner.outlook import outlook
from medley_planner.programme.memo import Memo
from medley_planner.programme.problem import ServiceProblem
from medley_planner.workload.sizes import SizeHistogram

SEED = 20240614

PRICES_USD_PER_GPU_HOUR: Mapping[str, float] = {
    "A10G": 1.006,
    "A100-40GB": 2.745,
    "A100-80GB": 3.431,
    "B200": 14.241,
    "H100-80GB": 6.880,
    "H200": 7.913,
    "L4": 0.805,
    "L40S": 1.861,
}
"""On demand, us-east-1, January 2026; an eighth of the 8-GPU instance where there is no smaller one."""

TENSOR_PARALLEL = (1, 2, 4)
"""With eight pools, 24 variants to a service."""

MODELS = (
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen3-32B",
    "meta-llama/Llama-3.1-8B-Instruct",
    "mistralai/Mistral-7B-Instruct-v0.3",
)

GRID = 10
"""Buckets per axis."""

MAX_CONTEXT_TOKENS = 16_384

AMPLE_POOL, AMPLE_GPUS = "a100-80gb", 100_000

STOCK_SHARE = 0.5
"""What all pools hold together, each as a share of what the whole fleet would need of it alone."""


def crowded_fleet(services: int, *, seed: int = SEED, memo: Memo | None = None) -> FleetState:
    """A fleet that meets on crowded pools: 24 variants and 100 buckets to a service.

    Every pool but one, which is ample, holds a drawn share of the GPUs that all services together would need
    if they ran nowhere else. The shares add up to less than one.

    Args:
        services: How many.
        seed: Of all that is drawn.
        memo: Keeps capacities.
    """
    rng = np.random.default_rng([seed, services])
    asking = tuple(_service(rng, f"team-{number % 17:02}/llm-{number:04}") for number in range(services))
    ample = _ample_pools()
    needed = gpus_alone(FleetState(asking, ample), memo)
    shares = dict(zip(needed, STOCK_SHARE * rng.dirichlet(np.full(len(needed), 4.0)), strict=True))
    scarce = {name: max(8, 8 * round(shares[name] * gpus / 8)) for name, gpus in needed.items() if name != AMPLE_POOL}
    return FleetState(asking, tuple(replace(pool, stock=Stock.of(scarce.get(pool.name, AMPLE_GPUS))) for pool in ample))


def drawn_services(count: int, *, seed: int = SEED) -> Iterator[ServiceProblem]:
    """Services like those of a fleet, each by itself, in figures, with all the stock there is: for studies of one."""
    rng = np.random.default_rng([seed, count])
    pools = tuple(
        Pool(name.lower(), gpu_type(name), price, Stock.of(AMPLE_GPUS))
        for name, price in PRICES_USD_PER_GPU_HOUR.items()
    )
    for number in range(count):
        state = FleetState((_service(rng, f"drawn-{number:04}"),), pools)
        (ready,) = outlook(state, PlanOptions(), capacities, Memo()).prepared.values()
        yield ready.problem


def gpus_alone(state: FleetState, memo: Memo | None = None) -> dict[str, float]:
    """GPUs by pool that would serve all that the pool can serve of all services, in fractions of replicas."""
    needed = dict.fromkeys((pool.name for pool in state.pools), 0.0)
    for each in outlook(state, PlanOptions(), capacities, memo or Memo()).prepared.values():
        problem = each.problem
        for loads in problem.loads:
            least: dict[str, float] = {}
            for variant, gpus, load in zip(problem.variants, problem.gpus, loads, strict=True):
                least[variant.pool] = min(least.get(variant.pool, math.inf), gpus * load)
            for pool, gpus_busy in least.items():
                needed[pool] += gpus_busy if gpus_busy < math.inf else 0.0
    return needed


def _ample_pools() -> tuple[Pool, ...]:
    return tuple(
        Pool(name.lower(), gpu_type(name), price, Stock.of(AMPLE_GPUS), load_time_s=120.0)
        for name, price in PRICES_USD_PER_GPU_HOUR.items()
    )


def _service(rng: np.random.Generator, name: str) -> Service:
    per_token_s = float(rng.choice([0.05, 0.08, 0.12, 0.2]))
    return Service(
        name=name,
        model=known_models()[MODELS[int(rng.integers(len(MODELS)))]],
        rate_rps=float(np.exp(rng.uniform(math.log(1.0), math.log(100.0)))),
        sizes=_sizes(rng),
        objectives=Objectives(time_per_output_token_s=per_token_s),
        tensor_parallel=TENSOR_PARALLEL,
        max_context_tokens=MAX_CONTEXT_TOKENS,
        replicas=ReplicaBounds(minimum=1),
        headroom=0.1,
    )


def _sizes(rng: np.random.Generator) -> SizeHistogram:
    """Log-normal inputs and outputs that depend on each other, on a grid of equal steps in logarithms."""
    medians = np.exp(rng.uniform([math.log(150), math.log(50)], [math.log(3000), math.log(500)]))
    spreads = rng.uniform([0.5, 0.4], [1.3, 1.1])
    dependence = rng.uniform(-0.3, 0.5)
    steps = np.linspace(-2.5, 2.5, GRID)
    inputs = np.unique(np.clip(np.round(medians[0] * np.exp(spreads[0] * steps)), 1, 12_000).astype(int))
    outputs = np.unique(np.clip(np.round(medians[1] * np.exp(spreads[1] * steps)), 1, 4_000).astype(int))
    across, down = np.log(inputs / medians[0]) / spreads[0], np.log(outputs / medians[1]) / spreads[1]
    squares = across[:, None] ** 2 - 2 * dependence * across[:, None] * down[None, :] + down[None, :] ** 2
    weights = np.exp(-squares / (2 * (1 - dependence**2)))
    return SizeHistogram.of(
        *(
            (int(inputs[i]), int(outputs[j]), float(weights[i, j]))
            for i in range(len(inputs))
            for j in range(len(outputs))
        )
    )
