"""Container images out of static binaries: a docker-archive is three JSON files and a tar, no builder is needed."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medley_cluster.cache import cached_entry, hash_inputs
from medley_cluster.progress import Steps
from medley_cluster.toolchain import COREDNS, PAUSE, VLLM_STANDIN, GoProgram, go_program

PAUSE_IMAGE = "medley.local/pause:1"
VLLM_STANDIN_IMAGE = "medley.local/vllm-standin:v0.10.2"
COREDNS_IMAGE = "medley.local/coredns:v1.15.0"
EPOCH_S = 946684800  # Files get a fixed time, so that the same binary makes the same image.


@dataclass(frozen=True)
class BinaryImage:
    """An image that holds one static binary, its entry point."""

    tag: str
    program: GoProgram
    user: str = "65532:65532"


BINARY_IMAGES = (
    BinaryImage(PAUSE_IMAGE, PAUSE),
    BinaryImage(VLLM_STANDIN_IMAGE, VLLM_STANDIN),
    BinaryImage(COREDNS_IMAGE, COREDNS),
)


def binary_image_archives(steps: Steps) -> list[Path]:
    """The archives of all images made of binaries, each cached by its binary."""
    archives = []
    for image in BINARY_IMAGES:
        binary = go_program(image.program, steps) / image.program.name
        # The program's folder is named by the hash of its sources: that is the image's identity too.
        key = hash_inputs((), image.tag, image.user, binary.parent.name, "1")
        name = f"image-{image.program.name}"
        entry, _ = cached_entry(name, key, lambda target, i=image, b=binary: _write_archive(i, b, target))  # type: ignore[misc]
        archives.append(entry / "image.tar")
    return archives


def _write_archive(image: BinaryImage, binary: Path, target: Path) -> None:
    layer = target / "layer.tar"
    with tarfile.open(layer, "w") as tar:
        _add_folder(tar, "etc", 0o755)
        _add_folder(tar, "tmp", 0o1777)
        _add_file(tar, "etc/passwd", b"root:x:0:0::/:/none\nnonroot:x:65532:65532::/tmp:/none\n")
        _add_file(tar, "etc/group", b"root:x:0:\nnonroot:x:65532:\n")
        info = tarfile.TarInfo(image.program.name)
        info.size, info.mode, info.mtime = binary.stat().st_size, 0o755, EPOCH_S
        with binary.open("rb") as content:
            tar.addfile(info, content)
    write_docker_archive(target / "image.tar", image.tag, [layer], [f"/{image.program.name}"], user=image.user)
    layer.unlink()


def write_docker_archive(
    path: Path, tag: str, layers: Sequence[Path], entrypoint: Sequence[str], *, user: str, search_path: str = "/"
) -> None:
    """Write layers (tar files) as an archive that containerd, podman and docker can load."""
    names = [_sha256(layer) for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2000-01-01T00:00:00Z",
        "config": {"Entrypoint": list(entrypoint), "User": user, "WorkingDir": "/", "Env": [f"PATH={search_path}"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{name}" for name in names]},
        "history": [{"created": "2000-01-01T00:00:00Z", "created_by": "medley_cluster"} for _ in names],
    }
    encoded = json.dumps(config, sort_keys=True).encode()
    config_name = f"{hashlib.sha256(encoded).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [tag], "Layers": [f"{name}/layer.tar" for name in names]}]
    with tarfile.open(path, "w") as tar:
        _add_file(tar, config_name, encoded)
        for name, layer in zip(names, layers, strict=True):
            info = tarfile.TarInfo(f"{name}/layer.tar")
            info.size, info.mtime = layer.stat().st_size, EPOCH_S
            with layer.open("rb") as content:
                tar.addfile(info, content)
        _add_file(tar, "manifest.json", json.dumps(manifest).encode())


def _add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), 0o644, EPOCH_S
    tar.addfile(info, io.BytesIO(content))


def _add_folder(tar: tarfile.TarFile, name: str, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = tarfile.DIRTYPE, mode, EPOCH_S
    tar.addfile(info)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
