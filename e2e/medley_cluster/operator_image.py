"""The operator's image, built from the repository's Dockerfile on this machine, without a Docker daemon.

buildah builds it. Nothing is pulled: a stand-in with the base image's name is made of Debian packages, of the same
distribution release and with the same Python. The archive is cached by the hash of everything that goes in;
buildah's own store caches the layers, so that a change of our code alone takes seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medley_cluster.cache import cache_root, cached_entry, exclusive, hash_inputs
from medley_cluster.debian import IMAGE_BUILDER, Programs, find_programs
from medley_cluster.images import write_docker_archive
from medley_cluster.progress import Step, Steps
from medley_cluster.toolchain import ToolError, run_checked

OPERATOR_REPOSITORY = "medley.local/medley-operator"
REPOSITORY = Path(__file__).resolve().parents[2]
DEBIAN_RELEASE = "bookworm"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BUILD_BACKEND = "hatchling"
_TARGET_PYTHON = "3.11"
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_NOT_IN_STAND_IN = (
    "./proc/*",
    "./sys/*",
    "./dev/*",
    "./var/cache/*",
    "./var/lib/apt/lists/*",
    "./var/log/*",
    "./run/*",
)
_NOT_NEEDED = ("./usr/share/doc/*", "./usr/share/man/*", "./usr/share/locale/*", "./usr/share/info/*", "./boot/*")
_REGISTRIES = "unqualified-search-registries = []\n"
_TRUST = '{"default": [{"type": "insecureAcceptAnything"}]}\n'


@dataclass(frozen=True)
class OperatorImage:
    """An image archive, and the name of the image in it: its tag is the hash of its inputs, so a change rolls out."""

    archive: Path
    name: str


def operator_image(steps: Steps, repository: Path = REPOSITORY) -> OperatorImage:
    """The operator's image; built if any of its inputs changed."""
    dockerfile = repository / "operator" / "Dockerfile"
    if not dockerfile.exists():
        raise ToolError(f"no operator/Dockerfile in {repository}: the operator's image is built from a checkout")
    sources = [path for folder in _package_folders(repository) for path in folder.rglob("*") if _is_source(path)]
    key = hash_inputs([dockerfile, repository / "pyproject.toml", *sources], "1", root=repository)
    name = f"{OPERATOR_REPOSITORY}:{key}"
    with steps.step("operator image") as step:
        entry, built = cached_entry("image-operator", key, lambda target: _build(repository, name, target, steps, step))
        step.note = "built" if built else "cached"
        if built:
            _forget_older("image-operator", entry, keep=3)
    return OperatorImage(entry / "image.tar", name)


def _package_folders(repository: Path) -> list[Path]:
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    packages: list[str] = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    return [repository / package for package in packages]


def _is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def _build(repository: Path, name: str, target: Path, steps: Steps, step: Step) -> None:
    if os.geteuid() != 0:
        raise ToolError("building the operator's image without a container engine needs root")
    programs = find_programs(IMAGE_BUILDER, steps)
    builder = Builder(programs, cache_root() / "image-builder")
    step.note = "wheels"
    context = target / "context"
    dependencies = _dependency_wheels(repository, steps)
    shutil.copytree(dependencies, context / "dependencies", copy_function=os.link)
    build_wheel(repository, context / "wheel", steps)
    base = _base_image(repository / "operator" / "Dockerfile")
    with exclusive(builder.store.with_suffix(".lock")):
        if not builder.has(base):
            _provide_base(builder, base, steps)
        step.note = "building"
        arguments = {"DEPENDENCIES": dependencies.name}
        builder.build(repository / "operator" / "Dockerfile", context, name, arguments)
        step.note = "exporting"
        builder.export(name, target / "image.tar")
        builder.remove([old for old in builder.images() if old.startswith(f"{OPERATOR_REPOSITORY}:") and old != name])
    shutil.rmtree(context)


@dataclass(frozen=True)
class Builder:
    """buildah with a store of its own in the cache."""

    programs: Programs
    store: Path

    def run(self, command: str, *arguments: str, timeout_s: float = 600.0) -> str:
        """One buildah command."""
        settings = self._settings()
        argv = [*self._alone(), self.programs.path("buildah"), command]
        argv += ["--storage-driver", "overlay", "--root", str(self.store / "root")]
        argv += ["--runroot", str(self.store / "run"), "--registries-conf", str(settings / "registries.conf")]
        environment = {**os.environ, **self.programs.environment()}
        environment |= {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(settings)}
        environment |= {"CONTAINERS_STORAGE_CONF": str(settings / "storage.conf")}
        return run_checked([*argv, *arguments], env=environment, timeout_s=timeout_s)

    def _alone(self) -> list[str]:
        """Words that run buildah in a mount namespace of its own: what it mounts ends with it, even when it fails.

        There the libraries of the prefix lie over the system's, because buildah starts itself anew with an empty
        environment for every RUN step.
        """
        words = ["unshare", "--mount", "--propagation", "private"]
        prefix = self.programs.prefix
        folders = sorted(folder for folder in (prefix / "usr/lib").glob("*-linux-gnu")) if prefix else []
        if not folders:
            return words
        script = 'mount -t overlay overlay -o "lowerdir=$1:$2" "$2" && shift 2 && exec "$@"'
        return [*words, "sh", "-c", script, "sh", str(folders[0]), str(Path("/usr/lib") / folders[0].name)]

    def has(self, image: str) -> bool:
        """Whether the store has the image."""
        return any(name == image or name.endswith(f"/{image}") for name in self.images())

    def images(self) -> list[str]:
        """The names of all images in the store."""
        return self.run("images", "--format", "{{.Name}}:{{.Tag}}").splitlines()

    def remove(self, images: Sequence[str]) -> None:
        """Forget images; layers that others share stay."""
        if images:
            self.run("rmi", *images)

    def build(self, dockerfile: Path, context: Path, tag: str, build_arguments: dict[str, str]) -> None:
        """Build, with layers of earlier builds where nothing changed."""
        policy = str(self._settings() / "policy.json")
        arguments = ["--layers", "--pull-never", "--isolation", "chroot", "--signature-policy", policy]
        for name, value in build_arguments.items():
            arguments += ["--build-arg", f"{name}={value}"]
        self.run("build", *arguments, "--timestamp", "946684800", "-f", str(dockerfile), "-t", tag, str(context))

    def load(self, archive: Path) -> None:
        """Take the image of a docker-archive into the store."""
        policy = str(self._settings() / "policy.json")
        self.run("pull", "--signature-policy", policy, f"docker-archive:{archive}")

    def export(self, image: str, archive: Path) -> None:
        """Write an image as a docker-archive; an OCI layout would be compressed, which takes four times as long."""
        policy = str(self._settings() / "policy.json")
        self.run("push", "--signature-policy", policy, image, f"docker-archive:{archive}:{image}")

    def _settings(self) -> Path:
        folder = self.store / "settings"
        if not (folder / "storage.conf").exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "registries.conf").write_text(_REGISTRIES)
            (folder / "policy.json").write_text(_TRUST)
            (folder / "storage.conf").write_text('[storage]\ndriver = "overlay"\n')
        return folder


def _base_image(dockerfile: Path) -> str:
    found = re.search(r"^ARG BASE=(\S+)$", dockerfile.read_text(), re.MULTILINE)
    if not found:
        raise ToolError(f"{dockerfile} does not name its base image in a line `ARG BASE=…`")
    return found[1]


def _provide_base(builder: Builder, base: str, steps: Steps) -> None:
    """Put the stand-in into the builder's store under the base image's name."""
    with steps.step(f"stand-in for {base}") as step:
        release = hash_inputs((), DEBIAN_RELEASE, base, "3")
        entry, made = cached_entry("base-image", release, lambda target: _debootstrap(builder, base, target))
        step.note = "Debian packages" if made else "cached"
        builder.load(entry / "image.tar")


def _debootstrap(builder: Builder, base: str, target: Path) -> None:
    programs = builder.programs
    root = target / "root"
    environment = {**os.environ, **programs.environment()}
    if programs.prefix:
        environment["DEBOOTSTRAP_DIR"] = str(programs.prefix / "usr/share/debootstrap")
    # Its maintainer scripts run inside the new root: libraries of the prefix mean nothing there.
    environment.pop("LD_LIBRARY_PATH", None)
    command = [programs.path("debootstrap"), "--variant=minbase", "--include=python3,python3-venv,ca-certificates"]
    try:
        run_checked([*command, DEBIAN_RELEASE, str(root)], env=environment, timeout_s=900.0)
        layer = target / "layer.tar"
        excluded = [f"--exclude={pattern}" for pattern in (*_NOT_IN_STAND_IN, *_NOT_NEEDED)]
        run_checked(["tar", "--numeric-owner", "--xattrs", *excluded, "-C", str(root), "-cf", str(layer), "."])
        tag = f"localhost/{base}"
        write_docker_archive(
            target / "image.tar", tag, [layer], ["/usr/bin/python3"], user="0:0", search_path=SYSTEM_PATH
        )
        layer.unlink()
    finally:
        for mounted in ("proc", "sys", "dev/pts", "dev"):
            subprocess.run(["umount", "-l", str(root / mounted)], capture_output=True, check=False)
        shutil.rmtree(root, ignore_errors=True)


def _dependency_wheels(repository: Path, steps: Steps) -> Path:
    """The wheels of the distribution's dependencies, for the image's Python; downloaded when the list changes."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    requirements: list[str] = sorted(project["dependencies"])
    with steps.step("wheels of the dependencies") as step:
        key = hash_inputs((), _TARGET_PYTHON, *requirements)
        entry, made = cached_entry("image-wheels", key, lambda target: _download_wheels(requirements, target))
        step.note = "downloaded" if made else "cached"
    return entry


def _download_wheels(requirements: Sequence[str], target: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--python-version", _TARGET_PYTHON, "--implementation", "cp"]
    for platform in _PLATFORMS:
        command += ["--platform", platform]
    run_checked([*command, "--dest", str(target), *requirements])


def build_wheel(repository: Path, target: Path, steps: Steps) -> Path:
    """The wheel of our own distribution, with a cached build backend: no network after the first time."""
    key = hash_inputs((), BUILD_BACKEND, f"{sys.version_info.major}.{sys.version_info.minor}")
    backend, _ = cached_entry("build-backend", key, _install_backend)
    environment = {**os.environ, "PYTHONPATH": str(backend), "SOURCE_DATE_EPOCH": "946684800"}
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
    run_checked(command, cwd=repository, env=environment)
    (wheel,) = target.glob("*.whl")
    return wheel


def _install_backend(target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run_checked([*command, "--target", str(target), BUILD_BACKEND])


def _forget_older(name: str, current: Path, keep: int) -> None:
    """Images are large and every edit makes one: keep the latest few."""
    entries = sorted(current.parent.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in entries[keep:]:
        if old != current:
            shutil.rmtree(old, ignore_errors=True)
