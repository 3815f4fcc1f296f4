"""The cache of tools and built things: one folder per name and hash of its inputs, never half written.

An entry is built in a temporary folder beside it and renamed into place,
under a file lock, so that parallel sessions build it once and a killed build leaves nothing that looks finished.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_root() -> Path:
    """`MEDLEY_CACHE`, else `medley` in the user's cache folder."""
    explicit = os.environ.get("MEDLEY_CACHE")
    if explicit:
        return Path(explicit).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "medley"


@contextmanager
def exclusive(lock_file: Path) -> Iterator[None]:
    """Hold an exclusive lock for the block; other processes wait."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def hash_inputs(files: Iterable[Path] = (), *texts: str, root: Path | None = None) -> str:
    """A short digest of file names and contents and of further inputs given as text."""
    digest = hashlib.sha256()
    for file in sorted(files):
        name = str(file.relative_to(root)) if root else file.name
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def cached_entry(name: str, key: str, build: Callable[[Path], None]) -> tuple[Path, bool]:
    """The folder `tools/NAME-KEY`, made by `build` when it is not there; and whether it had to be made."""
    entry = cache_root() / "tools" / f"{name}-{key}"
    if entry.is_dir():
        return entry, False
    with exclusive(entry.parent / f".{name}.lock"):
        if entry.is_dir():
            return entry, False
        for leftover in entry.parent.glob(f".build-{name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".build-{name}-", dir=entry.parent))
        try:
            build(temporary)
            temporary.chmod(0o755)
            temporary.rename(entry)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return entry, True
