"""Pod discovery for Prometheus: watches pods through the API and writes those to scrape as a file_sd file.

Debian builds Prometheus without its Kubernetes discovery. This does the same job for pods, with the same label names,
so that the relabelling rules are those that one would write for a full build.
When the API server is away, the last targets stay.
Run as `python pod_discovery.py --server URL --authority FILE --certificate FILE --key FILE --output FILE`.
"""

from __future__ import annotations

import argparse
import json
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RETRY_S = 1.0
WATCH_S = 240
_NOT_A_LABEL = re.compile(r"[^a-zA-Z0-9_]")
_PREFIX = "__meta_kubernetes_"


def target(pod: dict[str, Any]) -> dict[str, Any] | None:
    """The file_sd entry of a pod that has an address and asks to be scraped."""
    metadata, address = pod["metadata"], pod.get("status", {}).get("podIP")
    annotations = metadata.get("annotations", {})
    if not address or annotations.get("prometheus.io/scrape") != "true":
        return None
    labels = {
        f"{_PREFIX}namespace": metadata["namespace"],
        f"{_PREFIX}pod_name": metadata["name"],
        f"{_PREFIX}pod_ip": address,
        f"{_PREFIX}pod_phase": pod["status"].get("phase", ""),
        f"{_PREFIX}pod_node_name": pod["spec"].get("nodeName", ""),
    }
    for kind, pairs in (("annotation", annotations), ("label", metadata.get("labels", {}))):
        labels.update({f"{_PREFIX}pod_{kind}_{_NOT_A_LABEL.sub('_', name)}": value for name, value in pairs.items()})
    # What kubectl and controllers keep for themselves is long, and nobody relabels by it.
    labels = {name: value for name, value in labels.items() if len(value) <= 512}
    return {"targets": [address], "labels": labels}


class PodTargets:
    """The pods to scrape, kept from watch events; the file is written when they change."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._targets: dict[str, dict[str, Any]] = {}
        self._written: str | None = None

    def replace(self, pods: list[dict[str, Any]]) -> None:
        """Take the answer to a list request."""
        self._targets = {pod["metadata"]["uid"]: entry for pod in pods if (entry := target(pod))}
        self._write()

    def change(self, kind: str, pod: dict[str, Any]) -> None:
        """Take one watch event."""
        entry = None if kind == "DELETED" else target(pod)
        if entry:
            self._targets[pod["metadata"]["uid"]] = entry
        else:
            self._targets.pop(pod["metadata"]["uid"], None)
        self._write()

    def _write(self) -> None:
        content = json.dumps([self._targets[uid] for uid in sorted(self._targets)], indent=1)
        if content != self._written:
            temporary = self._output.with_suffix(".new")
            temporary.write_text(content)
            temporary.rename(self._output)
            self._written = content


class PodApi:
    """List and watch of pods with a client certificate, by the standard library alone."""

    def __init__(self, server: str, context: ssl.SSLContext) -> None:
        self._server = server
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def list(self) -> dict[str, Any]:
        """All pods."""
        with self._opener.open(f"{self._server}/api/v1/pods", timeout=10.0) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    def watch(self, resource_version: str) -> Iterator[dict[str, Any]]:
        """Events since a resource version, until the server closes the watch."""
        query = f"watch=1&allowWatchBookmarks=true&timeoutSeconds={WATCH_S}&resourceVersion={resource_version}"
        with self._opener.open(f"{self._server}/api/v1/pods?{query}", timeout=WATCH_S + 10.0) as response:
            for line in response:
                yield json.loads(line)


def follow(api: PodApi, targets: PodTargets) -> None:
    """List, then watch; returns when the watch ends."""
    listed = api.list()
    targets.replace(listed["items"])
    for event in api.watch(listed["metadata"]["resourceVersion"]):
        if event["type"] == "ERROR":
            return
        if event["type"] != "BOOKMARK":
            targets.change(event["type"], event["object"])


def main() -> None:
    """Follow until killed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("server", "authority", "certificate", "key", "output"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    context = ssl.create_default_context(cafile=arguments.authority)
    context.load_cert_chain(arguments.certificate, arguments.key)
    api, targets = PodApi(arguments.server, context), PodTargets(Path(arguments.output))
    while True:
        try:
            follow(api, targets)
        except (urllib.error.URLError, OSError, json.JSONDecodeError) as error:
            print(f"discovery: {error}; trying again", flush=True)
        time.sleep(RETRY_S)


if __name__ == "__main__":
    main()
