"""How a service gets from the replicas that it has to those it should have, without serving less in between.

Pure: what is observed goes in, the next actions come out. Nothing is remembered between steps but what API objects
hold, so a step after a restart is a step like any other, and a step that was carried out half is completed by the
next one.

The life of a replica, as far as steps move it (the pod's gate is the readiness gate `medley.dev/serving`):

    ┌─────────┐ placed ┌─────────┐ loaded ┌────────┐ answered a real request: Open ┌─────────┐
    │ PENDING │───────▶│ LOADING │───────▶│ LOADED │──────────────────────────────▶│ SERVING │
    └────┬────┘        └────┬────┘        └───┬────┘                               └────┬────┘
         │ surplus: Shed, Lower (at once)     │                         surplus: Drain  │ ▲ wanted after all: Undrain
         └──────────────────┴─────────────────┤                                         ▼ │
                                              ▼      nothing in flight: Shed, Lower  ┌──────────┐
                                           LEAVING ◀─────────────────────────────────│ DRAINING │
                                                                                     └──────────┘
Rules, in the order in which they hold:

1. Add before remove. A Deployment of the target that is too small grows at once.
2. A surplus is met by replicas that do not serve first: they may go at once, least advanced first. They are never
opened.
3. Replicas that serve are drained only while *every* replica of the target serves.
   One exception, rule 3a: where new replicas have found no room for `MAKE_ROOM_AFTER_S` in a pool in which surplus
   replicas of the same service serve, these make room one at a time, down to one less than `Situation.floor`:
   otherwise a full pool could never take up a new image.
4. A Deployment is lowered only by replicas that do not serve, and only by as many as there are. The ReplicaSet
   controller removes replicas that are not Ready first, and only we open gates, so it can never pick one that serves.
   Among those not Ready it goes by deletion cost: what shall go is marked down (Shed) before the Deployment is lowered.
5. A Deployment that is not in the target is deleted once it has no replicas.

| phase    | while                                             | actions that may come                    |
|----------|---------------------------------------------------|------------------------------------------|
| ADDING   | some replica of the target does not serve         | Ensure, Probe, Open, Undrain, Shed, Lower |
| DRAINING | all serve; surplus replicas have requests         | Drain, Watch, Undrain, Shed, Lower        |
| REMOVING | all serve; surplus replicas or Deployments remain | Shed, Lower, Delete                       |
| DONE     | replicas are as in the target                     | Probe, Open (of replicas that were replaced) |
"""

from __future__ import annotations

from dataclasses import dataclass

from medley_operator.transition.actions import (
    SHED_COST,
    Action,
    Delete,
    Drain,
    Ensure,
    Lower,
    Open,
    Phase,
    Probe,
    Shed,
    Step,
    Undrain,
    Watch,
)
from medley_operator.transition.situation import Replica, ReplicaState, Situation

MAKE_ROOM_AFTER_S = 30.0
"""How long replicas find no room before surplus replicas of the same service in the same pool make room."""


@dataclass(frozen=True)
class _Share:
    """One Deployment with its replicas, and which of these are more than wanted.

    `departing` more are alive, which the Deployment's controller is about to delete.
    """

    name: str
    pool: str
    want: int
    have: int
    exists: bool
    replicas: tuple[Replica, ...]
    departing: int

    def of(self, *states: ReplicaState) -> list[Replica]:
        return [replica for replica in self.replicas if replica.state in states]

    @property
    def serving(self) -> int:
        return len(self.of(ReplicaState.SERVING))

    @property
    def absent(self) -> int:
        """Replicas that the Deployment's controller has yet to make."""
        return max(0, self.have - len(self.replicas))

    @property
    def unready_surplus(self) -> list[Replica]:
        """Replicas that were never opened and shall go, least advanced and youngest first."""
        unready = self.of(ReplicaState.PENDING, ReplicaState.LOADING, ReplicaState.LOADED)
        unready.sort(key=lambda replica: (replica.state, -replica.created_s, replica.name))
        return unready[: max(0, self.have - self.want - self.absent)]

    @property
    def ready_surplus(self) -> int:
        """How many replicas that serve, or did until they were drained, shall go."""
        return max(0, self.have - self.want - self.absent - len(self.unready_surplus))


def step(situation: Situation) -> Step:
    """What to do next to get to the target. The same situation gives the same step; at the target, it is empty."""
    shares = _shares(situation)
    complete = all(share.serving >= share.want for share in shares)
    actions: list[Action] = []
    for share in shares:
        actions += _grow_and_open(share, situation)
    for share in shares:
        actions += _drain(share, situation, may_drain=complete)
    if not complete:
        actions += _make_room(shares, situation)
    for share in shares:
        actions += _lower(share, situation)
    return Step(tuple(actions), _phase(shares, complete), _wake_at_s(shares, situation, complete))


def _shares(situation: Situation) -> list[_Share]:
    deployed = {deployment.name: deployment for deployment in situation.deployments}
    shares = []
    for name in sorted({*deployed, *situation.target}):
        here = deployed.get(name)
        alive = [r for r in situation.replicas if r.deployment == name and r.state is not ReplicaState.LEAVING]
        staying = _staying(alive, here.replicas if here else 0)
        shares.append(
            _Share(
                name=name,
                pool=here.pool if here else situation.pools[name],
                want=situation.target.get(name, 0),
                have=here.replicas if here else 0,
                exists=here is not None,
                replicas=tuple(sorted(staying, key=lambda replica: (replica.created_s, replica.name))),
                departing=len(alive) - len(staying),
            )
        )
    return shares


def _staying(alive: list[Replica], have: int) -> list[Replica]:
    """Those that the Deployment's controller keeps.

    Where the Deployment was lowered and the controller has yet to act, the pods that it is about to delete still look
    alive. They are told by its own order: what waits for a node, then what is not Ready, by deletion cost.
    """
    ordered = sorted(
        alive,
        key=lambda replica: (
            replica.state is ReplicaState.SERVING,
            replica.state is not ReplicaState.PENDING,
            replica.deletion_cost,
            -replica.created_s,
            replica.name,
        ),
    )
    return ordered[max(0, len(alive) - have) :]


def _grow_and_open(share: _Share, situation: Situation) -> list[Action]:
    """Rules 1 and 2: grow, and open what is loaded and wanted."""
    actions: list[Action] = []
    if share.have < share.want:
        actions.append(Ensure(share.name, share.want))
    surplus = {replica.uid for replica in share.unready_surplus}
    for replica in share.of(ReplicaState.LOADED):
        if replica.uid in surplus or replica.gate_open:
            continue
        actions.append(Open(replica) if replica.uid in situation.probed else Probe(replica))
    return actions


def _drain(share: _Share, situation: Situation, *, may_drain: bool) -> list[Action]:
    """Rule 3: drain the ready surplus, or give back what is drained but wanted after all."""
    draining = share.of(ReplicaState.DRAINING)
    draining.sort(key=lambda replica: (replica.draining_since_s, replica.name))
    kept, wanted = draining[: share.ready_surplus], draining[share.ready_surplus :]
    actions: list[Action] = [Undrain(replica) for replica in wanted]
    for replica in kept:
        if replica.gate_open:
            actions.append(Drain(replica))  # the mark was written and the gate not closed yet
        elif not _is_drained(replica, situation):
            actions.append(Watch(replica))
    if may_drain:
        missing = share.ready_surplus - len(kept)
        actions += [Drain(replica) for replica in _to_drain(share)[:missing]]
    return actions


def _to_drain(share: _Share) -> list[Replica]:
    """Those that serve, in the order in which they had better go:
    on nodes that are being emptied, then the youngest.
    """
    serving = share.of(ReplicaState.SERVING)
    return sorted(serving, key=lambda replica: (not replica.leaving_node, -replica.created_s, replica.name))


def _make_room(shares: list[_Share], situation: Situation) -> list[Action]:
    """Rule 3a: one surplus replica makes room in each pool in which wanted replicas have found none for a while."""
    actions: list[Action] = []
    spare = sum(share.serving for share in shares) - situation.floor + 1
    for pool in sorted({share.pool for share in shares}):
        here = [share for share in shares if share.pool == pool]
        if not any(_is_stuck(share, situation) for share in here):
            continue
        leaving = any(r.state is ReplicaState.LEAVING for r in situation.replicas if r.deployment in _names(here))
        draining = any(share.of(ReplicaState.DRAINING) for share in here)
        candidates = [replica for share in here if share.ready_surplus for replica in _to_drain(share)]
        if candidates and not leaving and not draining and spare > 0:
            actions.append(Drain(candidates[0]))
            spare -= 1
    return actions


def _is_stuck(share: _Share, situation: Situation) -> bool:
    deadline_s = situation.now_s - MAKE_ROOM_AFTER_S
    surplus = {replica.uid for replica in share.unready_surplus}
    return any(
        replica.no_room_since_s is not None and replica.no_room_since_s <= deadline_s and replica.uid not in surplus
        for replica in share.of(ReplicaState.PENDING)
    )


def _names(shares: list[_Share]) -> set[str]:
    return {share.name for share in shares}


def _lower(share: _Share, situation: Situation) -> list[Action]:
    """Rules 4 and 5: take away what does not serve, and the Deployment itself when it is empty and not wanted."""
    going = share.unready_surplus
    drained = [replica for replica in share.of(ReplicaState.DRAINING) if _is_drained(replica, situation)]
    drained.sort(key=lambda replica: (replica.draining_since_s, replica.name))
    going = going + drained[: share.ready_surplus]
    actions: list[Action] = [
        Shed(replica, timed_out=replica.state is ReplicaState.DRAINING and replica.uid not in situation.idle)
        for replica in going
        if replica.deletion_cost != SHED_COST and replica.state is not ReplicaState.PENDING
    ]
    lowered = min(max(0, share.have - share.want), share.absent + len(going))
    if lowered:
        actions.append(Lower(share.name, share.have - lowered))
    if share.exists and not share.want and not share.have and not share.departing:
        actions.append(Delete(share.name))
    return actions


def _is_drained(replica: Replica, situation: Situation) -> bool:
    if replica.gate_open:
        return False
    return replica.uid in situation.idle or situation.now_s >= replica.draining_since_s + situation.drain_timeout_s


def _phase(shares: list[_Share], complete: bool) -> Phase:
    if not complete or any(share.have < share.want for share in shares):
        return Phase.ADDING
    if any(share.ready_surplus for share in shares):
        return Phase.DRAINING
    if any(share.have > share.want or (share.exists and not share.want) for share in shares):
        return Phase.REMOVING
    return Phase.DONE


def _wake_at_s(shares: list[_Share], situation: Situation, complete: bool) -> float | None:
    """The next moment at which time alone changes the step."""
    moments = [
        replica.draining_since_s + situation.drain_timeout_s
        for share in shares
        for replica in share.of(ReplicaState.DRAINING)
    ]
    if not complete:
        moments += [
            replica.no_room_since_s + MAKE_ROOM_AFTER_S
            for share in shares
            for replica in share.of(ReplicaState.PENDING)
            if replica.no_room_since_s is not None
        ]
    return min((moment for moment in moments if moment > situation.now_s), default=None)
