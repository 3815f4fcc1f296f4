"""One service as its status shows it, and waiting for what it should show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medley_cluster.cluster import Cluster
from medley_cluster.waiting import wait_until
from medley_scenarios.steps import get, settled


class ServiceView:
    """One LLMService of a cluster, read afresh at each call."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name

    def read(self) -> dict[str, Any]:
        """The whole object."""
        return get(self.cluster, self.name)

    def plan(self) -> dict[str, Any]:
        """The plan that is acted on; empty before there is one."""
        return dict(self.read().get("status", {}).get("plan") or {})

    def mix(self) -> str:
        """The mix with its price, for people."""
        plan = self.plan()
        return f"{plan['mix']} at ${plan['costPerHour']:.2f}/h" if plan else "nothing yet"

    def condition(self, type_: str) -> dict[str, Any]:
        """One condition; empty where it is not set."""
        for condition in self.read().get("status", {}).get("conditions", []):
            if condition["type"] == type_:
                return dict(condition)
        return {}

    def settled(self) -> bool:
        """Whether the newest spec is planned, no transition is under way and every replica serves."""
        return settled(self.read())

    def wait(self, what: str, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait for a condition on this service; the error says what the status was."""
        wait_until(condition, timeout_s, lambda: f"{self.name}: {what}; status: {self.read().get('status')}")

    def wait_settled(self, timeout_s: float = 60.0) -> None:
        """Wait until `settled`."""
        self.wait("every replica of the plan serves", self.settled, timeout_s)

    def replicas(self) -> dict[str, int]:
        """Planned replicas by variant."""
        entries = self.plan().get("entries", [])
        return {f"{entry['pool']}/tp{entry['tensorParallel']}": entry["replicas"] for entry in entries}

    def serving(self) -> int:
        """Replicas that get requests, by the operator's count."""
        return int((self.read().get("status", {}).get("replicas") or {}).get("serving", 0))
