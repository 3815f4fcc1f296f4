"""Steps of a transition, one rule at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medley_operator.transition import (
    MAKE_ROOM_AFTER_S,
    SHED_COST,
    Delete,
    Deployed,
    Drain,
    Ensure,
    Lower,
    Open,
    Phase,
    Probe,
    Replica,
    ReplicaState,
    Shed,
    Situation,
    Undrain,
    Watch,
    step,
)

PENDING, LOADING, LOADED = ReplicaState.PENDING, ReplicaState.LOADING, ReplicaState.LOADED
DRAINING, SERVING, LEAVING = ReplicaState.DRAINING, ReplicaState.SERVING, ReplicaState.LEAVING
POOLS = {"old": "l4", "new": "a100", "next": "l4"}
NOW_S = 1000.0


def replica(name: str, deployment: str, state: ReplicaState, **facts: object) -> Replica:
    opened = state is SERVING
    return replace(Replica(name, name, deployment, state, gate_open=opened), **facts)  # type: ignore[arg-type]


def situation(
    target: dict[str, int], asked: dict[str, int], *replicas: Replica, probed: str = "", idle: str = "", floor: int = 0
) -> Situation:
    return Situation(
        target=target,
        pools=POOLS,
        deployments=tuple(Deployed(name, POOLS[name], count) for name, count in asked.items()),
        replicas=replicas,
        probed=frozenset(probed.split()),
        idle=frozenset(idle.split()),
        floor=floor,
        drain_timeout_s=300.0,
        now_s=NOW_S,
    )


def test_nothing_is_done_at_the_target() -> None:
    made = step(situation({"old": 1}, {"old": 1}, replica("p", "old", SERVING)))
    assert (made.actions, made.phase, made.wake_at_s) == ((), Phase.DONE, None)


def test_what_is_missing_is_added_first_and_nothing_removed() -> None:
    made = step(situation({"new": 2}, {"old": 2}, replica("p", "old", SERVING), replica("q", "old", SERVING)))
    assert made.actions == (Ensure("new", 2),)
    assert made.phase is Phase.ADDING
    assert not made.removes


def test_a_loaded_replica_is_probed_and_then_opened() -> None:
    loaded = replica("p", "new", LOADED)
    assert step(situation({"new": 1}, {"new": 1}, loaded)).actions == (Probe(loaded),)
    assert step(situation({"new": 1}, {"new": 1}, loaded, probed="p")).actions == (Open(loaded),)
    opened = replace(loaded, gate_open=True)
    assert step(situation({"new": 1}, {"new": 1}, opened, probed="p")).actions == ()


def test_serving_surplus_waits_until_every_wanted_replica_serves() -> None:
    old, first = replica("p", "old", SERVING), replica("q", "new", SERVING)
    waiting = situation({"new": 2}, {"old": 1, "new": 2}, old, first, replica("r", "new", LOADING))
    assert step(waiting).actions == ()
    serving = situation({"new": 2}, {"old": 1, "new": 2}, old, first, replica("r", "new", SERVING))
    assert step(serving).actions == (Drain(old),)
    assert step(serving).phase is Phase.DRAINING
    assert step(serving).removes


def test_a_draining_replica_is_watched_until_it_is_idle_or_its_time_is_up() -> None:
    new = replica("q", "new", SERVING)
    old = replica("p", "old", DRAINING, draining_since_s=900.0, deletion_cost=1000)
    watched = step(situation({"new": 1}, {"old": 1, "new": 1}, old, new))
    assert watched.actions == (Watch(old),)
    assert watched.wake_at_s == 1200.0
    idle = step(situation({"new": 1}, {"old": 1, "new": 1}, old, new, idle="p"))
    assert idle.actions == (Shed(old), Lower("old", 0))
    late = replace(situation({"new": 1}, {"old": 1, "new": 1}, old, new), now_s=1200.0)
    assert step(late).actions == (Shed(old, timed_out=True), Lower("old", 0))


def test_a_drain_that_was_cut_off_before_the_gate_closed_is_completed_and_not_taken_for_idle() -> None:
    half = replica("p", "old", DRAINING, gate_open=True)
    made = step(situation({"new": 1}, {"old": 1, "new": 1}, half, replica("q", "new", SERVING), idle="p"))
    assert made.actions == (Drain(half),)


def test_an_empty_deployment_that_is_not_wanted_is_deleted() -> None:
    made = step(situation({"new": 1}, {"old": 0, "new": 1}, replica("q", "new", SERVING)))
    assert (made.actions, made.phase) == ((Delete("old"),), Phase.REMOVING)
    leaving = step(situation({}, {"old": 0}, replica("p", "old", LEAVING)))
    assert leaving.actions == (Delete("old"),)


def test_unready_surplus_goes_at_once_least_advanced_and_youngest_first_and_is_never_opened() -> None:
    loaded = replica("a", "old", LOADED, created_s=1.0)
    young, old = replica("b", "old", LOADING, created_s=3.0), replica("c", "old", LOADING, created_s=2.0)
    made = step(situation({"old": 1}, {"old": 3}, loaded, young, old, probed="a"))
    assert made.actions == (Open(loaded), Shed(young), Shed(old), Lower("old", 1))
    none = step(situation({}, {"old": 1}, loaded, probed="a"))
    assert none.actions == (Shed(loaded), Lower("old", 0))


def test_replicas_that_were_not_made_yet_are_given_up_first() -> None:
    made = step(situation({"old": 1}, {"old": 3}, replica("a", "old", LOADING)))
    assert made.actions == (Lower("old", 1),)


def test_pending_replicas_need_no_mark_and_a_mark_is_not_written_twice() -> None:
    pending = replica("a", "old", PENDING)
    marked = replica("b", "old", LOADING, deletion_cost=SHED_COST)
    assert step(situation({}, {"old": 2}, pending, marked)).actions == (Lower("old", 0),)


def test_a_draining_replica_is_given_back_when_an_unready_one_can_go_in_its_stead() -> None:
    draining = replica("a", "old", DRAINING, draining_since_s=990.0)
    made = step(situation({"old": 1}, {"old": 2}, draining, replica("b", "old", LOADING)))
    assert Undrain(draining) in made.actions
    assert Lower("old", 1) in made.actions


def test_a_wanted_replica_is_given_back_when_the_plan_returns() -> None:
    draining = replica("a", "old", DRAINING, draining_since_s=990.0)
    made = step(situation({"old": 2}, {"old": 2}, draining, replica("b", "old", SERVING)))
    assert made.actions == (Undrain(draining),)
    assert made.phase is Phase.ADDING


def test_a_drained_replica_is_not_given_back_once_its_deployment_was_lowered() -> None:
    """The ReplicaSet controller has yet to delete the pod: to open its gate now would send requests to their end."""
    going = replica("p", "old", DRAINING, deletion_cost=SHED_COST)
    serving = replica("q", "new", SERVING)
    assert step(situation({"new": 1}, {"old": 0, "new": 1}, going, serving, idle="p")).actions == ()
    again = step(situation({"new": 1}, {"old": 0, "new": 1}, going, serving))
    assert not any(isinstance(action, Undrain | Open) for action in again.actions)


def test_of_two_drains_the_one_that_was_marked_to_go_goes() -> None:
    marked = replica("p", "old", DRAINING, deletion_cost=SHED_COST, draining_since_s=NOW_S - 5)
    other = replica("q", "old", DRAINING, draining_since_s=NOW_S - 50)
    made = step(situation({"old": 1}, {"old": 1}, marked, other, idle="p"))
    assert made.actions == (Undrain(other),)


def test_the_longest_drain_goes_on_when_only_some_are_wanted_again() -> None:
    first = replica("a", "old", DRAINING, draining_since_s=900.0)
    second = replica("b", "old", DRAINING, draining_since_s=950.0)
    made = step(situation({"old": 1}, {"old": 2}, first, second))
    assert made.actions == (Undrain(second), Watch(first))


def test_replicas_on_nodes_that_are_emptied_go_before_younger_ones() -> None:
    cordoned = replica("a", "old", SERVING, created_s=1.0, leaving_node=True)
    young = replica("b", "old", SERVING, created_s=9.0)
    assert step(situation({"old": 1}, {"old": 2}, cordoned, young)).actions == (Drain(cordoned),)
    plain = replace(cordoned, leaving_node=False)
    assert step(situation({"old": 1}, {"old": 2}, plain, young)).actions == (Drain(young),)


class TestMakingRoom:
    """Two replicas of a new revision find no room in a pool full of the old one."""

    since_s = NOW_S - MAKE_ROOM_AFTER_S
    old = tuple(replica(name, "old", SERVING) for name in ("a", "b"))

    def waiting(self, since_s: float) -> tuple[Replica, ...]:
        return tuple(replica(name, "next", PENDING, no_room_since_s=since_s) for name in ("x", "y"))

    def test_one_makes_room_after_a_while(self) -> None:
        asked = {"old": 2, "next": 2}
        soon = step(situation({"next": 2}, asked, *self.old, *self.waiting(self.since_s + 1), floor=2))
        assert soon.actions == ()
        assert soon.wake_at_s == NOW_S + 1
        late = step(situation({"next": 2}, asked, *self.old, *self.waiting(self.since_s), floor=2))
        assert late.actions == (Drain(self.old[0]),)

    @pytest.mark.parametrize("state", [DRAINING, LEAVING])
    def test_no_second_one_before_the_first_is_gone(self, state: ReplicaState) -> None:
        first = replica("a", "old", state, draining_since_s=NOW_S)
        asked = {"old": 2 if state is DRAINING else 1, "next": 2}
        made = step(situation({"next": 2}, asked, first, self.old[1], *self.waiting(self.since_s), floor=2))
        assert not any(isinstance(action, Drain) for action in made.actions)

    def test_no_second_one_before_a_new_one_serves(self) -> None:
        new = replica("x", "next", LOADING)
        stuck = self.waiting(self.since_s)[1]
        made = step(situation({"next": 2}, {"old": 1, "next": 2}, self.old[1], new, stuck, floor=2))
        assert made.actions == ()

    def test_only_replicas_of_the_same_pool_make_room(self) -> None:
        new = tuple(replica(name, "new", PENDING, no_room_since_s=self.since_s) for name in ("x", "y"))
        assert step(situation({"new": 2}, {"old": 2, "new": 2}, *self.old, *new, floor=2)).actions == ()


def test_the_order_of_what_is_observed_does_not_matter() -> None:
    replicas = [
        replica("a", "old", SERVING, created_s=1.0),
        replica("b", "old", DRAINING, draining_since_s=900.0),
        replica("c", "new", SERVING),
        replica("d", "old", LOADING),
    ]
    forth = step(situation({"new": 1}, {"old": 3, "new": 1}, *replicas))
    back = step(situation({"new": 1}, {"new": 1, "old": 3}, *reversed(replicas)))
    assert forth == back
