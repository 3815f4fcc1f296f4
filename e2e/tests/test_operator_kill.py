"""The operator is killed at random points of migrations:
another one goes on, and never is less served than before and after.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

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

pytestmark = pytest.mark.cluster

KILLS = 20
LONGEST_MIGRATION_S = 9.0
DEAR = 50.0
CHEAP = 0.5


@pytest.mark.timeout(900)
def test_killed_at_random_points_of_migrations(medley: Cluster, start_operator: Callable[..., OperatorProcess]) -> None:
    """Two operators, so that each kill falls on a leader whose standby takes over;
    the dead one comes back as the standby.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    leader, standby = start_operator("operator-0"), start_operator("operator-1")
    set_price(medley, "a10g", CHEAP)
    create(medley, llm("chat", rate=8, pools=["a10g", "a100"]))
    before = mix(wait_settled(medley, "chat"))
    killed_in: list[str] = []
    with PodWatch(medley) as watch:
        for number in range(KILLS):
            dear, cheap = ("a10g", "a100") if number % 2 == 0 else ("a100", "a10g")
            watch.mark()
            set_price(medley, dear, DEAR)
            set_price(medley, cheap, CHEAP)
            time.sleep(chance.uniform(0.0, LONGEST_MIGRATION_S))  # the point at which it is killed is what is random
            transition = get(medley, "chat")["status"].get("transition", {})
            killed_in.append(transition.get("phase", "-"))
            leading = leader if "medley_leader 1.0" in leader.metrics() else standby
            leading.kill()
            leading.start(wait_ready=False)
            wait_until(
                lambda cheap=cheap: settled(get(medley, "chat")) and mix(get(medley, "chat")).keys() == {cheap},
                90,
                lambda number=number: f"migration {number} ended, seed {seed}: {get(medley, 'chat')['status']}",
            )
            after = mix(get(medley, "chat"))
            floor = min(sum(before.values()), sum(after.values()))
            fewest = watch.of("chat").fewest_ready
            assert fewest is not None
            assert fewest >= floor, f"kill {number} in {killed_in[-1]}, seed {seed}: {fewest} Ready, {floor} needed"
            assert pods_by_pool(medley, "chat") == after
            assert not any(map(is_draining, pods(medley, "chat")))
            wait_until(leading.ready, 40, "the killed operator is back")
            before = after
    print(f"killed in: {', '.join(killed_in)}")
    assert {"Adding", "Draining"} <= set(killed_in)
