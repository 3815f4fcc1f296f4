"""`medley workload --error`: the price of a trace's load by the number of buckets, with bounds, at list prices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from medley_operator.cli.columns import money, rows_table
from medley_operator.cli.inputs import InputError, Mistake
from medley_operator.cli.prices import LIST_PRICES
from medley_operator.cli.workload import FoundWorkload
from medley_planner.catalogue.gpus import gpu_type
from medley_planner.catalogue.known_models import UnknownModelError, known_model
from medley_planner.fleet import Objectives, Pool, Service, Stock
from medley_planner.workload.bucketing import BucketingError, bucketing_errors
from medley_planner.workload.sizes import SizeHistogram

DEFAULT_MODEL = "meta-llama/Llama-3.1-8B-Instruct"
UNLIMITED_GPUS = 1_000_000


def errors_of(workload: FoundWorkload, *, model: str, tpot_ms: float, ttft_ms: float) -> tuple[BucketingError, ...]:
    """The price of a trace's load by bins per axis, on all GPU types with a list price.

    Args:
        workload: The workload of a trace.
        model: The model's id in the catalogue.
        tpot_ms: Objective on the time per output token.
        ttft_ms: Objective on the time to the first token.

    Raises:
        InputError: There is no trace, or the catalogue does not know the model.
    """
    if workload.trace is None:
        raise InputError([Mistake("--error", None, "", "needs a trace: margins have no single requests")])
    try:
        architecture = known_model(model).architecture
    except UnknownModelError as error:
        raise InputError([Mistake("--model", None, "", str(error))]) from None
    service = Service(
        name="trace",
        model=architecture,
        rate_rps=workload.rate_rps,
        sizes=SizeHistogram.of((1, 1, 1.0)),
        objectives=Objectives(tpot_ms / 1e3, ttft_ms / 1e3),
    )
    pools = [
        Pool(name, gpu_type(name), price.usd_per_gpu_hour, Stock.of(UNLIMITED_GPUS))
        for name, price in sorted(LIST_PRICES.items())
    ]
    return bucketing_errors(workload.trace, service, pools)


def error_tables(errors: Sequence[BucketingError], model: str) -> RenderableType:
    """The errors for people."""
    rows = [
        (
            f"{error.bins} × {error.bins}",
            f"{error.buckets:,}",
            money(error.means.usd_per_hour),
            money(error.optimistic.usd_per_hour),
            money(error.pessimistic.usd_per_hour),
            _percent(error.bound),
            _percent(1 - error.means.served_share),
        )
        for error in errors
    ]
    head = Text(f"Price of the load by buckets, in fractions of replicas: {model} on {len(LIST_PRICES)} GPU types")
    names = ("bins", "buckets", "$/h", "at least", "at most", "error at most", "not served")
    return Group(head, rows_table(names, rows))


def error_data(errors: Sequence[BucketingError]) -> list[dict[str, Any]]:
    """The errors for programs."""
    return [
        {
            "bins": error.bins,
            "buckets": error.buckets,
            "usdPerHour": round(error.means.usd_per_hour, 4),
            "atLeast": round(error.optimistic.usd_per_hour, 4),
            "atMost": round(error.pessimistic.usd_per_hour, 4),
            "errorAtMost": None if math.isinf(error.bound) else round(error.bound, 4),
            "servedShare": round(error.means.served_share, 6),
        }
        for error in errors
    ]


def _percent(share: float) -> str:
    return "unbounded" if math.isinf(share) else f"{100 * share:.1f} %"
