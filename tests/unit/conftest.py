"""What tests of commands that read a cluster share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_api_server import FakeApiServer, write_kubeconfig


@pytest.fixture
def server() -> Iterator[FakeApiServer]:
    made = FakeApiServer()
    yield made
    made.stop()


@pytest.fixture
def kubeconfig(server: FakeApiServer, tmp_path: Path) -> Path:
    return write_kubeconfig(tmp_path, server.url)
