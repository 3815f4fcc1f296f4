"""Engine instances (IMM): one active, others initialised and waiting, the least recently used given up first."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

from medley_engine.memory.wire import Frame
from medley_engine.runtime_spec import RankSpec
from medley_engine.serving.links import RankLink, RankLostError, SupervisorLink
from medley_engine.serving.settings import Settings

log = logging.getLogger("medley.engine.instances")

State = Literal["starting", "standby", "armed", "attached", "lost", "stopped"]
OutputHandler = Callable[["Instance", int, Frame], None]
LostHandler = Callable[["Instance"], None]


class Instance:
    """A group of rank processes that compute together. ``config`` is what they are attached to; ``armed`` is a standby
    that is attached and warmed up already.
    """

    def __init__(self, instance_id: str, size: int, settings: Settings) -> None:
        self.id, self.size, self.settings = instance_id, size, settings
        self.state: State = "starting"
        self.config: str | None = None
        self.links: list[RankLink] = []
        self.stats: dict[int, dict[str, Any]] = {}
        self._wake = 0

    @property
    def ranks(self) -> int:
        """Rank processes."""
        return self.size * self.settings.tensor_parallel

    @property
    def leaders(self) -> range:
        """Ranks that schedule, one per data-parallel group."""
        return range(0, self.ranks, self.settings.tensor_parallel)

    def key(self, rank: int) -> str:
        """The supervisor's name of a rank's process."""
        return f"{self.id}-{rank}"

    def holder(self, rank: int) -> str:
        """The manager's name of a rank."""
        return f"{self.id}/{rank}"

    def spec(self, rank: int) -> RankSpec:
        """What a rank process is told at its start."""
        s = self.settings
        return RankSpec(
            instance=self.id, rank=rank, size=self.ranks, tensor_parallel=s.tensor_parallel, model=s.model,
            device=s.device, dtype=s.dtype, page_bytes=s.item_page_bytes, block_tokens=s.block_tokens,
            run_dir=s.run_dir, chunk_tokens=s.chunk_tokens, budget_tokens=s.budget_tokens, max_running=s.max_running,
            batch_invariant=s.batch_invariant, threads=s.threads, zero_copy=s.zero_copy, page_remap=s.page_remap,
            shared_kv=s.shared_pages,
        )  # fmt: skip

    async def ask_all(self, do: str, **fields: Any) -> list[Frame]:
        """Send a command to every rank at once and wait for all replies."""
        return list(await asyncio.gather(*(link.ask(do, **fields) for link in self.links)))

    async def attach(self, config: str, *, populate: bool = False) -> dict[str, float]:
        """Attach to a configuration's pages; seconds per step, of the slowest rank. ``populate`` fills page tables at
        once, which takes longer and saves the first steps their faults.
        """
        replies = await self.ask_all("attach", config=config, populate=populate)
        self.config, self.state = config, "attached"
        return _slowest(replies)

    async def warm_up(self) -> dict[str, float]:
        """One real step through every layer and rank."""
        return _slowest(await self.ask_all("warm"))

    async def detach(self) -> None:
        """Let go of all pages; the processes stay as a standby."""
        await self.ask_all("detach")
        self.config, self.state = None, "standby"
        self.stats.clear()

    def wake(self) -> None:
        """Tell every rank that there is work."""
        self._wake = max(self._wake + 1, asyncio.get_running_loop().time().__int__() * 1_000_000)
        for link in self.links:
            link.tell("wake", seq=self._wake)

    def close(self) -> None:
        """Close the connections."""
        for link in self.links:
            link.close()


def _slowest(replies: list[Frame]) -> dict[str, float]:
    names = sorted({name for reply in replies for name in reply.get("seconds", {})})
    return {name: max(float(reply.get("seconds", {}).get(name, 0.0)) for reply in replies) for name in names}


class InstancePool:
    """Starts instances, keeps standbys, ends what is not needed."""

    def __init__(
        self, settings: Settings, supervisor: SupervisorLink, token: str, on_output: OutputHandler, on_lost: LostHandler
    ) -> None:
        self._settings, self._supervisor, self._token = settings, supervisor, token
        self._on_output, self.on_lost = on_output, on_lost
        self.instances: dict[str, Instance] = {}
        self._standbys: OrderedDict[str, Instance] = OrderedDict()
        self._preparing: dict[int, asyncio.Task[Instance]] = {}
        self._housekeeping: set[asyncio.Task[None]] = set()
        self.on_changed: Callable[[], None] | None = None

    @property
    def standbys(self) -> list[Instance]:
        """Those that wait, the least recently used first."""
        return list(self._standbys.values())

    async def start(self, size: int) -> Instance:
        """Start an instance and wait until it stands by.

        Raises:
            RankLostError: one of its processes ended.
        """
        instance = Instance(secrets.token_hex(4), size, self._settings)
        self.instances[instance.id] = instance
        try:
            await self._spawn_ranks(instance)
        except BaseException:
            self._lost(instance, tell=False)
            raise
        await self._connect(instance)
        instance.state = "standby"
        return instance

    async def _spawn_ranks(self, instance: Instance) -> None:
        await asyncio.gather(
            *(
                self._supervisor.ask("spawn", key=instance.key(rank), spec=asdict(instance.spec(rank)))
                for rank in range(instance.ranks)
            )
        )

    async def end_strangers(self, known: set[tuple[str, int]]) -> None:
        """End rank processes that an earlier coordinator started and did not live to write down."""
        names = {f"rank-{i}-{r}" for i, size in known for r in range(size * self._settings.tensor_parallel)}
        children = (await self._supervisor.ask("children"))["children"]
        for key in sorted(children):
            if key.startswith("rank-") and key not in names:
                await self._supervisor.ask("kill", key=key.removeprefix("rank-"))

    async def adopt(self, instance_id: str, size: int) -> Instance:
        """Connect to an instance that an earlier coordinator started.

        Raises:
            RankLostError: one of its processes is gone.
        """
        instance = Instance(instance_id, size, self._settings)
        self.instances[instance_id] = instance
        await self._connect(instance)
        hellos = [link.hello.result() for link in instance.links]
        configs = {hello["config"] for hello in hellos}
        if len(configs) > 1:
            # Some ranks attached and some did not: none of them serves anybody, so all let go.
            await instance.detach()
        else:
            instance.config = configs.pop()
            instance.state = "standby" if instance.config is None else "attached"
        return instance

    async def _connect(self, instance: Instance) -> None:
        gone: set[int] = set()
        watch = asyncio.create_task(self._watch_start(instance, gone))
        try:
            for rank in range(instance.ranks):
                link = RankLink(
                    instance.spec(rank).socket_path,
                    lambda frame, r=rank: self._on_output(instance, r, frame),  # type: ignore[misc]
                    lambda: self._lost(instance),
                )
                instance.links.append(link)
            connects = (
                link.connect(self._token, 180.0, lambda r=rank: r not in gone)  # type: ignore[misc]
                for rank, link in enumerate(instance.links)
            )
            await asyncio.gather(*connects)
        except BaseException:
            self._lost(instance, tell=False)
            raise
        finally:
            watch.cancel()

    async def _watch_start(self, instance: Instance, gone: set[int]) -> None:
        """Ranks that die before they listen would be waited for in vain."""
        while True:
            await asyncio.sleep(0.25)
            children = (await self._supervisor.ask("children"))["children"]
            gone.update(r for r in range(instance.ranks) if f"rank-{instance.key(r)}" not in children)

    def _lost(self, instance: Instance, *, tell: bool = True) -> None:
        if instance.state in ("lost", "stopped"):
            return
        log.warning("instance %s of %d lost a rank", instance.id, instance.size)
        instance.state = "lost"
        self._forget(instance)
        self._spawn_housekeeping(self._end_processes(instance))
        if tell:
            self.on_lost(instance)

    def _forget(self, instance: Instance) -> None:
        instance.close()
        self.instances.pop(instance.id, None)
        self._standbys.pop(instance.id, None)

    def _spawn_housekeeping(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._housekeeping.add(task)
        task.add_done_callback(self._housekeeping.discard)

    async def _end_processes(self, instance: Instance) -> None:
        for rank in range(instance.ranks):
            await self._supervisor.ask("kill", key=instance.key(rank))

    async def stop(self, instance: Instance) -> None:
        """End an instance for good."""
        instance.state = "stopped"
        self._forget(instance)
        await self._end_processes(instance)

    async def take(self, size: int) -> tuple[Instance, bool]:
        """A standby of this size, or a newly started instance. The flag tells whether it was standing by."""
        for instance in reversed(self._standbys.values()):
            if instance.size == size and instance.state == "standby":
                del self._standbys[instance.id]
                return instance, True
        task = self._preparing.get(size)
        if task is not None:
            await asyncio.wait([task])
            return await self.take(size)
        return await self.start(size), False

    def claim(self, instance: Instance) -> None:
        """Take this one out of the standbys."""
        self._standbys.pop(instance.id, None)

    async def put_back(self, instance: Instance) -> None:
        """Keep an instance that has let go of its pages, or that is armed, as a standby; beyond the limit, those end
        which are worth least.
        """
        if instance.state not in ("standby", "armed"):
            return
        self._standbys[instance.id] = instance
        self._standbys.move_to_end(instance.id)
        limit = self._settings.standbys if self._settings.keep_standbys else 0
        while len(self._standbys) > limit:
            await self.stop(self._least_wanted())
        if self.on_changed is not None:
            self.on_changed()

    def _least_wanted(self) -> Instance:
        """One that is not armed and has its like, else the least recently used."""
        sizes = [standby.size for standby in self.standbys]
        spare = (standby for standby in self.standbys if standby.state != "armed" and sizes.count(standby.size) > 1)
        return next(spare, self.standbys[0])

    def prepare_standbys(self, sizes: Sequence[int]) -> None:
        """Have a standby of each of these sizes, as far as the limit allows, started in the background.

        Where the limit is reached, the least recently used standby of another size makes room.
        """
        limit = self._settings.standbys if self._settings.keep_standbys else 0
        for size in sizes[:limit]:
            if size in self._preparing or any(s.size == size for s in self._standbys.values()):
                continue
            if len(self._standbys) + len(self._preparing) >= limit:
                others = [s for s in self._standbys.values() if s.size not in sizes]
                if not others:
                    return
                self._spawn_housekeeping(self.stop(others[0]))
                self._standbys.pop(others[0].id)
            self._preparing[size] = asyncio.create_task(self.start(size))
            self._spawn_housekeeping(self._finish_standby(size))

    async def _finish_standby(self, size: int) -> None:
        try:
            instance = await self._preparing[size]
        except (RankLostError, TimeoutError) as error:
            log.warning("standby of %d did not start: %s", size, error)
            return
        finally:
            self._preparing.pop(size, None)
        await self.put_back(instance)
