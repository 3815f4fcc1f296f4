"""From a verdict to where replicas go, and to the status."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from medley_operator.api.llmservice import LLMService
from medley_operator.api.llmservice_status import LLMServiceStatus, PlanStatus
from medley_operator.api.problems import Problem
from medley_operator.observe.views import DeploymentView, ServiceView
from medley_operator.report.service_status import Facts, service_status
from medley_operator.transition import Phase, Replica, ReplicaState
from medley_operator.verdict import Aim, Verdict, aim, running_mix
from medley_planner.fleet import Parallelism, Variant
from medley_planner.policy import Choice

NOW_S = 1_767_225_600.0  # 2026-01-01T00:00:00Z


def view(status: dict[str, Any] | None = None, *, mode: str = "Auto") -> ServiceView:
    spec = {
        "model": {"name": "m"},
        "objectives": {"timePerOutputToken": {"milliseconds": 60}},
        "workload": {"rate": 1, "sizes": {"preset": "azure-conversation-2023"}},
        "mode": mode,
    }
    llm = LLMService.model_validate({"metadata": {"name": "chat", "namespace": "default"}, "spec": spec})
    made = LLMServiceStatus.model_validate(status or {})
    return ServiceView("default", "chat", "uid", 1, 3, False, llm, "", made)


def plan(mix: str = "2×l4", *, replicas: int = 2, outcome: str = "Planned") -> PlanStatus:
    entry = {"pool": "l4", "gpu": "L4", "tensorParallel": 1, "replicas": replicas, "gpus": replicas}
    return PlanStatus.model_validate(
        {
            "mix": mix,
            "entries": [{**entry, "costPerHour": 1.6, "utilisation": 0.5}],
            "costPerHour": 1.6,
            "lowerBound": 1.6,
            "gapPercent": 0,
            "outcome": outcome,
            "reason": "because",
        }
    )


def verdict(choice: Choice = Choice.CHANGE, **facts: Any) -> Verdict:
    base = Verdict(
        generation=3,
        choice=choice,
        reason="SpecChanged",
        message="more load",
        feasible=True,
        outcome="Planned",
        plan=plan(),
        target={"chat-l4": 2},
        variants={"chat-l4": Variant("l4", 1)},
    )
    return replace(base, **facts)


def deployed(name: str, replicas: int) -> DeploymentView:
    return DeploymentView("default", name, name, 1, "uid", "l4", Parallelism(1), replicas, 1, False, "chat")


TRANSITION = {
    "id": "t1",
    "phase": "Adding",
    "reason": "CheaperMix",
    "startedAt": "2026-01-01T00:00:00Z",
    "to": {"chat-l4": 2},
}


class TestAim:
    def test_a_change_begins_a_transition_from_what_runs(self) -> None:
        made = aim(view(), verdict(), [deployed("old", 3)], now_s=NOW_S)
        assert made.transition is not None
        assert (made.transition.from_, made.transition.to) == ({"old": 3}, {"chat-l4": 2})
        assert (made.transition.reason, made.transition.started_at) == ("SpecChanged", "2026-01-01T00:00:00Z")
        assert made.begins(LLMServiceStatus())

    def test_nothing_begins_where_what_runs_is_what_is_wanted(self) -> None:
        made = aim(view(), verdict(Choice.KEEP), [deployed("chat-l4", 2)], now_s=NOW_S)
        assert made == Aim({"chat-l4": 2}, acts=True, transition=None)

    def test_what_was_begun_goes_on_with_the_same_id(self) -> None:
        under_way = view({"transition": TRANSITION})
        for given in (verdict(Choice.KEEP), None, verdict(Choice.HOLD, target={})):
            made = aim(under_way, given, [deployed("old", 1)], now_s=NOW_S)
            assert made.target == {"chat-l4": 2}
            assert made.transition == under_way.status.transition
            assert not made.begins(under_way.status)

    def test_a_new_target_supersedes_what_was_begun(self) -> None:
        under_way = view({"transition": TRANSITION})
        made = aim(under_way, verdict(target={"chat-l4": 5}), [deployed("chat-l4", 2)], now_s=NOW_S)
        assert made.superseded == under_way.status.transition
        assert made.begins(under_way.status)

    def test_problems_and_infeasible_plans_keep_what_runs(self) -> None:
        broken = verdict(None, problems=(Problem("UnknownPool", "spec.gpus.pools[0]", "there is none"),), target={})
        for given in (broken, verdict(Choice.HOLD, target={}), None):
            made = aim(view(), given, [deployed("old", 3)], now_s=NOW_S)
            assert (made.target, made.transition) == ({"old": 3}, None)

    def test_replicas_that_somebody_scaled_are_brought_back(self) -> None:
        made = aim(view(), verdict(Choice.KEEP), [deployed("chat-l4", 7)], now_s=NOW_S)
        assert made.transition is not None
        assert made.transition.reason == "ReplicasDiffer"

    def test_only_auto_acts(self) -> None:
        for mode in ("Recommend", "Paused"):
            made = aim(view({"transition": TRANSITION}, mode=mode), verdict(), [deployed("old", 3)], now_s=NOW_S)
            assert (made.acts, made.target) == (False, {"old": 3})


def test_the_running_mix_is_what_was_asked_for_last() -> None:
    planned = view({"plan": plan().model_dump(by_alias=True)})
    assert running_mix(planned, [deployed("x", 9)]) == {Variant("l4", 1): 2}
    assert running_mix(view(), [deployed("x", 9), deployed("y", 1)]) == {Variant("l4", 1): 10}


def facts(before: ServiceView, given: Verdict | None, *, serving: int = 2, phase: Phase = Phase.DONE) -> Facts:
    replicas = [Replica(str(n), str(n), "chat-l4", ReplicaState.SERVING, gate_open=True) for n in range(serving)]
    heading = aim(before, given, [deployed("chat-l4", 2)], now_s=NOW_S)
    return Facts(before, given, heading, phase, replicas, (), "http://chat", "", NOW_S)


def reasons(status: LLMServiceStatus) -> dict[str, tuple[str, str]]:
    return {condition.type: (condition.status, condition.reason) for condition in status.conditions}


class TestStatus:
    def test_all_serves(self) -> None:
        status = service_status(facts(view(), verdict(Choice.KEEP)))
        assert reasons(status) == {
            "Ready": ("True", "AllReplicasServing"),
            "Planned": ("True", "Planned"),
            "CapacityAvailable": ("True", "Available"),
            "Progressing": ("False", "Settled"),
        }
        assert status.replicas is not None
        assert status.replicas.summary == "2/2"
        assert (status.observed_generation, status.planned_generation) == (3, 3)

    def test_the_same_facts_give_the_same_status_later(self) -> None:
        first = service_status(facts(view(), verdict(Choice.KEEP)))
        later = replace(facts(replace(view(), status=first), verdict(Choice.KEEP)), now_s=NOW_S + 100)
        assert service_status(later) == first

    def test_a_condition_keeps_its_time_until_its_status_changes(self) -> None:
        first = service_status(facts(view(), verdict(Choice.KEEP)))
        fewer = replace(facts(replace(view(), status=first), verdict(Choice.KEEP), serving=1), now_s=NOW_S + 100)
        times = {item.type: item.last_transition_time for item in service_status(fewer).conditions}
        assert times["Ready"] == "2026-01-01T00:01:40Z"
        assert times["Planned"] == "2026-01-01T00:00:00Z"

    def test_an_infeasible_service_keeps_its_former_generation_and_says_why(self) -> None:
        before = view({"plan": plan().model_dump(by_alias=True), "plannedGeneration": 2})
        held = verdict(Choice.HOLD, feasible=False, outcome="CostCapTooLow", plan=plan(outcome="CostCapTooLow"))
        status = service_status(facts(before, held))
        assert reasons(status)["Planned"] == ("False", "CostCapTooLow")
        assert (status.observed_generation, status.planned_generation) == (3, 2)

    def test_a_service_that_never_had_a_plan_is_shown_the_infeasible_one_as_a_recommendation(self) -> None:
        held = verdict(Choice.HOLD, feasible=False, outcome="StockShort", target={})
        status = service_status(facts(view(), held))
        assert status.plan is None
        assert status.recommended == plan()
        assert reasons(status)["CapacityAvailable"] == ("False", "StockShort")

    def test_every_problem_is_named_with_its_field(self) -> None:
        problems = (
            Problem("UnknownPool", "spec.gpus.pools[0]", "there is no a"),
            Problem("InvalidTrace", "spec.x", "bad"),
        )
        status = service_status(facts(view(), verdict(None, problems=problems, target={})))
        assert reasons(status)["Planned"] == ("False", "UnknownPool")
        message = next(item.message for item in status.conditions if item.type == "Planned")
        assert "spec.gpus.pools[0]" in message
        assert "spec.x" in message

    def test_a_transition_ends_in_last_transition(self) -> None:
        status = service_status(facts(view({"transition": TRANSITION}), verdict(Choice.KEEP)))
        assert status.transition is None
        assert status.last_transition is not None
        assert (status.last_transition.id, status.last_transition.outcome) == ("t1", "Completed")

    def test_a_phase_is_written_with_the_time_at_which_it_began(self) -> None:
        status = service_status(facts(view({"transition": TRANSITION}), verdict(Choice.KEEP), phase=Phase.DRAINING))
        assert status.transition is not None
        assert (status.transition.phase, status.transition.phase_started_at) == ("Draining", "2026-01-01T00:00:00Z")

    def test_before_the_first_round_what_was_said_stays(self) -> None:
        first = service_status(facts(view(), verdict(Choice.KEEP)))
        again = service_status(facts(replace(view(), status=first), None))
        assert again == first
