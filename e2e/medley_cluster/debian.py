"""Programs from Debian packages without installing them: what PATH has is used, the rest is unpacked into the cache.

apt resolves and downloads with lists and archives of our own, dpkg only unpacks,
so the system's package database, services and files stay as they are.
Programs from such a prefix run with PATH and LD_LIBRARY_PATH that name it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from medley_cluster.cache import cached_entry, exclusive, hash_inputs
from medley_cluster.progress import Step, Steps
from medley_cluster.toolchain import ToolError, run_checked

_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


@dataclass(frozen=True)
class PackageGroup:
    """Programs that belong together, the packages they are in, and folders that must exist besides."""

    name: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]
    folders: tuple[tuple[str, ...], ...] = ()


NODE = PackageGroup(
    "node",
    ("containerd", "runc", "containernetworking-plugins", "nftables"),
    ("containerd", "containerd-shim-runc-v2", "ctr", "runc", "nft"),
    (("/usr/lib/cni", "/opt/cni/bin"),),
)
PROMETHEUS = PackageGroup("prometheus", ("prometheus",), ("prometheus",))
IMAGE_BUILDER = PackageGroup("image-builder", ("buildah", "debootstrap"), ("buildah", "debootstrap"))


@dataclass(frozen=True)
class Programs:
    """Where the programs of a group are: on PATH, or under a prefix."""

    prefix: Path | None
    found: dict[str, str] = field(default_factory=dict)

    def path(self, program: str) -> str:
        """The program's absolute path."""
        try:
            return self.found[program]
        except KeyError:
            raise ToolError(f"the program {program} is neither on PATH nor in {self.prefix}") from None

    def folder(self, *candidates: str) -> Path:
        """The first of these folders that exists, on the system or under the prefix."""
        for candidate in candidates:
            for root in filter(None, (self.prefix, Path("/"))):
                folder = root / candidate.lstrip("/")
                if folder.is_dir():
                    return folder
        raise ToolError(f"none of {', '.join(candidates)} exists")

    def environment(self) -> dict[str, str]:
        """The variables that make programs under the prefix work."""
        path = os.environ.get("PATH", "").split(os.pathsep)
        path += [folder for folder in _SYSTEM_FOLDERS if folder not in path]
        if self.prefix is None:
            return {"PATH": os.pathsep.join(path)}
        bins = [str(self.prefix / folder) for folder in ("usr/sbin", "usr/bin", "sbin", "bin")]
        libraries = {str(file.parent) for file in self.prefix.rglob("lib*.so*")}
        variables = {"PATH": os.pathsep.join([*path, *bins])}
        if libraries:
            variables["LD_LIBRARY_PATH"] = os.pathsep.join(sorted(libraries))
        return variables


def find_programs(group: PackageGroup, steps: Steps) -> Programs:
    """The group's programs; raises ToolError, with what to install, where they cannot be had."""
    on_path = {name: path for name in group.programs if (path := _which(name))}
    folders_missing = [choice for choice in group.folders if not any(Path(folder).is_dir() for folder in choice)]
    if len(on_path) == len(group.programs) and not folders_missing:
        return Programs(None, on_path)
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        missing = sorted(set(group.programs) - set(on_path))
        raise ToolError(f"{', '.join(missing)} not found, and there is no apt-get: install {', '.join(group.packages)}")
    key = hash_inputs((), *group.packages, _release())
    with steps.step(f"Debian packages: {group.name}") as step:
        prefix, built = cached_entry(f"debian-{group.name}", key, lambda target: _unpack(group, target, step))
        if not built:
            step.note = "cached"
    found = dict(on_path)
    for name in group.programs:
        for folder in ("usr/sbin", "usr/bin", "sbin", "bin"):
            candidate = prefix / folder / name
            if name not in found and candidate.exists():
                found[name] = str(candidate)
    return Programs(prefix, found)


def _which(program: str) -> str | None:
    path = os.pathsep.join([os.environ.get("PATH", ""), *_SYSTEM_FOLDERS])
    return shutil.which(program, path=path)


def _release() -> str:
    try:
        return Path("/etc/os-release").read_text()
    except FileNotFoundError:
        return "unknown"


def _unpack(group: PackageGroup, target: Path, step: Step) -> None:
    apt = target.parent / "apt"
    with exclusive(target.parent / ".apt.lock"):
        step.note = "reading package lists"
        options = _apt_options(apt)
        step.note = "downloading"
        archives = target / ".archives"
        (archives / "partial").mkdir(parents=True)
        argv = ["apt-get", *options, "-o", f"Dir::Cache::archives={archives}", "--yes", "--no-install-recommends"]
        run_checked([*argv, "--download-only", "install", *group.packages], env={**os.environ, "LC_ALL": "C"})
    step.note = "unpacking"
    installed = _installed()
    for package in sorted(archives.glob("*.deb")):
        if package.name.partition("_")[0] not in installed:
            run_checked(["dpkg", "-x", str(package), str(target)])
    shutil.rmtree(archives)
    step.note = "unpacked"


def _apt_options(apt: Path) -> list[str]:
    """Options that give apt lists and caches of our own, filled from the distribution's own archives only."""
    sources = apt / "sources"
    for folder in (apt / "lists" / "partial", apt / "cache" / "archives" / "partial", sources):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("debian.sources", "ubuntu.sources"):
        origin = Path("/etc/apt/sources.list.d", name)
        if origin.exists():
            shutil.copy(origin, sources / name)
    settings = {
        "Dir::State::Lists": apt / "lists",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::SourceParts": sources,
        "Debug::NoLocking": "1",
        "Acquire::http::Timeout": "20",
        "Acquire::Retries": "2",
        "APT::Get::AllowUnauthenticated": "false",
        "APT::Sandbox::User": "root",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    run_checked(["apt-get", *options, "update"], env={**os.environ, "LC_ALL": "C"})
    return options


def _installed() -> set[str]:
    listed = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n"], capture_output=True, text=True, check=False
    )
    return {line.split()[1] for line in listed.stdout.splitlines() if line.startswith("installed ")}
