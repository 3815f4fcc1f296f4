"""The sources of capacity that need nothing but the question: the user's measurements, and the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medley_planner.capacities.estimate import OBJECTIVE_NOT_MET, Capacity, Question, Size
from medley_planner.capacities.measured import load_curves, measured_rates, points_of
from medley_planner.capacities.roofline import sustained_rates
from medley_planner.fleet import Role

MEASURED = "measured"
MEASURED_SCALED = "measured, scaled"
ROOFLINE = "roofline"
PERCENTILES_ESTIMATED = ", percentiles by roofline"


@dataclass(frozen=True)
class ByMeasurement:
    """The measured points of the model's profile, for replicas of a GPU type and parallelism that were measured."""

    def source(self, question: Question) -> str:
        """`measured` where there are points for such a replica; whole requests alone are measured, no parts."""
        if question.role is not Role.SHARED:
            return ""
        measured = points_of(
            question.measurements, engine=question.engine, gpu=question.gpu, parallelism=question.parallelism
        )
        return MEASURED if measured else ""

    def estimate(self, question: Question, sizes: Sequence[Size]) -> tuple[Capacity | None, ...]:
        """A capacity for every size: on the measured curves, between them, or carried over by the roofline's shape."""
        curves = load_curves(
            question.measurements, engine=question.engine, gpu=question.gpu, parallelism=question.parallelism
        )
        rates = measured_rates(
            curves,
            model=question.model,
            gpu=question.gpu,
            parallelism=question.parallelism,
            sizes=sizes,
            objectives=question.objectives,
            prompts=question.prompts,
        )
        suffix = PERCENTILES_ESTIMATED if question.objectives.at_percentiles else ""
        return tuple(
            Capacity(
                rate.requests_per_second,
                "" if rate.requests_per_second > 0 else OBJECTIVE_NOT_MET,
                rate.detail,
                (MEASURED_SCALED if rate.scaled else MEASURED) + suffix,
                rate.concurrency,
            )
            for rate in rates
        )


@dataclass(frozen=True)
class ByRoofline:
    """Data sheets alone; answers everything."""

    def source(self, question: Question) -> str:
        """`roofline`, whatever is asked."""
        del question
        return ROOFLINE

    def estimate(self, question: Question, sizes: Sequence[Size]) -> tuple[Capacity | None, ...]:
        """A capacity for every size."""
        rates = sustained_rates(
            question.model,
            question.gpu,
            question.parallelism,
            sizes,
            question.objectives,
            role=question.role,
            prompts=question.prompts,
        )
        found: list[Capacity] = []
        columns = (rates.requests_per_second.tolist(), rates.concurrency.tolist(), rates.idle, rates.loaded)
        for size, rate_rps, inside, idle, loaded in zip(sizes, *columns, strict=True):
            if rate_rps > 0:
                found.append(Capacity(rate_rps, "", "", ROOFLINE, inside, loaded))
                continue
            circumstance = f"for {size[0]} input and {size[1]} output tokens on an idle replica, by estimate"
            missed = idle.missed(question.objectives, circumstance)
            found.append(Capacity(0.0, OBJECTIVE_NOT_MET, missed, ROOFLINE))
        return tuple(found)
