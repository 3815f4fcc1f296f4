"""Fleets for planner tests: capacities by table, so that a test says what every replica can do."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medley_planner.capacities.capacity import MEMORY_TOO_SMALL, Capacity
from medley_planner.catalogue.gpus import GPUType
from medley_planner.catalogue.models import ModelArchitecture
from medley_planner.fleet import (
    Availability,
    CapacityType,
    FleetState,
    Objectives,
    Parallelism,
    Pool,
    ReplicaBounds,
    Role,
    Service,
    Stock,
    Variant,
)
from medley_planner.workload.sizes import SizeHistogram

SHORT = (100, 100)
LONG = (4000, 400)

MODEL = ModelArchitecture(
    parameters=8_000_000_000,
    layers=32,
    hidden_size=4096,
    attention_heads=32,
    key_value_heads=8,
    head_size=128,
    max_context_tokens=131_072,
)

Size = tuple[int, int]


@dataclass(frozen=True)
class Rates:
    """A capacity function that looks rates up: by GPU type and tensor parallel size, and the role of replicas that
    compute only a part of requests, then by request size.

    What is not in the table cannot be served. `places` is how many requests a replica holds at once, by GPU type.
    """

    table: Mapping[tuple[str, int] | tuple[str, int, Role], Mapping[Size, float]] = field(hash=False)
    places: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __call__(
        self,
        *,
        gpu: GPUType,
        parallelism: Parallelism,
        sizes: Sequence[Size],
        role: Role = Role.SHARED,
        correction: float = 1.0,
        **_: object,
    ) -> tuple[Capacity, ...]:
        key = (gpu.name, parallelism.tensor) if role is Role.SHARED else (gpu.name, parallelism.tensor, role)
        rates = self.table.get(key, {})
        return tuple(self._capacity(rates.get(size, 0.0), gpu, size).corrected(correction) for size in sizes)

    def _capacity(self, rate_rps: float, gpu: GPUType, size: Size) -> Capacity:
        if rate_rps > 0:
            return Capacity(rate_rps, "", "", "measured", self.places.get(gpu.name, 0.0))
        return Capacity(0.0, MEMORY_TOO_SMALL, f"{gpu.name} is too small for {size}", "measured")


def pool(name: str, price: float, stock: int | Stock = 64, **more: object) -> Pool:
    """A pool of GPUs of its own type, on nodes of eight."""
    gpu = GPUType.of(name, memory_gib=24, memory_bandwidth_gb_per_s=300, teraflops=100)
    held = stock if isinstance(stock, Stock) else Stock.of(stock)
    return Pool(name, gpu, price, held, **more)


def service(name: str = "chat", rate: float = 1.0, *, sizes: SizeHistogram | None = None, **more: object) -> Service:
    """A service of short and long requests, half of each, on single GPUs unless told otherwise."""
    more.setdefault("tensor_parallel", (1,))
    both = sizes or SizeHistogram.of((*SHORT, 0.5), (*LONG, 0.5))
    return Service(name, MODEL, rate, both, Objectives(time_per_output_token_s=0.1), **more)


def fleet(services: Sequence[Service] | Service, pools: Sequence[Pool]) -> FleetState:
    """A fleet of them."""
    return FleetState((services,) if isinstance(services, Service) else tuple(services), tuple(pools))


SMALL_AND_BIG = Rates(
    {
        ("small", 1): {SHORT: 2.0, LONG: 0.1},
        ("big", 1): {SHORT: 8.0, LONG: 2.0},
    }
)
"""Small GPUs are good at short requests, big ones at long ones; at 1 and 5 $/h each has its place."""


def small_and_big(small: int | Stock = 64, big: int | Stock = 64, *, small_price: float = 1.0, big_price: float = 5.0):
    """The two pools that go with `SMALL_AND_BIG`."""
    return (pool("small", small_price, small, load_time_s=60.0), pool("big", big_price, big, load_time_s=120.0))


def mix(plan_of_service) -> dict[str, int]:
    """A plan's mix as {variant: replicas}, variants without `/tp1`."""
    return {str(entry.variant).removesuffix("/tp1"): entry.replicas for entry in plan_of_service.mix}


def running(**replicas: int) -> dict[Variant, int]:
    """Replicas on single GPUs by pool."""
    return {Variant(name, 1): count for name, count in replicas.items()}


def random_fleet(rng: random.Random, *, services: int | None = None) -> tuple[FleetState, Rates]:
    """A small fleet with shared and often scarce stock, caps, bounds and tensor-parallel groups.

    Prices are whole cents, so that two mixes cost the same or differ by a cent at least.
    """
    names = ["l", "m", "x"][: rng.randint(1, 3)]
    pools = tuple(_random_pool(rng, name) for name in names)
    sizes = [(100 * (k + 1), 50 * (k + 1)) for k in range(rng.randint(1, 3))]
    table = {
        (name, tensor_parallel): {
            size: rng.uniform(0.4, 5.0) * tensor_parallel**0.9 for size in sizes if rng.random() < 0.9
        }
        for name in names
        for tensor_parallel in (1, 2)
    }
    count = services or rng.choice([1, 1, 2, 2, 3])
    return FleetState(tuple(_random_service(rng, f"s{k}", names, sizes) for k in range(count)), pools), Rates(table)


def _random_pool(rng: random.Random, name: str) -> Pool:
    gpus_per_node = rng.choice([1, 2, 2, 4])
    nodes = tuple(rng.randint(1, gpus_per_node) for _ in range(rng.randint(0, 3)))
    return pool(
        name,
        rng.randint(50, 900) / 100,
        Stock.from_nodes(nodes, limit=rng.choice([6, 6, 3])),
        gpus_per_node=gpus_per_node,
        load_time_s=rng.choice([0.0, 60.0]),
    )


def _random_service(rng: random.Random, name: str, pools: Sequence[str], sizes: Sequence[Size]) -> Service:
    minimum = rng.choice([0, 1, 1, 2])
    by_pool = {}
    if rng.random() < 0.2:
        by_pool[rng.choice(pools)] = rng.choice([ReplicaBounds(0, 1), ReplicaBounds(1, None), ReplicaBounds(0, 2)])
    return service(
        name,
        rng.uniform(0.1, 3.0),
        sizes=SizeHistogram.of(*((*size, rng.uniform(0.1, 1.0)) for size in sizes)),
        tensor_parallel=rng.choice([(1,), (1, 2), (1, 2), (2,), ()]),
        max_cost_usd_per_hour=rng.choice([None, None, None, rng.randint(300, 3000) / 100]),
        replicas=ReplicaBounds(minimum, rng.choice([None, None, None, minimum + rng.randint(0, 4)])),
        replicas_by_pool=by_pool,
        headroom=rng.choice([0.0, 0.1, 0.3]),
    )


def random_spread_fleet(rng: random.Random) -> tuple[FleetState, Rates]:
    """A tiny fleet on spot, reserved and on-demand pools, with rules on how replicas are spread, room for queueing,
    replicas that compute a part of requests, and a price cap of its own. Single GPUs only."""
    disaggregated = rng.random() < 0.25
    names = ["l", "m", "x"][: 2 if disaggregated else rng.choice([2, 3, 3])]
    pools = tuple(_random_kind_of_pool(rng, name) for name in names)
    sizes = [(100 * (k + 1), 50 * (k + 1)) for k in range(rng.randint(1, 3))]
    table: dict[tuple[str, int] | tuple[str, int, Role], dict[Size, float]] = {}
    for name in names:
        table[name, 1] = {size: rng.uniform(0.4, 4.0) for size in sizes if rng.random() < 0.9}
        for role in (Role.PREFILL, Role.DECODE):
            table[name, 1, role] = {size: rng.uniform(1.0, 6.0) for size in sizes if rng.random() < 0.9}
    rates = Rates(table, {name: rng.choice([0.0, 3.0, 20.0]) for name in names})
    services = tuple(
        _random_spread_service(rng, f"s{k}", sizes, disaggregated=disaggregated) for k in range(rng.choice([1, 1, 2]))
    )
    cap = rng.choice([None, None, rng.randint(100, 2500) / 100])
    return FleetState(services, pools, max_cost_usd_per_hour=cap), rates


def _random_kind_of_pool(rng: random.Random, name: str) -> Pool:
    kind = rng.choice(list(CapacityType))
    return pool(
        name,
        rng.randint(50, 900) / 100,
        Stock.of(rng.choice([0, 2, 3, 4])),
        load_time_s=rng.choice([0.0, 60.0, 600.0]),
        capacity_type=kind,
        interruptions_per_hour=rng.choice([0.0, 0.1, 1.0]) if kind is CapacityType.SPOT else 0.0,
    )


def _random_spread_service(rng: random.Random, name: str, sizes: Sequence[Size], *, disaggregated: bool) -> Service:
    minimum = rng.choice([0, 1, 1, 2])
    return service(
        name,
        rng.uniform(0.1, 3.0),
        sizes=SizeHistogram.of(*((*size, rng.uniform(0.1, 1.0)) for size in sizes)),
        max_cost_usd_per_hour=rng.choice([None, None, None, rng.randint(300, 2000) / 100]),
        replicas=ReplicaBounds(minimum, rng.choice([None, None, None, minimum + rng.randint(0, 4)])),
        headroom=rng.choice([0.0, 0.1]),
        queueing_quantile=rng.choice([0.0, 0.0, 0.3, 0.8]),
        interarrival_cv=rng.choice([1.0, 1.0, 2.0]),
        availability=Availability(
            spot_max_share=rng.choice([1.0, 1.0, 0.5, 0.4, 0.0]),
            pool_max_share=rng.choice([1.0, 1.0, 0.67, 0.5]),
            survivable_share=rng.choice([0.0, 0.0, 0.5, 1.0]),
        ),
        disaggregated=disaggregated,
    )
