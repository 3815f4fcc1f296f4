"""What a cluster is, on disk: written before anything starts, so that an interrupted start can always be removed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from medley_cluster.addresses import Addresses, claim_index, free_port, primary_address
from medley_cluster.control_plane import Endpoints
from medley_cluster.network import ClusterNetwork
from medley_cluster.options import ClusterOptions


class ClusterState:
    """The state file of one cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "cluster.json"
        self._content: dict[str, Any] | None = None

    @property
    def exists(self) -> bool:
        """Whether the cluster was brought up and not removed."""
        return self._file.exists()

    @property
    def options(self) -> ClusterOptions:
        """What the cluster was asked to be."""
        return ClusterOptions.from_json(self._read()["options"])

    @property
    def addresses(self) -> Addresses:
        """The networks it uses."""
        return Addresses(self._read()["index"])

    @property
    def endpoints(self) -> Endpoints:
        """Where its parts listen."""
        return Endpoints(**self._read()["endpoints"])

    @property
    def has_network(self) -> bool:
        """Whether it has a bridge and namespaces of its own."""
        return bool(self._read()["network"])

    @property
    def operator_image(self) -> str | None:
        """The name of the operator's image on its real nodes."""
        name = self._read().get("operator_image")
        return str(name) if name else None

    def create(self, options: ClusterOptions, *, network: bool) -> None:
        """Choose addresses and ports, and write the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        addresses = Addresses(claim_index(self.folder))
        host = addresses.host if network else primary_address()
        if network:
            ClusterNetwork(addresses).create_bridge()
        endpoints = Endpoints(
            host=host,
            api_port=free_port(host, 6443),
            etcd_port=free_port(host, 2379),
            etcd_peer_port=free_port("127.0.0.1", 12380 + addresses.index),
            prometheus_port=free_port(host, 9090),
            engine_control_port=9000 if network else free_port("127.0.0.1", 9000 + addresses.index),
        )
        content = {"index": addresses.index, "network": network, "endpoints": asdict(endpoints)}
        self._write({**content, "options": options.to_json()})

    def set_options(self, options: ClusterOptions) -> None:
        """Remember new options; real nodes that run are not forgotten."""
        nodes = max(options.real_nodes, self.options.real_nodes)
        self._write({**self._read(), "options": replace(options, real_nodes=nodes).to_json()})

    def set_operator_image(self, name: str) -> None:
        """Remember which image of the operator the real nodes have."""
        self._write({**self._read(), "operator_image": name})

    def forget(self) -> None:
        """Drop what was read: the folder has been removed."""
        self._content = None

    def _write(self, content: dict[str, Any]) -> None:
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(content, indent=2))
        temporary.rename(self._file)
        self._content = content

    def _read(self) -> dict[str, Any]:
        if self._content is None:
            try:
                self._content = json.loads(self._file.read_text())
            except FileNotFoundError as error:
                raise RuntimeError(f"the cluster {self.folder.name!r} is not up") from error
        assert self._content is not None
        return self._content
