"""A store of imported images to copy to nodes: unpacking images anew for each cluster would take longest of all.

Once for each set of images, a containerd of its own imports them into a folder in the cache.
A node gets a copy made of hard links,
which is safe because content and committed snapshots are never written again; databases are copied for real.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from medley_cluster.cache import cached_entry, hash_inputs
from medley_cluster.debian import Programs
from medley_cluster.progress import Step
from medley_cluster.toolchain import ToolError, run_checked
from medley_cluster.waiting import wait_until

NAME = "node-images"
IMPORTED = "imported.json"
KEPT_STORES = 3


def image_store(archives: Sequence[Path], programs: Programs, step: Step) -> Path:
    """The folder with these images imported; made from the latest one like it, so that a new image adds what is new."""
    key = hash_inputs((), *(str(archive) for archive in sorted(archives)), "1")
    entry, made = cached_entry(NAME, key, lambda target: _make(archives, programs, target))
    step.note = "imported" if made else "cached"
    os.utime(entry)
    for old in _stores(entry.parent)[KEPT_STORES:]:
        shutil.rmtree(old, ignore_errors=True)
    return entry


def copy_store(store: Path, target: Path) -> list[str]:
    """Make `target` a containerd root with the store's images; the archives that they came from."""
    if not target.exists():
        temporary = target.with_name(f".{target.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        run_checked(["cp", "-al", str(store / "root"), str(temporary)])
        for database in temporary.rglob("*.db"):
            real = database.with_suffix(".copy")
            shutil.copy2(database, real)
            real.rename(database)
        temporary.rename(target)
    names: list[str] = json.loads((store / IMPORTED).read_text())
    return names


def _stores(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{NAME}-*"), key=lambda path: path.stat().st_mtime, reverse=True)


def _make(archives: Sequence[Path], programs: Programs, target: Path) -> None:
    known: list[str] = []
    for latest in _stores(target.parent)[:1]:
        known = copy_store(latest, target / "root")
    wanted = [str(archive) for archive in archives]
    with _containerd(programs, target) as ctr:
        before = set(_image_names(ctr))
        for archive in wanted:
            if archive not in known:
                run_checked([*ctr, "images", "import", archive], env=programs.environment(), timeout_s=300.0)
        if set(known) - set(wanted):
            _remove_superseded(ctr, programs, before)
    (target / IMPORTED).write_text(json.dumps(wanted))


def _remove_superseded(ctr: Sequence[str], programs: Programs, before: set[str]) -> None:
    """Of each repository that got a new tag, drop the old tags, so that the store does not grow with every edit."""
    added = {name.rpartition(":")[0] for name in set(_image_names(ctr)) - before}
    for name in before:
        if name.rpartition(":")[0] in added:
            run_checked([*ctr, "images", "remove", "--sync", name], env=programs.environment())


def _image_names(ctr: Sequence[str]) -> list[str]:
    return run_checked([*ctr, "images", "list", "--quiet"]).split()


@contextmanager
def _containerd(programs: Programs, target: Path) -> Iterator[list[str]]:
    """A containerd that does nothing but keep images, in `target/root`; yields the words of its command line client."""
    with tempfile.TemporaryDirectory(prefix="medley-images-") as state:
        socket = Path(state) / "containerd.sock"
        config = Path(state) / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{target / "root"}"\nstate = "{state}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.restart"]\n'
            f'[grpc]\n  address = "{socket}"\n'
            f'[plugins."io.containerd.internal.v1.opt"]\n  path = "{state}/opt"\n'
        )
        log = Path(state) / "log"
        with log.open("wb") as output:
            daemon = subprocess.Popen(
                [programs.path("containerd"), f"--config={config}"],
                env={**os.environ, **programs.environment()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        ctr = [programs.path("ctr"), f"--address={socket}", "--namespace=k8s.io"]

        def answers() -> bool:
            if daemon.poll() is not None:
                raise ToolError(f"containerd ended while images were imported:\n{log.read_text()[-1000:]}")
            return socket.exists() and bool(run_checked([*ctr, "version"]))

        try:
            wait_until(answers, 20.0, lambda: f"containerd answers: {log.read_text()[-1000:]}")
            yield ctr
        finally:
            daemon.terminate()
            daemon.wait(timeout=20.0)
