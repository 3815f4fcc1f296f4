"""Asks the manager for the pages of configurations, and decides which rank gets which experts."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict
from typing import Any

from medley_engine.config import ModelConfig
from medley_engine.memory.wire import RemoteError
from medley_engine.placement import Placement, rebalance
from medley_engine.serving.instances import Instance
from medley_engine.serving.links import ManagerLink, RankLink
from medley_engine.serving.settings import Settings
from medley_engine.topology import Topology

log = logging.getLogger("medley.engine.pages")

_PREPARE_ATTEMPTS = 5
_BUSY_S = 10.0
"""How long to wait for a manager that fills another configuration."""
_HOME_POLL_S = 0.1
"""How often to ask what has arrived. Each time costs the ranks a moment, and much less than what may lie in two
memories is copied meanwhile."""


async def _ask_to_remap(link: RankLink, items: list[str], *, home: bool) -> None:
    try:
        await link.ask("remap", items=items, home=home)
    except (RemoteError, ConnectionError, TimeoutError) as error:
        # The pages go when the rank does, or at the takeover.
        log.warning("a rank did not map %d items anew: %s", len(items), error)


class Pages:
    """Configurations at the manager. ``percent`` tells how far the last preparation is."""

    def __init__(self, settings: Settings, model: ModelConfig, manager: ManagerLink) -> None:
        self._settings, self._model, self._manager = settings, model, manager
        self.percent = 0.0
        self._telling: dict[int, asyncio.Task[None]] = {}

    async def prepare(
        self, config: str, size: int, placement: Placement, *, armed: bool = False, old: Instance | None = None
    ) -> dict[str, Any]:
        """Have the manager fill a configuration's pages; a manager that was replaced meanwhile is asked again.

        Args:
            config: its name.
            size: data-parallel groups.
            placement: of the experts.
            armed: nobody asked for it yet, so it adds nothing to what may be lent.
            old: the instance that serves meanwhile. Where experts move between memories before the switch its ranks
                are told to map them where they are now, so that they do not lie in both for long.

        Raises:
            RemoteError: it cannot be prepared.
        """
        topology = Topology(size, self._settings.tensor_parallel, self._settings.shared_domain)
        ask = {
            "config": config, "topology": asdict(topology), "placement": placement.layers, "armed": armed,
            "peer": self._settings.peer_copy, "shared": self._settings.shared_pages,
            "early_release": old is not None and self._settings.reaches_others,
            "peer_later": self._settings.copies_later and (armed or old is not None),
        }  # fmt: skip
        report = await self._manager.ask("prepare", **ask)
        for attempt in range(_PREPARE_ATTEMPTS):
            while report["state"] in ("planning", "copying"):
                self.percent = report["percent"]
                if old is not None:
                    self._tell(old, report.get("leaving", {}), home=False)
                await asyncio.sleep(0.002)
                try:
                    report = await self._manager.ask("progress", config=config)
                except RemoteError as error:
                    if error.kind != "not_found":
                        raise
                    report = {"state": "unknown"}
            if report["state"] == "prepared":
                return dict(report)
            if report["state"] == "failed":
                raise RemoteError("prepare_failed", str(report["failure"]))
            log.warning("the manager lost configuration %s (attempt %d): asking again", config, attempt + 1)
            report = await self._manager.ask("prepare", **ask)
        raise RemoteError("prepare_failed", f"the manager lost configuration {config} {_PREPARE_ATTEMPTS} times")

    async def bring_home(self, config: str, size: int, placement: Placement, instance: Instance) -> dict[str, Any]:
        """Copy what the ranks of the instance that serves map in other memories to their own, and have them map it
        there. Ends early where the instance is lost.

        Returns:
            What was copied, to be told to people.

        Raises:
            RemoteError: the manager could not copy.
        """
        topology = Topology(size, self._settings.tensor_parallel, self._settings.shared_domain)
        ask = {
            "config": config, "topology": asdict(topology), "placement": placement.layers, "homewards": True,
            "home_share": self._settings.home_share,
        }  # fmt: skip
        report: dict[str, Any] = {"plan": {}, "state": "prepared", "seconds": {}, "arrived": {}}
        while instance.state == "attached":
            if not report["plan"] and report["state"] == "prepared":
                # Nobody has begun yet, or another manager knows of no copying.
                report = await self._begin_homewards(ask)
            if report["state"] == "failed":
                raise RemoteError("prepare_failed", str(report["failure"]))
            self._tell(instance, report["arrived"], home=True)
            if report["state"] == "prepared" and not report["arrived"]:
                break
            await asyncio.sleep(_HOME_POLL_S)
            report = await self._manager.ask("progress", config=config)
        return {"seconds": report["seconds"], "plan": report["plan"]}

    async def _begin_homewards(self, ask: dict[str, Any]) -> dict[str, Any]:
        """Have the copying begun, as soon as the manager does not fill another configuration (a standby's that is being
        armed, which takes it a moment).
        """
        end = time.monotonic() + _BUSY_S
        while True:
            try:
                return dict(await self._manager.ask("prepare", **ask))
            except RemoteError as error:
                if error.kind != "conflict" or time.monotonic() > end:
                    raise
            await asyncio.sleep(_HOME_POLL_S)

    def _tell(self, instance: Instance, items: dict[str, list[str]], *, home: bool) -> None:
        """Tell ranks, by domain, what to map anew; one that has not answered the last time is left alone."""
        self._telling = {rank: task for rank, task in self._telling.items() if not task.done()}
        topology = Topology(instance.size, self._settings.tensor_parallel, shared_domain=False)
        for rank, link in enumerate(instance.links):
            its = items.get(topology.domain(rank))
            if its and rank not in self._telling and instance.state == "attached":
                self._telling[rank] = asyncio.create_task(_ask_to_remap(link, its, home=home))

    async def commit(self, config: str) -> None:
        """Put a configuration in force: every other one lives only as long as ranks are attached to it."""
        await self._manager.ask("commit", config=config)

    async def abandon(self, config: str) -> None:
        """Drop a configuration that will not be used; one that the manager does not know is no error."""
        try:
            await self._manager.ask("abandon", config=config)
        except RemoteError as error:
            if error.kind != "not_found":
                raise

    async def place(self, old: Placement | None, size: int, *, measured_on: Instance | None = None) -> Placement:
        """Experts for a size, moving as few as balance allows; by the load measured on an instance where one is
        given, with spare copies of the hottest.
        """
        layers = len(self._model.moe_layers)
        loads = [[1.0] * self._model.experts for _ in range(layers)]
        if measured_on is not None:
            for reply in await measured_on.ask_all("loads"):
                for layer, counts in enumerate(reply["tokens"]):
                    for expert, count in enumerate(counts):
                        loads[layer][expert] += count
        spare = self._settings.spare_experts if measured_on is not None else 0
        return rebalance(old, loads, size * self._settings.tensor_parallel, spare)
