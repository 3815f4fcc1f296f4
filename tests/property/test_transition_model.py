"""Transitions against a tiny model of Deployments, ReplicaSets, a scheduler and engines, with crashes of everything
at any moment.

The operator of the model is the real `step`; only the carrying out of actions is modelled. Nothing is remembered
between its steps but what the model's API objects hold, and what it learned from pods, which a crash makes it forget.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from medley_operator.transition import (
    DRAIN_COST,
    MAKE_ROOM_AFTER_S,
    SHED_COST,
    Action,
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

DRAIN_TIMEOUT_S = 100.0
DEPLOYMENTS = {"a1": "a", "a2": "a", "b1": "b"}
"""Name and pool: a1 and a2 are two revisions of one variant."""

targets = st.dictionaries(st.sampled_from(sorted(DEPLOYMENTS)), st.integers(1, 3), min_size=1)


@dataclass
class Pod:
    name: str
    deployment: str
    created_s: float
    placed: bool = False
    loaded: bool = False
    gate_open: bool = False
    draining: bool = False
    gate_changed_s: float = 0.0
    cost: int = 0
    in_flight: int = 0
    no_room_since_s: float | None = None

    @property
    def ready(self) -> bool:
        return self.loaded and self.gate_open

    @property
    def rank(self) -> tuple[bool, bool, bool, int, float]:
        """The order in which the ReplicaSet controller deletes pods (kubernetes, pkg/controller,
        ActivePodsWithRanks).
        """
        return self.placed, self.loaded, self.ready, self.cost, -self.created_s

    def replica(self) -> Replica:
        if self.draining:
            state = ReplicaState.DRAINING
        elif not self.placed:
            state = ReplicaState.PENDING
        elif not self.loaded:
            state = ReplicaState.LOADING
        else:
            state = ReplicaState.SERVING if self.gate_open else ReplicaState.LOADED
        return Replica(
            name=self.name,
            uid=self.name,
            deployment=self.deployment,
            state=state,
            created_s=self.created_s,
            gate_open=self.gate_open,
            draining_since_s=self.gate_changed_s if self.draining else 0.0,
            deletion_cost=self.cost,
            no_room_since_s=self.no_room_since_s,
        )


@dataclass
class World:
    """The cluster's side: what is asked for, and the pods that are there."""

    room: dict[str, int]
    now_s: float = 1000.0
    asked: dict[str, int] = field(default_factory=dict)
    pods: list[Pod] = field(default_factory=list)
    made: int = 0
    dropped: list[str] = field(default_factory=list)

    @property
    def serving(self) -> int:
        return sum(pod.ready for pod in self.pods)

    def controllers(self) -> None:
        """ReplicaSets make and delete pods."""
        for name in sorted(self.asked):
            mine = [pod for pod in self.pods if pod.deployment == name]
            for _ in range(self.asked[name] - len(mine)):
                self.made += 1
                self.pods.append(Pod(f"{name}-{self.made}", name, self.now_s))
            for pod in sorted(mine, key=lambda pod: pod.rank)[: max(0, len(mine) - self.asked[name])]:
                timed_out = pod.draining and self.now_s >= pod.gate_changed_s + DRAIN_TIMEOUT_S
                if pod.in_flight and not timed_out:
                    self.dropped.append(pod.name)
                self.pods.remove(pod)
        self.pods = [pod for pod in self.pods if pod.deployment in self.asked]

    def schedule(self) -> None:
        for pod in self.pods:
            pool = DEPLOYMENTS[pod.deployment]
            used = sum(other.placed and DEPLOYMENTS[other.deployment] == pool for other in self.pods)
            if not pod.placed and used < self.room[pool]:
                pod.placed, pod.no_room_since_s = True, None
            elif not pod.placed and pod.no_room_since_s is None:
                pod.no_room_since_s = self.now_s


class Machine(RuleBasedStateMachine):
    """The operator and the world take turns, in any order."""

    room = 100

    def __init__(self) -> None:
        super().__init__()
        self.world = World({"a": self.room, "b": self.room})
        self.target: dict[str, int] = {}
        self.before: dict[str, int] = {}
        self.probed: set[str] = set()
        self.idle: set[str] = set()

    @initialize(mix=targets)
    def begin(self, mix: dict[str, int]) -> None:
        self.retarget(mix)

    @rule(mix=targets)
    def retarget(self, mix: dict[str, int]) -> None:
        fits = {name: mix[name] for name in sorted(mix) if name != "a2" or mix.get("a1", 0) + mix["a2"] <= self.room}
        self.before, self.target = dict(self.world.asked), fits

    @property
    def floor(self) -> int:
        return min(sum(self.before.values()), sum(self.target.values()))

    def situation(self) -> Situation:
        return Situation(
            target=self.target,
            pools=DEPLOYMENTS,
            deployments=tuple(Deployed(name, DEPLOYMENTS[name], count) for name, count in self.world.asked.items()),
            replicas=tuple(pod.replica() for pod in self.world.pods),
            probed=frozenset(self.probed),
            idle=frozenset(self.idle),
            floor=self.floor,
            drain_timeout_s=DRAIN_TIMEOUT_S,
            now_s=self.world.now_s,
        )

    @rule(carried_out=st.integers(0, 12))
    def operator_acts_and_maybe_dies(self, carried_out: int) -> None:
        """A step of which some actions are carried out;
        if not all, the operator died and forgot what it had learned.
        """
        actions = step(self.situation()).actions
        serving = self.world.serving
        for action in actions[:carried_out]:
            self.carry_out(action)
            self.world.controllers()
            assert self.world.serving >= min(serving, self.floor - self.slack), f"{action} took away what has to serve"
        if carried_out < len(actions):
            self.carry_out_half(actions[carried_out])
            self.probed.clear()
            self.idle.clear()

    slack = 0

    @rule(rounds=st.integers(1, 6), count=st.integers(0, 2))
    def everything_works_for_a_while(self, rounds: int, count: int) -> None:
        """Without such rules, chance would hardly ever bring a replica to serve and be drained."""
        for _ in range(rounds):
            self.world.controllers()
            self.world.schedule()
            for pod in self.world.pods:
                pod.loaded = pod.placed
            self.operator_acts_and_maybe_dies(carried_out=100)
            self.requests_come_and_end(count)

    def carry_out_half(self, action: Action) -> None:
        """Draining and undraining take two calls; the operator may die between them."""
        for pod in self.world.pods:
            match action:
                case Drain(replica) if replica.name == pod.name:
                    pod.draining, pod.cost = True, DRAIN_COST
                case Undrain(replica) if replica.name == pod.name:
                    pod.gate_open = True

    def carry_out(self, action: Action) -> None:
        pods = {pod.name: pod for pod in self.world.pods}
        match action:
            case Ensure(name, replicas) | Lower(name, replicas):
                self.world.asked[name] = replicas
            case Delete(name):
                assert not any(pod.deployment == name for pod in self.world.pods)
                del self.world.asked[name]
            case Probe(replica):
                self.probed.add(replica.uid)
            case Watch(replica):
                if replica.name in pods and not pods[replica.name].in_flight:
                    self.idle.add(replica.uid)
            case Open(replica) if replica.name in pods:
                pods[replica.name].gate_open = True
            case Drain(replica) if replica.name in pods:
                pod = pods[replica.name]
                pod.draining, pod.gate_open, pod.gate_changed_s, pod.cost = True, False, self.world.now_s, DRAIN_COST
            case Undrain(replica) if replica.name in pods:
                pod = pods[replica.name]
                pod.draining, pod.gate_open, pod.cost = False, True, 0
                self.idle.discard(replica.uid)
            case Shed(replica) if replica.name in pods:
                pods[replica.name].cost = SHED_COST

    @rule()
    def controllers_act(self) -> None:
        self.world.controllers()

    @rule()
    def scheduler_acts(self) -> None:
        self.world.schedule()

    @precondition(lambda self: any(pod.placed and not pod.loaded for pod in self.world.pods))
    @rule(data=st.data())
    def pod_loads(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([pod for pod in self.world.pods if pod.placed and not pod.loaded])).loaded = True

    @precondition(lambda self: any(pod.loaded for pod in self.world.pods))
    @rule(data=st.data())
    def container_crashes(self, data: st.DataObject) -> None:
        pod = data.draw(st.sampled_from([pod for pod in self.world.pods if pod.loaded]))
        pod.loaded, pod.in_flight = False, 0

    @precondition(lambda self: self.world.pods)
    @rule(data=st.data())
    def pod_vanishes(self, data: st.DataObject) -> None:
        self.world.pods.remove(data.draw(st.sampled_from(self.world.pods)))

    @rule(seconds=st.sampled_from([1.0, MAKE_ROOM_AFTER_S, DRAIN_TIMEOUT_S]))
    def time_passes(self, seconds: float) -> None:
        self.world.now_s += seconds

    @rule(count=st.integers(0, 3))
    def requests_come_and_end(self, count: int) -> None:
        """Only pods that are endpoints get requests; the others can only finish theirs."""
        for pod in self.world.pods:
            pod.in_flight = count if pod.ready else min(pod.in_flight, count)

    @invariant()
    def no_request_is_dropped(self) -> None:
        assert not self.world.dropped, "a pod with requests in flight was removed before its drain timeout"

    @invariant()
    def actions_make_sense(self) -> None:
        made = step(self.situation())
        assert step(self.situation()) == made, "the same situation gave another step"
        for action in made.actions:
            if isinstance(action, Ensure):
                assert action.replicas > self.world.asked.get(action.deployment, 0)
            if isinstance(action, Lower):
                assert self.target.get(action.deployment, 0) <= action.replicas < self.world.asked[action.deployment]

    def teardown(self) -> None:
        """Once nothing more happens from outside, replicas get to the target, and then nothing is done any more."""
        for _ in range(60):
            self.world.controllers()
            self.world.schedule()
            self.world.now_s += MAKE_ROOM_AFTER_S
            for pod in self.world.pods:
                pod.loaded, pod.in_flight = pod.placed, 0
            for action in step(self.situation()).actions:
                self.carry_out(action)
                self.world.controllers()
        assert self.world.asked == self.target
        assert {pod.deployment: pod.ready for pod in self.world.pods} == dict.fromkeys(self.target, True)
        final = step(self.situation())
        assert (final.phase, final.actions) == (Phase.DONE, ())


class FullMachine(Machine):
    """Pools so small that new replicas find room only where old ones make it:
    then one less than the floor may serve.
    """

    room = 3
    slack = 1


class TestEnoughRoom(Machine.TestCase):
    settings = settings(max_examples=120, stateful_step_count=30, deadline=None)


class TestNoRoom(FullMachine.TestCase):
    settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
