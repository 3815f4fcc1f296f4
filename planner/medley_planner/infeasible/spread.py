"""Which rule on how replicas are spread cannot be kept, and the least that it would have to give way.

A rule is a reason of its own only where it cannot be kept with any amount of stock. Where more stock would do, stock is
short: as much as possible is then served within the rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from medley_planner.fleet import Availability, Stock
from medley_planner.infeasible.trouble import Trouble
from medley_planner.programme.cheapest import least_price
from medley_planner.programme.memo import Memo
from medley_planner.programme.milp import Ending, Limits
from medley_planner.programme.problem import FleetProblem, ServiceProblem, stock_limits
from medley_planner.result import Binding, Outcome


@dataclass(frozen=True)
class _Rule:
    """One rule of a service.

    Args:
        constraint: Its name in docs/formulation.md.
        field: Its field of an LLMService.
        outcome: What it is called where it cannot be kept.
        share: What is asked for.
        loosest: The share that asks for nothing.
        with_share: The service's rules with another share in its place.
        words: What it says, without the share.
        remedy: What the nearest share would do.
    """

    constraint: str
    field: str
    outcome: Outcome
    share: float
    loosest: float
    with_share: Callable[[float], Availability]
    words: str
    remedy: str


def _rules(asked: Availability) -> Iterator[_Rule]:
    """The rules that ask for something."""
    if asked.spot_max_share < 1.0:
        yield _Rule(
            "spot_share",
            "spot.maxShare",
            Outcome.SPOT_SHARE_TOO_LOW,
            asked.spot_max_share,
            1.0,
            lambda share: replace(asked, spot_max_share=share),
            "of the replicas may be spot",
            "would do",
        )
    if asked.pool_max_share < 1.0:
        yield _Rule(
            "pool_share",
            "maxSharePerPool",
            Outcome.POOL_SHARE_TOO_LOW,
            asked.pool_max_share,
            1.0,
            lambda share: replace(asked, pool_max_share=share),
            "of the replicas may be in one pool",
            "would do",
        )
    if asked.survivable_share > 0.0:
        yield _Rule(
            "survivable",
            "spot.survivableShare",
            Outcome.SURVIVABLE_SHARE_TOO_HIGH,
            asked.survivable_share,
            0.0,
            lambda share: replace(asked, survivable_share=share),
            "of the demand must be served after the loss of a spot pool",
            "can be had",
        )


def unkept_spread(problem: ServiceProblem, stock: Mapping[str, Stock], limits: Limits, memo: Memo) -> Trouble | None:
    """The rule that keeps a service, which cannot be planned alone, from being planned; None where it is none alone.

    Args:
        problem: The service.
        stock: What it may use.
        limits: Gap and time of a solve.
        memo: Keeps solutions by problem.
    """
    rules = list(_rules(problem.availability))
    if not rules or least_price(FleetProblem((problem,), ()), limits, memo).ending is not Ending.INFEASIBLE:
        return None

    def can_be_planned(availability: Availability) -> bool:
        other = replace(problem, availability=availability)
        return least_price(FleetProblem((other,), stock_limits((other,), stock)), limits, memo).found

    for rule in rules:
        if can_be_planned(rule.with_share(rule.loosest)):
            nearest = _nearest(rule, can_be_planned)
            detail = f"{_asked(rule)}, which no mix keeps: {100 * nearest:g} % {rule.remedy}"
            binding = Binding(rule.constraint, rule.field, detail)
            sentence = detail[0].upper() + detail[1:]
            return Trouble(rule.outcome, sentence, (binding,), nearest_share=nearest)
    return None


def spread_words(problem: ServiceProblem) -> list[str]:
    """The rules as words for a list of all that is asked for."""
    return [_asked(rule) for rule in _rules(problem.availability)]


def _asked(rule: _Rule) -> str:
    return f"at {'most' if rule.loosest else 'least'} {100 * rule.share:g} % {rule.words}"


def _nearest(rule: _Rule, can_be_planned: Callable[[Availability], bool]) -> float:
    """The share nearest to what is asked for that can be kept, in whole per cent: a looser one always can."""
    up = rule.loosest > rule.share
    refused = math.floor(100 * rule.share) if up else math.ceil(100 * rule.share)
    kept = round(100 * rule.loosest)
    while abs(kept - refused) > 1:
        middle = (kept + refused) // 2
        kept, refused = (middle, refused) if can_be_planned(rule.with_share(middle / 100)) else (kept, middle)
    return kept / 100
