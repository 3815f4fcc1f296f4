"""Plans as tables for people. The same tables show a plan of `medley plan` and that of a running service."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from medley_operator.api.llmservice import Latency, LLMService
from medley_operator.api.llmservice_status import (
    PlanAlternative,
    PlanBinding,
    PlanRejection,
    PlanStatus,
    VariantRow,
)
from medley_operator.cli.columns import columns, money
from medley_operator.cli.planning import FEASIBLE, PlannedFleet
from medley_operator.cli.sensitivity import sensitivity_tables

MAX_ALTERNATIVES = 8
MAX_SIZES = 6
"""So many ways to share the work are named in a row; `-o json` shows all."""


def fleet_tables(planned: PlannedFleet) -> RenderableType:
    """Everything `medley plan` shows."""
    parts: list[RenderableType] = []
    for each in planned.services:
        parts += [service_headline(each.service), Padding(plan_tables(each.plan), (0, 0, 1, 2), expand=False)]
    if len(planned.services) > 1 and not planned.all_served:
        parts += [_served_table(planned), Text()]
    if len(planned.services) > 1 or planned.fleet.nearest_feasible_cap_usd_per_hour is not None:
        parts += [_fleet_summary(planned), Text()]
    if planned.fleet.shadow_prices:
        worth = [Text.assemble(("worth: ", "yellow"), each.detail) for each in planned.fleet.shadow_prices]
        parts += [*worth, Text()]
    if planned.sensitivity is not None:
        parts.append(sensitivity_tables(planned.sensitivity, alone=len(planned.services) == 1))
    parts += [Text(f"note: {note}", style="dim") for note in planned.notes]
    return Group(*parts)


def service_headline(service: LLMService) -> Text:
    """A service in a line: its name, model, rate and objectives."""
    return Text.assemble((service.key, "bold"), "  ", service.spec.model.name, (f"  {objectives_text(service)}", "dim"))


def objectives_text(service: LLMService) -> str:
    """What is asked of a service: `6 requests/s, ≤ 60 ms per output token`."""
    objectives = service.spec.objectives
    wanted = [f"{service.spec.workload.rate:g} requests/s"]
    if objectives.time_per_output_token is not None:
        wanted.append(f"{_limit_text(objectives.time_per_output_token)} per output token")
    if objectives.time_to_first_token is not None:
        wanted.append(f"{_limit_text(objectives.time_to_first_token)} to the first")
    return ", ".join(wanted)


def _limit_text(objective: Latency) -> str:
    at = "" if objective.percentile is None else f"p{objective.percentile:g} "
    return f"{at}≤ {objective.milliseconds:g} ms"


def replica_text(row: VariantRow) -> str:
    """How a replica's GPUs share the work, and which part of it they do: `1 GPU`, `tp2/dp4`, `tp2, prefill`."""
    shared = "1 GPU" if row.parallelism.gpus == 1 else str(row.parallelism)
    return shared if row.role is None else f"{shared}, {row.role}"


def _shared_by(row: VariantRow) -> str:
    """How many GPUs a replica has, and how they share the work where it is not every matrix product."""
    gpus = row.parallelism.gpus
    return str(gpus) if gpus == row.parallelism.tensor else f"{gpus} ({row.parallelism})"


def _gpus_text(row: VariantRow) -> str:
    """The same, and the part of requests that it does."""
    return _shared_by(row) if row.role is None else f"{_shared_by(row)} ({row.role})"


def plan_tables(plan: PlanStatus) -> RenderableType:
    """One plan: its mix, price and bound, and why."""
    parts: list[RenderableType] = [_verdict(plan)]
    if plan.entries:
        parts += [Text(), _mix_table(plan), Text(), _cost_line(plan)]
    parts += [_binding_line(bound) for bound in plan.binding if not _is_said(bound, plan)]
    if plan.alternatives:
        parts += [Text(), _alternatives_table(plan.alternatives)]
    if plan.rejected:
        parts += [Text(), _rejections_table(plan.rejected)]
    return Group(*parts)


def _verdict(plan: PlanStatus) -> Text:
    good = plan.outcome in FEASIBLE
    made = Text.assemble((plan.outcome, "bold green" if good else "bold red"), "  ", plan.reason)
    if plan.nearest_feasible_cost_cap is not None:
        made.append(f"; the lowest cap that would do is {money(plan.nearest_feasible_cost_cap)} $/h", style="bold")
    return made


def _mix_table(plan: PlanStatus) -> Table:
    sources = {source.variant: source.source for source in plan.capacity_sources}
    table = columns("pool", "GPU")
    for name in ("replicas", "GPUs each", "$/hour", "used"):
        table.add_column(name, justify="right")
    table.add_column("capacity")
    for entry in plan.entries:
        table.add_row(
            entry.pool,
            entry.gpu,
            str(entry.replicas),
            _gpus_text(entry),
            money(entry.cost_per_hour),
            f"{100 * entry.utilisation:.0f} %",
            sources.get(entry.variant, ""),
        )
    return table


def _cost_line(plan: PlanStatus) -> Text:
    made = Text(f"{money(plan.cost_per_hour)} $/h", style="bold")
    if plan.served_percent < 100:
        return made.append(
            f"  serves {plan.served_percent:g} % of the requests within the objectives", style="not bold red"
        )
    return made.append(f"  lower bound {money(plan.lower_bound)} $/h, gap {plan.gap_percent:g} %", style="not bold")


def _is_said(bound: PlanBinding, plan: PlanStatus) -> bool:
    """Whether the plan's reason says the same already."""
    return bound.detail.rstrip(".").casefold() in plan.reason.casefold()


def _binding_line(bound: PlanBinding) -> Text:
    subject = "" if bound.subject == bound.constraint else f" ({bound.subject})"
    return Text.assemble(("binds: ", "yellow"), f"{bound.constraint}{subject}  {bound.detail}")


def _alternatives_table(alternatives: Sequence[PlanAlternative]) -> Table:
    table = columns("instead")
    table.add_column("$/hour", justify="right")
    table.add_column("difference", justify="right")
    table.add_column("which")
    for other in alternatives[:MAX_ALTERNATIVES]:
        cost = "impossible" if other.cost_per_hour is None else money(other.cost_per_hour)
        extra = "" if other.extra_per_hour is None else f"{other.extra_per_hour:+.2f}"
        table.add_row(other.name, cost, extra, other.detail)
    if len(alternatives) > MAX_ALTERNATIVES:
        table.add_row(f"… {len(alternatives) - MAX_ALTERNATIVES} more", "", "", "-o json shows all")
    return table


def _rejections_table(rejected: Sequence[PlanRejection]) -> Table:
    """Variants that are not in the mix; those of a pool that do the same part, with the same reason, share a row."""
    table = columns("not in the mix", "because")
    table.add_column("")
    ordered = sorted(rejected, key=lambda row: (*_group(row), row.parallelism))
    for (pool, role, reason), rows in groupby(ordered, key=_group):
        same = list(rows)
        sizes = [_shared_by(row) for row in same[:MAX_SIZES]] + (["…"] if len(same) > MAX_SIZES else [])
        part = f" ({role})" if role else ""
        table.add_row(f"{pool} × {', '.join(sizes)}{part}", reason, same[0].detail)
    return table


def _group(row: PlanRejection) -> tuple[str, str, str]:
    return row.pool, row.role or "", row.reason


def _served_table(planned: PlannedFleet) -> Table:
    """Who is served where not everybody is, services of higher priority first."""
    table = columns("who is served")
    for name in ("priority", "requests/s", "served", "$/hour"):
        table.add_column(name, justify="right")
    table.add_column("by")
    for each in planned.by_priority():
        table.add_row(
            each.service.key,
            str(planned.priority(each)),
            f"{each.service.spec.workload.rate:g}",
            f"{each.plan.served_percent:g} %",
            money(each.plan.cost_per_hour),
            each.plan.mix,
        )
    return table


def _fleet_summary(planned: PlannedFleet) -> Group:
    table = columns("pool", "GPU", "capacity")
    for name in ("$/GPU-hour", "GPUs used", "of"):
        table.add_column(name, justify="right")
    used = dict(planned.fleet.gpus_by_pool)
    kinds = {pool.name: pool.capacity_type.value for pool in planned.state.pools}
    for pool in planned.pools:
        table.add_row(
            pool.name,
            pool.spec.gpu.type,
            kinds[pool.name],
            money(pool.spec.price_per_gpu_hour),
            str(used.get(pool.name, 0)),
            "unlimited" if (stock := planned.stock(pool)) is None else str(stock),
        )
    return Group(table, Text(), _fleet_cost(planned))


def _fleet_cost(planned: PlannedFleet) -> Text:
    """What all services cost together, and how good that is."""
    fleet = planned.fleet
    bound = f"lower bound {money(fleet.lower_bound_usd_per_hour)} $/h, gap {100 * fleet.gap:.2g} %"
    made = Text.assemble(
        (f"all services {money(fleet.cost_usd_per_hour)} $/h", "bold"),
        f"  {bound if planned.all_served else 'not everything is served'}, solver {fleet.status.value}",
    )
    if fleet.reserved_usd_per_hour > 0:
        made.append(f"\nreserved GPUs in use {money(fleet.reserved_usd_per_hour)} $/h, paid for anyhow")
    if fleet.risk_usd_per_hour > 0:
        made.append(f"\ninterruptions are expected to cost {money(fleet.risk_usd_per_hour)} $/h more")
    if fleet.nearest_feasible_cap_usd_per_hour is not None:
        cap = money(fleet.nearest_feasible_cap_usd_per_hour)
        made.append(f"\nthe lowest cap on the fleet that would do is {cap} $/h", style="bold")
    return made
