"""What is on the page of a plan, as plain values: the template only lays them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medley_operator.api.llmservice import LLMService
from medley_operator.api.llmservice_status import PlanStatus
from medley_operator.cli.columns import money
from medley_operator.cli.planning import FEASIBLE
from medley_operator.cli.tables import objectives_text, replica_text

if TYPE_CHECKING:
    from medley_operator.cli.report.drawing import Plot


@dataclass(frozen=True)
class Fact:
    """A figure of the summary."""

    label: str
    value: str


@dataclass(frozen=True)
class TurnRow:
    """Where the plan changes, as a row."""

    what: str
    now: str
    until: str
    then: str


@dataclass(frozen=True)
class MixRow:
    """Replicas of a variant, as a row."""

    pool: str
    gpu: str
    replicas: str
    replica: str
    gpus: str
    cost: str
    used: str
    source: str


@dataclass(frozen=True)
class RejectionRow:
    """A variant that is not in the mix, as a row."""

    pool: str
    replica: str
    reason: str
    detail: str


@dataclass(frozen=True)
class ServiceSection:
    """A service on the page."""

    anchor: str
    service: LLMService
    plan: PlanStatus
    plots: tuple[Plot, ...] = ()
    turns: tuple[TurnRow, ...] = ()

    @property
    def key(self) -> str:
        """Its namespace and name."""
        return self.service.key

    @property
    def model(self) -> str:
        """What it serves."""
        return self.service.spec.model.name

    @property
    def asked(self) -> str:
        """Its rate and objectives."""
        return objectives_text(self.service)

    @property
    def good(self) -> bool:
        """Whether it is served."""
        return self.plan.outcome in FEASIBLE

    @property
    def mix(self) -> tuple[MixRow, ...]:
        """Its replicas."""
        sources = {each.variant: each.source for each in self.plan.capacity_sources}
        return tuple(
            MixRow(
                entry.pool,
                entry.gpu,
                f"{entry.replicas:,}",
                replica_text(entry),
                f"{entry.gpus:,}",
                money(entry.cost_per_hour),
                f"{100 * entry.utilisation:.0f} %",
                sources.get(entry.variant, ""),
            )
            for entry in self.plan.entries
        )

    @property
    def rejected(self) -> tuple[RejectionRow, ...]:
        """What is not in the mix."""
        return tuple(
            RejectionRow(each.pool, replica_text(each), each.reason, each.detail) for each in self.plan.rejected
        )


@dataclass(frozen=True)
class PoolRow:
    """A pool on the page."""

    name: str
    gpu: str
    capacity: str
    price: str
    used: str
    stock: str


@dataclass(frozen=True)
class ServedRow:
    """How much of a service is served, as a row."""

    anchor: str
    key: str
    priority: str
    rate: str
    served: str
    cost: str
    mix: str


@dataclass(frozen=True)
class Page:
    """All that is shown.

    Args:
        title: The page's.
        good: Whether every service is served.
        facts: The summary.
        services: A section each.
        pools: The pools, none where they are not known.
        plots: Plots of the whole fleet.
        turns: Where the plan changes with prices.
        notes: What it assumes.
        worth: What one more GPU would be worth, as sentences.
        served: Who is served, where not everybody is.
    """

    title: str
    good: bool
    facts: tuple[Fact, ...]
    services: tuple[ServiceSection, ...]
    pools: tuple[PoolRow, ...] = ()
    plots: tuple[Plot, ...] = ()
    turns: tuple[TurnRow, ...] = ()
    notes: tuple[str, ...] = ()
    worth: tuple[str, ...] = ()
    served: tuple[ServedRow, ...] = ()
