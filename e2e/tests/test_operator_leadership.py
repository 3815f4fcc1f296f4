"""Two operators: one leads, and the other takes over where it stopped."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medley_cluster.cluster import Cluster
from medley_cluster.waiting import wait_until
from medley_scenarios.installation import OperatorProcess
from medley_scenarios.steps import change, create, llm, wait_settled

pytestmark = pytest.mark.cluster


def test_two_replicas_one_leads_and_the_other_takes_over(
    medley: Cluster, start_operator: Callable[..., OperatorProcess]
) -> None:
    operators = [start_operator(f"operator-{number}", wait_ready=True) for number in range(2)]
    leading = [operator for operator in operators if "medley_leader 1.0" in operator.metrics()]
    assert len(leading) == 1
    (standby,) = [operator for operator in operators if operator not in leading]
    create(medley, llm("chat", pools=["a10g"]))
    wait_settled(medley, "chat")
    leading[0].stop()
    change(medley, "chat", {"workload": {"rate": 12}})
    wait_until(lambda: "medley_leader 1.0" in standby.metrics(), 5, "the standby leads soon after a release")
    wait_settled(medley, "chat")
