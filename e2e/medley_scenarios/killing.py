"""The leading operator is killed at random points of migrations; a standby goes on, and never is less served."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from medley_cluster.cluster import Cluster
from medley_cluster.waiting import wait_until
from medley_scenarios.installation import OperatorProcess
from medley_scenarios.pod_watch import PodWatch
from medley_scenarios.steps import (
    create,
    get,
    is_draining,
    llm,
    mix,
    pods,
    pods_by_pool,
    set_price,
    settled,
    wait_settled,
)

LONGEST_MIGRATION_S = 9.0
DEAR = 50.0
CHEAP = 0.5


@dataclass(frozen=True)
class Kill:
    """One migration in which the leader was killed.

    Args:
        phase: The transition's phase at that moment; "-" where it had not begun or was over.
        converged: Whether the pods are those of the new plan, and none drains.
        fewest_ready: The fewest Ready replicas during the migration.
        needed: What the smaller of the two plans needs.
        seconds: From the change of price until the migration was over.
    """

    phase: str
    converged: bool
    fewest_ready: int
    needed: int
    seconds: float


def kill_in_migrations(
    cluster: Cluster, start: Callable[..., OperatorProcess], *, kills: int, seed: int
) -> tuple[Kill, ...]:
    """Move a service to and fro between two pools, and kill the leader once in each move, at a random time.

    Two operators run, so that a standby takes over; the dead one comes back as the standby.
    """
    chance = random.Random(seed)
    operators = (start("operator-0"), start("operator-1"))
    set_price(cluster, "a10g", CHEAP)
    create(cluster, llm("chat", rate=8, pools=["a10g", "a100"]))
    before = mix(wait_settled(cluster, "chat"))
    done: list[Kill] = []
    with PodWatch(cluster) as watch:
        for number in range(kills):
            dear, cheap = ("a10g", "a100") if number % 2 == 0 else ("a100", "a10g")
            watch.mark()
            began_s = time.monotonic()
            kill_at_s = began_s + chance.uniform(0.0, LONGEST_MIGRATION_S)
            set_price(cluster, dear, DEAR)
            set_price(cluster, cheap, CHEAP)
            _wait_until_time(kill_at_s)
            phase = get(cluster, "chat")["status"].get("transition", {}).get("phase", "-")
            leading = next(operator for operator in operators if "medley_leader 1.0" in operator.metrics())
            leading.kill()
            leading.start(wait_ready=False)
            converged = _converged(cluster, cheap)
            after = mix(get(cluster, "chat"))
            fewest = watch.of("chat").fewest_ready
            assert fewest is not None
            needed = min(sum(before.values()), sum(after.values()))
            done.append(Kill(phase, converged, fewest, needed, time.monotonic() - began_s))
            wait_until(leading.ready, 40, "the killed operator is back")
            before = after
    return tuple(done)


def _converged(cluster: Cluster, pool: str) -> bool:
    def moved() -> bool:
        service = get(cluster, "chat")
        return settled(service) and mix(service).keys() == {pool}

    try:
        wait_until(moved, 90.0, "the migration ended")
    except TimeoutError:
        return False
    as_planned = pods_by_pool(cluster, "chat") == mix(get(cluster, "chat"))
    return as_planned and not any(map(is_draining, pods(cluster, "chat")))


def _wait_until_time(at_s: float) -> None:
    wait_until(lambda: time.monotonic() >= at_s, LONGEST_MIGRATION_S + 5, "the moment of the kill")
