"""Which standbys are kept."""

from __future__ import annotations

import pytest

pytest.importorskip("aiohttp", reason="aiohttp is not installed")

from medley_engine.serving.instances import Instance, InstancePool
from medley_engine.serving.settings import Settings


class Supervisor:
    """Obeys, and remembers what it was told to end."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def ask(self, do, **fields):
        if do == "kill":
            self.ended.append(fields["key"])
        return {"children": {}}


@pytest.mark.parametrize(
    ("waiting", "limit", "kept"),
    [
        ([("a", 2, "standby"), ("b", 3, "standby")], 1, ["b"]),
        ([("armed", 2, "armed"), ("like it", 2, "standby")], 1, ["armed"]),
        ([("like it", 2, "standby"), ("armed", 2, "armed")], 1, ["armed"]),
        ([("old", 2, "armed"), ("new", 1, "standby"), ("twin", 1, "standby")], 2, ["old", "twin"]),
    ],
    ids=["the last used", "not a twin of what is armed", "in any order", "a twin before another size"],
)
async def test_beyond_the_limit_those_end_that_are_worth_least(tmp_path, waiting, limit, kept):
    settings = Settings(model="m", run_dir=str(tmp_path), standbys=limit)
    supervisor = Supervisor()
    pool = InstancePool(settings, supervisor, "token", lambda *_: None, lambda _: None)
    for name, size, state in waiting:
        instance = Instance(name, size, settings)
        instance.state = state
        await pool.put_back(instance)
    assert sorted(standby.id for standby in pool.standbys) == sorted(kept)
    assert {key.rpartition("/")[0] or key.rpartition("-")[0] for key in supervisor.ended} == {
        name for name, _, _ in waiting
    } - set(kept)
