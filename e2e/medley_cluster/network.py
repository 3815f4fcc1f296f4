"""The cluster's links: a bridge on the machine, and a network namespace for each node and for the simulated pods.

All that a node does to a network (kube-proxy's tables, its pods' bridge, forwarding) happens inside its namespace and
ends with it; on the machine itself there are only one bridge, its ports and a route for each pod subnet.
No global network setting is changed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

from medley_cluster.addresses import Addresses
from medley_cluster.toolchain import ToolError, run_checked

NAMESPACES = Path("/run/netns")


def why_no_network() -> str | None:
    """The reason why this process may not make links, or None."""
    if os.geteuid() != 0:
        return "not root"
    if not shutil.which("ip"):
        return "no `ip` command (package iproute2)"
    if not shutil.which("nsenter"):
        return "no `nsenter` command (package util-linux)"
    return None


class ClusterNetwork:
    """Makes and removes the links of one cluster; every method can be repeated."""

    def __init__(self, addresses: Addresses) -> None:
        self.addresses = addresses

    def namespace(self, name: str) -> str:
        """The name of one of its namespaces: `sim`, `node0`, …."""
        return f"{self.addresses.bridge}-{name}"

    def inside(self, name: str) -> list[str]:
        """The words to put before a command that shall run in a namespace (mounts stay the machine's)."""
        return ["nsenter", f"--net={NAMESPACES / self.namespace(name)}"]

    def create_bridge(self) -> None:
        """The bridge, with the machine's own address on it."""
        bridge, addresses = self.addresses.bridge, self.addresses
        if bridge not in _links():
            _ip("link", "add", bridge, "type", "bridge")
        _ip("address", "replace", f"{addresses.host}/{addresses.node_network.prefixlen}", "dev", bridge)
        _ip("link", "set", bridge, "up")

    def create_simulation_namespace(self) -> None:
        """A namespace in which every simulated pod's address is local, so that one server answers for them all."""
        self._attach("sim", self.addresses.simulation)
        pods = str(self.addresses.simulated_pods)
        _ip("route", "replace", "local", pods, "dev", "lo", inside=self.inside("sim"))
        _ip("route", "replace", pods, "via", self.addresses.simulation)

    def create_node_namespace(self, number: int, nodes: int) -> None:
        """A namespace for a real node, with routes to every other node's pods."""
        name, addresses = f"node{number}", self.addresses
        self._attach(name, addresses.node(number))
        inside = self.inside(name)
        run_checked([*inside, "tee", "/proc/sys/net/ipv4/ip_forward"], stdin="1")
        _ip("route", "replace", str(addresses.simulated_pods), "via", addresses.simulation, inside=inside)
        for other in range(nodes):
            if other != number:
                _ip("route", "replace", str(addresses.node_pods(other)), "via", addresses.node(other), inside=inside)
        _ip("route", "replace", str(addresses.node_pods(number)), "via", addresses.node(number))
        sim = self.inside("sim")
        _ip("route", "replace", str(addresses.node_pods(number)), "via", addresses.node(number), inside=sim)
        if number == 0:
            _ip("route", "replace", str(addresses.services), "via", addresses.node(0))

    def set_connected(self, number: int, connected: bool) -> None:
        """Pull a node's cable, or put it back: a network partition."""
        _ip("link", "set", self._port(f"node{number}"), "up" if connected else "down")

    def remove(self) -> None:
        """Remove the namespaces and the bridge; their routes, addresses and tables go with them."""
        prefix = f"{self.addresses.bridge}-"
        for path in sorted(NAMESPACES.glob(f"{prefix}*")) if NAMESPACES.is_dir() else []:
            subprocess.run(["ip", "netns", "delete", path.name], capture_output=True, check=False)
        for link in [link for link in _links() if link.startswith(f"{self.addresses.bridge}p-")]:
            subprocess.run(["ip", "link", "delete", link], capture_output=True, check=False)
        if self.addresses.bridge in _links():
            _ip("link", "delete", self.addresses.bridge)

    def leftovers(self) -> list[str]:
        """What of this cluster is still on the machine; empty after `remove`."""
        found = [f"namespace {path.name}" for path in NAMESPACES.glob(f"{self.addresses.bridge}-*")]
        found += [f"link {link}" for link in _links() if link.startswith(f"{self.addresses.bridge}p-")]
        if self.addresses.bridge in _links():
            found.append(f"bridge {self.addresses.bridge}")
        return found

    def _port(self, name: str) -> str:
        return f"{self.addresses.bridge}p-{name[:5]}"[:15]

    def _attach(self, name: str, address: str) -> None:
        namespace, port = self.namespace(name), self._port(name)
        if not (NAMESPACES / namespace).exists():
            _ip("netns", "add", namespace)
        if port not in _links():
            _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", port, "master", self.addresses.bridge, "up")
        inside = self.inside(name)
        _ip("link", "set", "lo", "up", inside=inside)
        _ip("address", "replace", f"{address}/{self.addresses.node_network.prefixlen}", "dev", "eth0", inside=inside)
        _ip("link", "set", "eth0", "up", inside=inside)
        _ip("route", "replace", "default", "via", self.addresses.host, inside=inside)


def _links() -> list[str]:
    """The links of this process's network namespace (what /sys shows may belong to another one)."""
    return sorted(name for _, name in socket.if_nameindex())


def _ip(*words: str, inside: list[str] | None = None) -> None:
    try:
        run_checked([*(inside or []), "ip", *words])
    except ToolError as error:
        raise ToolError(f"the network cannot be made: {error}") from error
