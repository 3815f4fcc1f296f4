import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from medley_planner.catalogue.gpus import gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.fleet import Objectives, Pool, Service, Stock
from medley_planner.workload.bucketing import BucketingError, LoadPrice, bucketing_errors, load_price
from medley_planner.workload.sizes import SizeHistogram
from medley_planner.workload.traces import Trace

POOLS = (
    Pool("l4", gpu_type("L4"), 0.8, Stock.of(1000)),
    Pool("a100", gpu_type("A100-80GB"), 3.4, Stock.of(1000)),
)
SERVICE = Service(
    name="chat",
    model=known_models()["meta-llama/Llama-3.1-8B-Instruct"],
    rate_rps=5.0,
    sizes=SizeHistogram.of((1, 1, 1)),
    objectives=Objectives(0.08, 10.0),
    max_context_tokens=32_768,
)


def random_trace(seed: int, requests: int = 300) -> Trace:
    rng = np.random.default_rng(seed)
    return Trace(
        arrivals_s=np.arange(requests, dtype=np.float64),
        input_tokens=np.clip(rng.lognormal(6.5, 1.2, requests), 1, 20_000).astype(np.int64),
        output_tokens=np.clip(rng.lognormal(4.5, 1.2, requests), 1, 8_000).astype(np.int64),
    )


def every_request(trace: Trace) -> SizeHistogram:
    counts = Counter(zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True))
    return SizeHistogram.of(*((*size, float(count)) for size, count in counts.items()))


@pytest.mark.parametrize("seed", range(3))
def test_bounds_enclose_the_price_of_every_single_request(seed: int) -> None:
    trace = random_trace(seed)
    truth = load_price(every_request(trace), SERVICE, POOLS)

    assert truth.served_share == 1
    for error in bucketing_errors(trace, SERVICE, POOLS, bins=(1, 10, 30)):
        assert error.optimistic.usd_per_hour <= truth.usd_per_hour <= error.pessimistic.usd_per_hour, f"seed {seed}"
        assert error.optimistic.usd_per_hour <= error.means.usd_per_hour <= error.pessimistic.usd_per_hour
        if math.isfinite(error.bound):
            assert abs(error.means.usd_per_hour / truth.usd_per_hour - 1) <= error.bound


@pytest.mark.parametrize("seed", range(3))
def test_more_bins_bound_the_error_more_closely(seed: int) -> None:
    errors = bucketing_errors(random_trace(seed), SERVICE, POOLS, bins=(10, 40, 160))

    assert [error.bound for error in errors] == sorted((error.bound for error in errors), reverse=True)
    assert errors[-1].bound < 0.1


def test_the_price_of_one_size_is_that_of_its_cheapest_variant() -> None:
    sizes = SizeHistogram.of((1000, 200, 1))
    both = load_price(sizes, SERVICE, POOLS)
    each = [load_price(sizes, SERVICE, (pool,)).usd_per_hour for pool in POOLS]

    assert both == LoadPrice(min(each), 1.0)
    assert load_price(sizes, replace(SERVICE, rate_rps=10.0), POOLS).usd_per_hour == pytest.approx(2 * min(each))


def test_what_no_variant_serves_is_told_and_not_priced() -> None:
    short = replace(SERVICE, max_context_tokens=4096)
    sizes = SizeHistogram.of((1000, 200, 3), (5000, 200, 1))

    assert load_price(sizes, short, POOLS).served_share == 0.75
    price = LoadPrice(1.0, 1.0)
    assert BucketingError(10, 2, price, price, LoadPrice(1.0, 0.75)).bound == math.inf
