"""The page: what is shown of a plan, in the order in which it is read, and its HTML.

Every string comes into the HTML through Jinja's escaping; the SVG of plots is the one thing that is taken as it is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from medley_operator.api.llmservice import LLMService
from medley_operator.api.llmservice_status import LLMServiceStatus
from medley_operator.cli.columns import money
from medley_operator.cli.planning import PlannedFleet, PlannedService
from medley_operator.cli.report.rows import Fact, Page, PoolRow, ServedRow, ServiceSection, TurnRow
from medley_operator.cli.sensitivity import turn_words
from medley_operator.version import VERSION
from medley_planner.explaining.sensitivity import Sensitivity

if TYPE_CHECKING:
    from jinja2 import Environment

    from medley_operator.cli.report.drawing import Plot
    from medley_operator.cli.report.plots import PoolUse

EXTRA_MODULES = ("jinja2", "matplotlib")
MAX_DRAWN_SERVICES = 24
"""Plots are drawn for so many services, the costliest first: a page must stay one that a browser opens."""


class ReportError(Exception):
    """The report cannot be made or written; the message is for people."""


def require_report(path: Path) -> None:
    """See that a report can be drawn and written, before much is worked out for it.

    Args:
        path: The file that it is to be written to.

    Raises:
        ReportError: What draws it is not installed, or there can be no such file.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise ReportError(f"{path}: cannot be written: {'is a folder' if path.is_dir() else 'there is no such folder'}")
    missing = [name for name in EXTRA_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise ReportError(f"a report needs {' and '.join(missing)}: install them with pip install 'medley[report]'")


def plan_page(planned: PlannedFleet) -> Page:
    """The page of a plan made from files."""
    from medley_operator.cli.report.plots import stock_plot  # noqa: PLC0415 - the extra may not be installed

    fleet = planned.fleet
    holds = planned.sensitivity or Sensitivity()
    serving = sum(each.feasible for each in planned.services)
    facts = (
        Fact("per hour", f"{money(fleet.cost_usd_per_hour)} $"),
        *_bound(planned),
        Fact("services planned", f"{serving} of {len(planned.services)}"),
        Fact("GPUs", f"{sum(gpus for _, gpus in fleet.gpus_by_pool):,}"),
        Fact("solver", fleet.status.value),
        *_beside_the_bill(fleet.reserved_usd_per_hour, fleet.risk_usd_per_hour),
    )
    drawn = sorted(planned.services, key=lambda each: (-each.plan.cost_per_hour, each.service.key))[:MAX_DRAWN_SERVICES]
    names = {each.service.key for each in drawn}
    unanswered = len(holds.unanswered)
    return Page(
        title="Medley plan",
        good=planned.feasible,
        facts=facts,
        services=tuple(
            _section(place, each, planned, holds, with_plots=each.service.key in names)
            for place, each in enumerate(planned.services)
        ),
        pools=_pool_rows(planned),
        plots=(stock_plot("stock", pool_uses(planned)),) if planned.pools else (),
        turns=tuple(TurnRow(*turn_words(turn, alone=len(planned.services) == 1)) for turn in holds.prices),
        served=_served_rows(planned),
        worth=tuple(each.detail for each in fleet.shadow_prices),
        notes=(*planned.notes, *_missing(unanswered, len(planned.services) - len(names))),
    )


def service_page(service: LLMService) -> Page:
    """The page of a service that runs, from its status: the plan that is acted on, else the one that is not.

    Raises:
        ReportError: It has no plan yet.
    """
    from medley_operator.cli.report.plots import alternatives_plot  # noqa: PLC0415

    status = service.status or LLMServiceStatus()
    plan = status.plan or status.recommended
    if plan is None:
        raise ReportError(f"{service.key} has no plan yet, so there is nothing to report")
    plot = alternatives_plot("s0-alternatives", service.key, plan)
    section = ServiceSection("s0", service, plan, (plot,) if plot else ())
    facts = (
        Fact("per hour", f"{money(plan.cost_per_hour)} $"),
        Fact("lower bound per hour", f"{money(plan.lower_bound)} $"),
        Fact("gap", f"{plan.gap_percent:g} %"),
        Fact("served", f"{plan.served_percent:g} %"),
        *_beside_the_bill(plan.reserved_per_hour or 0.0, plan.interruption_cost_per_hour or 0.0),
        *(Fact(each.type, f"{each.status}: {each.reason}") for each in status.conditions),
    )
    notes = () if status.plan is not None else ("this plan is a recommendation: it is not acted on",)
    return Page(f"Medley: {service.key}", section.good, facts, (section,), notes=notes)


def _bound(planned: PlannedFleet) -> Iterator[Fact]:
    """How good the price is; nothing where not everything is served for it."""
    if planned.all_served:
        yield Fact("lower bound per hour", f"{money(planned.fleet.lower_bound_usd_per_hour)} $")
        yield Fact("gap", f"{100 * planned.fleet.gap:.2g} %")


def _beside_the_bill(reserved: float, interruptions: float) -> Iterator[Fact]:
    """What is paid anyhow, and what only decides."""
    if reserved > 0:
        yield Fact("reserved GPUs in use, paid anyhow", f"{money(reserved)} $")
    if interruptions > 0:
        yield Fact("interruptions, expected", f"{money(interruptions)} $")


def _missing(unanswered: int, not_drawn: int) -> Iterator[str]:
    if unanswered:
        yield f"{unanswered} questions about how far the plan holds were not asked: the time for them was over"
    if not_drawn:
        yield f"plots are drawn for the {MAX_DRAWN_SERVICES} costliest services, not for the other {not_drawn}"


def _section(
    place: int, planned: PlannedService, fleet: PlannedFleet, holds: Sensitivity, *, with_plots: bool
) -> ServiceSection:
    service = planned.service
    return ServiceSection(
        anchor=f"s{place}",
        service=service,
        plan=planned.plan,
        plots=tuple(_plots(f"s{place}", planned, fleet, holds)) if with_plots else (),
        turns=tuple(TurnRow(*turn_words(turn, alone=True)) for turn in holds.rates if turn.subject == service.key),
    )


def _plots(anchor: str, planned: PlannedService, fleet: PlannedFleet, holds: Sensitivity) -> Iterator[Plot]:
    from medley_operator.cli.report.plots import alternatives_plot, curve_plot, map_plot  # noqa: PLC0415

    key = planned.service.key
    places = {pool.name: place for place, pool in enumerate(fleet.pools)}
    comparison = alternatives_plot(f"{anchor}-alternatives", key, planned.plan)
    if comparison is not None:
        yield comparison
    for curve in holds.curves:
        if curve.service == key and any(point.cost_usd_per_hour is not None for point in curve.points):
            yield curve_plot(f"{anchor}-{curve.axis.value.replace('_', '-')}", curve, places)
    sizes = next(service.sizes for service in fleet.state.services if service.name == key)
    for found in holds.maps:
        if found.service == key:
            yield map_plot(f"{anchor}-map", found, sizes, places)


def pool_uses(planned: PlannedFleet) -> tuple[PoolUse, ...]:
    """Every pool's GPUs by the services that use them."""
    from medley_operator.cli.report.plots import PoolUse  # noqa: PLC0415

    used: dict[str, dict[str, int]] = {pool.name: {} for pool in planned.pools}
    for each in planned.services:
        for entry in each.plan.entries:
            mine = used.setdefault(entry.pool, {})
            mine[each.service.key] = mine.get(each.service.key, 0) + entry.gpus
    return tuple(PoolUse(pool.name, pool.spec.gpu.type, planned.stock(pool), used[pool.name]) for pool in planned.pools)


def _served_rows(planned: PlannedFleet) -> tuple[ServedRow, ...]:
    """None where everybody is served."""
    if planned.all_served:
        return ()
    anchors = {each.service.key: f"s{place}" for place, each in enumerate(planned.services)}
    return tuple(
        ServedRow(
            anchors[each.service.key],
            each.service.key,
            str(planned.priority(each)),
            f"{each.service.spec.workload.rate:g}",
            f"{each.plan.served_percent:g} %",
            money(each.plan.cost_per_hour),
            each.plan.mix,
        )
        for each in planned.by_priority()
    )


def _pool_rows(planned: PlannedFleet) -> tuple[PoolRow, ...]:
    used: Mapping[str, int] = dict(planned.fleet.gpus_by_pool)
    kinds = {pool.name: pool.capacity_type.value for pool in planned.state.pools}
    return tuple(
        PoolRow(
            pool.name,
            pool.spec.gpu.type,
            kinds[pool.name],
            money(pool.spec.price_per_gpu_hour),
            f"{used.get(pool.name, 0):,}",
            "no limit" if (stock := planned.stock(pool)) is None else f"{stock:,}",
        )
        for pool in planned.pools
    )


def page_environment() -> Environment:
    """What renders pages."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415
    from markupsafe import Markup  # noqa: PLC0415

    environment = Environment(
        loader=PackageLoader("medley_operator.cli.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["money"] = money
    environment.filters["svg"] = Markup
    return environment


def page_html(page: Page) -> str:
    """The page's HTML."""
    return str(page_environment().get_template("page.html.j2").render(page=page, version=VERSION))


def write_page(path: Path, page: Page) -> None:
    """Write the page to a file.

    Raises:
        ReportError: The file cannot be written.
    """
    try:
        path.write_text(page_html(page), encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{path}: cannot be written: {error.strerror or error}") from None
