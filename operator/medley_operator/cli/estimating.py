"""`medley plan --estimator`: where capacities come from that nobody measured."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medley_operator.estimators.aiconfigurator import PYTHON_VARIABLE, VERSION, AIConfigurator, is_installed
from medley_planner.capacities.capacity import Capacities, capacities
from medley_planner.capacities.estimators import ByMeasurement, ByRoofline
from medley_planner.capacities.variants import CapacityFunction


class EstimatorChoice(enum.StrEnum):
    """What estimates, after the measurements of a ModelProfile."""

    AUTO = "auto"
    """Tables of measured kernels where they are installed, then the roofline."""
    ROOFLINE = "roofline"
    """Data sheets alone."""
    AICONFIGURATOR = "aiconfigurator"
    """As auto; an error where the tables are not installed."""


class EstimatorMissingError(RuntimeError):
    """The estimator that was asked for is not installed; the message says how to install it."""


@contextmanager
def capacity_function(choice: EstimatorChoice) -> Iterator[CapacityFunction]:
    """The chain of estimators; what they learn is kept for the next run when the block ends.

    Raises:
        EstimatorMissingError: Tables were asked for that are not installed.
    """
    if choice is EstimatorChoice.ROOFLINE or (choice is EstimatorChoice.AUTO and not is_installed()):
        yield capacities
        return
    if not is_installed():
        raise EstimatorMissingError(
            f"aiconfigurator-core is not installed; pip install aiconfigurator-core=={VERSION}, here or in an "
            f"environment of its own whose python {PYTHON_VARIABLE} names"
        )
    with AIConfigurator(cache=_cache_folder() / f"aiconfigurator-{VERSION}.json") as tables:
        yield Capacities((ByMeasurement(), tables, ByRoofline()))


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "medley")
