"""Explanations of plans, made a few at a time, so that a large fleet is acted on before all of it is explained.

A plan of a hundred new services takes seconds, what else each of them could have run on takes longer than that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from medley_planner.fleet import FleetState
from medley_planner.plan import explain_plan
from medley_planner.policy import FleetDecision
from medley_planner.programme.memo import Memo
from medley_planner.result import ServicePlan

PER_ROUND = 10
"""So many services are explained in one round: a small fleet at once."""


@dataclass(frozen=True)
class _Explained:
    """A service's plan as it was made, and with its explanation, in the fleet that it was explained in."""

    bare: ServicePlan
    full: ServicePlan
    state: FleetState


class Explanations:
    """Adds explanations to decisions that were made without. Not safe for use from two threads at a time."""

    def __init__(self, memo: Memo, *, per_round: int = PER_ROUND) -> None:
        self._memo = memo
        self._per_round = per_round
        self._known: dict[str, _Explained] = {}

    def explain(self, state: FleetState, decision: FleetDecision) -> tuple[FleetDecision, bool]:
        """The decision with what explanations there are, and whether another round would add some.

        A plan that did not change keeps its explanation until that was made anew for the present fleet; one that did
        change has none before its turn comes.
        """
        bare = {plan.name: plan for plan in decision.plan.services}
        self._known = {name: known for name, known in self._known.items() if bare.get(name) == known.bare}
        stale = sorted(name for name in bare if name not in self._known or self._known[name].state != state)
        stale.sort(key=lambda name: name in self._known)
        turn = frozenset(stale[: self._per_round])
        if turn:
            explained = explain_plan(state, decision.plan, only=turn, memo=self._memo)
            for name in turn:
                self._known[name] = _Explained(bare[name], explained.service(name), state)
        plans = tuple(
            self._known[plan.name].full if plan.name in self._known else plan for plan in decision.plan.services
        )
        full = replace(decision.plan, services=plans)
        decisions = tuple(replace(each, plan=full.service(each.service)) for each in decision.decisions)
        return FleetDecision(full, decisions), len(stale) > len(turn)
