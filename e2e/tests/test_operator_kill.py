"""The operator is killed at random points of migrations: another one goes on."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from medley_cluster.cluster import Cluster
from medley_scenarios.installation import OperatorProcess
from medley_scenarios.killing import kill_in_migrations

pytestmark = pytest.mark.cluster

KILLS = 8
"""`make bench-operator` does twenty."""


@pytest.mark.timeout(900)
def test_killed_at_random_points_of_migrations(medley: Cluster, start_operator: Callable[..., OperatorProcess]) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    kills = kill_in_migrations(medley, start_operator, kills=KILLS, seed=seed)
    assert len(kills) == KILLS
    assert all(kill.converged for kill in kills), kills
    assert all(kill.fewest_ready >= kill.needed for kill in kills), kills
    assert any(kill.phase != "-" for kill in kills), "no kill fell into a transition"
