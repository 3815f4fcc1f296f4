"""Writing configuration files so that programs which watch them are not disturbed by a second bring-up."""

from __future__ import annotations

import threading
from pathlib import Path

import yaml


def write_if_changed(path: Path, content: str, mode: int = 0o644) -> bool:
    """Write the file unless it has this content; whether it was written. kube-proxy ends when its file is touched."""
    try:
        if path.read_text() == content:
            return False
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}")
    temporary.touch(mode=mode)
    temporary.write_text(content)
    temporary.rename(path)
    return True


def write_yaml(path: Path, content: object, mode: int = 0o644) -> bool:
    """Write plain values as YAML, unless the file says the same already."""
    return write_if_changed(path, yaml.safe_dump(content, sort_keys=False), mode)
