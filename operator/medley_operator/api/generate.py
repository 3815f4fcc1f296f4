"""Write what is generated from the API models: `python -m medley_operator.api.generate [--check]`.

Writes crds/*.yaml, the same bytes to helm/medley/crds/, and docs/api.md, below the folder given as an argument
(default: the current one). With `--check`, writes nothing and ends with status 1 if a file is not what it would write.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medley_operator.api.crd import RESOURCES, crd_yaml
from medley_operator.api.reference import api_reference


def generated_files() -> dict[str, str]:
    """Every generated file's text by its path from the repository's root."""
    files = {"docs/api.md": api_reference()}
    for resource in RESOURCES:
        text = crd_yaml(resource)
        for folder in ("crds", "helm/medley/crds"):
            files[f"{folder}/{resource.name}.yaml"] = text
    return files


def stale_files(root: Path) -> list[str]:
    """Paths of generated files that differ from what the models say, or are missing, or are not generated any more."""
    wanted = generated_files()
    stale = [path for path, text in wanted.items() if not _holds(root / path, text)]
    for folder in ("crds", "helm/medley/crds"):
        present = sorted((root / folder).glob("*.yaml"))
        stale += [f"{folder}/{path.name}" for path in present if f"{folder}/{path.name}" not in wanted]
    return sorted(stale)


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def main(arguments: list[str] | None = None) -> int:
    """Write or check the generated files; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m medley_operator.api.generate", description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=Path.cwd(), help="the repository's root")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is stale")
    options = parser.parse_args(arguments)
    if not options.check:
        for path, text in generated_files().items():
            (options.root / path).parent.mkdir(parents=True, exist_ok=True)
            (options.root / path).write_text(text, encoding="utf-8")
    stale = stale_files(options.root)
    for path in stale:
        sys.stderr.write(f"{path}: not what the API models say; run python -m medley_operator.api.generate\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
