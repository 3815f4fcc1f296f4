"""A fake API server for commands that read a cluster: HTTP that answers with what a test gives it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner, Result

from medley_operator.cli.app import app


class FakeApiServer:
    """Answers GET with the objects in `objects` by path, lists in pages of two, and else with a Status."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.lists: dict[str, list[dict[str, Any]]] = {}
        self.refusal: tuple[int, bytes] | None = None
        handler = type("Handler", (_Handler,), {"answers": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    answers: FakeApiServer

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        asked = dict(part.split("=") for part in query.split("&") if part)
        if self.answers.refusal is not None:
            self._send(*self.answers.refusal)
        elif path in self.answers.objects:
            self._send(200, json.dumps(self.answers.objects[path]).encode())
        elif path in self.answers.lists:
            start = int(asked.get("continue", 0))
            items = self.answers.lists[path]
            rest = {"continue": str(start + 2)} if start + 2 < len(items) else {}
            self._send(200, json.dumps({"metadata": rest, "items": items[start : start + 2]}).encode())
        else:
            self._send(404, json.dumps({"kind": "Status", "code": 404, "message": f"{path} not found"}).encode())

    def _send(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing on the tests' output."""


def write_kubeconfig(folder: Path, url: str) -> Path:
    path = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [
            {"name": "web", "context": {"cluster": "c", "user": "u", "namespace": "web"}},
            {"name": "plain", "context": {"cluster": "c", "user": "u"}},
        ],
        "current-context": "web",
    }
    path.write_text(yaml.safe_dump(config))
    return path


def medley(kubeconfig: Path, *arguments: str) -> Result:
    command = [arguments[0], "--kubeconfig", str(kubeconfig), *arguments[1:]]
    return CliRunner().invoke(app, command, env={"COLUMNS": "160", "NO_COLOR": "1"})
