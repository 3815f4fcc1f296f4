"""Make the virtual environment of this checkout, quickly and offline where it can be.

Dependencies live once per set of requirements in the cache (`MEDLEY_CACHE`, by default `~/.cache/medley`), so a second
checkout, or this one after a clean, needs no network.
The checkout's own `.venv` only points to them and holds an editable install of Medley, with its console scripts.
This file uses the standard library alone, since it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
import tomllib
import venv
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
LOCAL = CHECKOUT / ".venv"
BUILD_TOOLS = ("hatchling>=1.27,<2", "editables>=0.5,<1")


def main() -> int:
    """Make `.venv` for the extras asked for; exits 2 with one line where that cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra", action="append", default=[], help="an extra of pyproject.toml, besides dev")
    arguments = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 - this is the check that tells users of older Pythons
        print(
            f"Medley needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: make PYTHON=python3.12 …",
            file=sys.stderr,
        )
        return 2
    started_s = time.monotonic()
    requirements = [*BUILD_TOOLS, *declared_requirements(["dev", *arguments.extra])]
    try:
        shared, cached = shared_environment(requirements)
        fresh = link_checkout(shared)
    except subprocess.CalledProcessError as error:
        print(f"set-up failed: {' '.join(map(str, error.cmd))} ended with {error.returncode}", file=sys.stderr)
        return 2
    state = "cached" if cached and not fresh else "ready"
    print(f"  python environment  {state:>8}  {time.monotonic() - started_s:6.1f} s", file=sys.stderr)
    return 0


def declared_requirements(extras: list[str]) -> list[str]:
    """The requirements of the project and of some of its extras, as pyproject.toml lists them."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    requirements = list(project["dependencies"])
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    return requirements


def cache_root() -> Path:
    """The folder for everything that is fetched or built, shared by checkouts."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medley"
    return Path(os.environ.get("MEDLEY_CACHE") or default)


def shared_environment(requirements: list[str]) -> tuple[Path, bool]:
    """The cached environment that holds exactly these requirements, and whether it was there already."""
    identity = "\n".join([sys.version, *sorted(requirements)])
    target = cache_root() / "python" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    if (target / "complete").exists():
        return target, True
    print(
        f"  python environment: installing {len(requirements)} requirements (once; a few minutes)",
        file=sys.stderr,
        flush=True,
    )
    if target.exists():
        shutil.rmtree(target)
    venv.create(target, with_pip=True)
    run(
        [
            target / "bin" / "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--progress-bar",
            "on",
            *requirements,
        ]
    )
    (target / "complete").touch()
    return target, False


def link_checkout(shared: Path) -> bool:
    """Point the checkout's `.venv` at the shared environment; True where something had to be made."""
    stamp = LOCAL / "medley-bootstrap"
    identity = f"{shared}\n{CHECKOUT}\n{hashlib.sha256((CHECKOUT / 'pyproject.toml').read_bytes()).hexdigest()}\n"
    if stamp.exists() and stamp.read_text() == identity:
        return False
    if LOCAL.exists():
        shutil.rmtree(LOCAL)
    venv.create(LOCAL, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (LOCAL / "lib" / version / "site-packages" / "medley-dependencies.pth").write_text(
        f"{shared / 'lib' / version / 'site-packages'}\n"
    )
    run(
        [
            *(shared / "bin" / "pip", "--python", LOCAL / "bin" / "python", "install", "--quiet", "--no-deps"),
            *("--no-index", "--no-build-isolation", "--disable-pip-version-check", "--editable", CHECKOUT),
        ],
        path=shared / "bin",
    )
    for tool in ("pytest", "ruff", "mypy", "lint-imports"):
        (LOCAL / "bin" / tool).write_text(tool_script(shared / "bin" / tool))
        (LOCAL / "bin" / tool).chmod(0o755)
    stamp.write_text(identity)
    return True


def tool_script(installed: Path) -> str:
    """A console script of the shared environment, made to run with the checkout's interpreter."""
    content = installed.read_bytes()
    if not content.startswith(b"#!"):
        return f'#!/bin/sh\nexec "{installed}" "$@"\n'
    return f"#!{LOCAL / 'bin' / 'python'}\n" + content.split(b"\n", 1)[1].decode()


def run(command: list[str | Path], *, path: Path | None = None) -> None:
    """Run a command with its output on our standard error; raises CalledProcessError."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    if path is not None:
        environment["PATH"] = f"{path}{os.pathsep}{environment.get('PATH', '')}"
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
