"""What planning with buckets costs against planning for every request: the error, and a bound on it.

For each number of bins, the trace is bucketed and priced three times: with every bucket at the mean of its requests
(which is what a plan does), at the smallest and at the largest of them. The price is that of the load in fractions of
replicas, Σ_b λ_b · min_v c_v / μ_bv: no whole numbers, no stock, so that nothing but the sizes differs.
Where capacity falls as sizes grow, the price of every single request lies between the last two; the formulas:
docs/workloads.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from medley_planner.capacities.capacity import capacities
from medley_planner.capacities.variants import CapacityFunction, candidates
from medley_planner.fleet import Pool, Role, Service
from medley_planner.programme.memo import Memo
from medley_planner.workload.buckets import corners_of, histogram_of
from medley_planner.workload.sizes import SizeHistogram
from medley_planner.workload.traces import Trace

BINS = (10, 20, 40, 80)
"""Bins per axis that are compared."""


@dataclass(frozen=True)
class LoadPrice:
    """What the load of some sizes costs.

    Args:
        usd_per_hour: Price of the requests that some variant serves, in fractions of replicas.
        served_share: Share of the requests that some variant serves within the objectives.
    """

    usd_per_hour: float
    served_share: float


@dataclass(frozen=True)
class BucketingError:
    """What bucketing does to the price of a trace's load.

    Args:
        bins: Bins per axis.
        buckets: Buckets that hold requests.
        means: With every bucket at its mean: what a plan is made for.
        optimistic: With every bucket at the smallest of its requests.
        pessimistic: With every bucket at the largest of its requests.
    """

    bins: int
    buckets: int
    means: LoadPrice
    optimistic: LoadPrice
    pessimistic: LoadPrice

    @property
    def bound(self) -> float:
        """How far the price is at most from that of every single request, as a share of it; infinite where the
        largest requests of a bucket cannot be served: whether the others can, the bucket does not say.
        """
        if min(self.means.served_share, self.pessimistic.served_share) < 1:
            return math.inf
        mean, low, high = (price.usd_per_hour for price in (self.means, self.optimistic, self.pessimistic))
        return max(mean / low - 1, 1 - mean / high)


def bucketing_errors(
    trace: Trace,
    service: Service,
    pools: Sequence[Pool],
    *,
    bins: Sequence[int] = BINS,
    capacity_of: CapacityFunction = capacities,
) -> tuple[BucketingError, ...]:
    """The price of a trace's load by the number of bins per axis, with its bounds.

    Args:
        trace: The requests.
        service: What serves them: model, objectives and rate; its sizes are replaced by the trace's.
        pools: What may be used; stock does not count.
        bins: Bins per axis to compare.
        capacity_of: What one replica sustains.
    """
    made = []
    for count in bins:
        means = histogram_of(trace, input_bins=count, output_bins=count)
        corners = corners_of(trace, input_bins=count, output_bins=count)
        prices = [load_price(sizes, service, pools, capacity_of=capacity_of) for sizes in (means, *corners)]
        made.append(BucketingError(count, len(means.buckets), *prices))
    return tuple(made)


def load_price(
    sizes: SizeHistogram, service: Service, pools: Sequence[Pool], *, capacity_of: CapacityFunction = capacities
) -> LoadPrice:
    """The price of the load of these sizes at the service's rate, each size on its cheapest variant."""
    asked = dataclasses.replace(service, sizes=sizes)
    usable = candidates(asked, sorted(pools, key=lambda pool: pool.name), capacity_of, Memo()).usable
    shared = [candidate for candidate in usable if candidate.variant.role is Role.SHARED]
    priced: list[float] = []
    served: list[float] = []
    for place, bucket in enumerate(sizes.buckets):
        rates = [(candidate.price_usd_per_hour, candidate.capacities.rates[place]) for candidate in shared]
        cheapest = min((price / rate for price, rate in rates if rate > 0), default=math.inf)
        if cheapest < math.inf:
            priced.append(service.rate_rps * bucket.weight * cheapest)
            served.append(bucket.weight)
    return LoadPrice(math.fsum(priced), min(1.0, math.fsum(served)))
