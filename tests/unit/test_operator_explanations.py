"""Explanations come a few at a time, and end up the same as if they had come at once."""

from __future__ import annotations

from dataclasses import replace

import planner_fleets as fleets
from medley_operator.explanations import Explanations
from medley_planner.fleet import FleetState, PlanOptions
from medley_planner.policy import FleetDecision, plan_and_decide
from medley_planner.programme.memo import Memo

BARE = PlanOptions(explain=False)


def decided(state: FleetState, memo: Memo, options: PlanOptions = BARE) -> FleetDecision:
    return plan_and_decide(state, {}, now_s=0.0, options=options, memo=memo)


def state_of(services: int) -> FleetState:
    made = [fleets.service(f"s{n}", 0.1 + 0.1 * n, max_context_tokens=8192) for n in range(services)]
    return fleets.fleet(made, [fleets.pool("near", 1.0), fleets.pool("far", 1.5)])


def explained_names(decision: FleetDecision) -> set[str]:
    return {each.service for each in decision.decisions if each.plan.alternatives}


def test_a_large_fleet_is_explained_in_turns_and_in_the_end_as_at_once() -> None:
    memo, state = Memo(), state_of(5)
    bare = decided(state, memo)
    explanations = Explanations(memo, per_round=2)
    counts, rounds, more = [], 0, True
    while more:
        decision, more = explanations.explain(state, bare)
        counts.append(len(explained_names(decision)))
        rounds += 1
    assert counts == [2, 4, 5]
    assert decision == decided(state, memo, PlanOptions())
    assert explanations.explain(state, bare) == (decision, False)


def test_what_is_decided_does_not_wait_for_explanations() -> None:
    memo, state = Memo(), state_of(5)
    bare = decided(state, memo)
    decision, more = Explanations(memo, per_round=2).explain(state, bare)
    assert more
    assert [each.target for each in decision.decisions] == [each.target for each in bare.decisions]


def test_an_unchanged_plan_keeps_its_explanation_until_it_is_made_anew() -> None:
    memo, state = Memo(), state_of(3)
    near, far = sorted(state.pools, key=lambda pool: pool.price_usd_per_gpu_hour)
    dearer = replace(state, pools=(near, replace(far, price_usd_per_gpu_hour=1.75)))
    slow = Explanations(memo, per_round=1)
    more = True
    while more:
        _, more = slow.explain(state, decided(state, memo))
    after, more = slow.explain(dearer, decided(dearer, memo))
    assert more
    assert explained_names(after) == {"s0", "s1", "s2"}
    while more:
        after, more = slow.explain(dearer, decided(dearer, memo))
    assert after == decided(dearer, memo, PlanOptions())
