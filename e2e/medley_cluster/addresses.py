"""Which addresses a cluster uses: each cluster on the machine has an index, and subnets that follow from it.

Sixteen clusters fit. The index is claimed by a file that names the cluster's state folder, and given back by `down`.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

from medley_cluster.cache import cache_root, exclusive

MOST_CLUSTERS = 16
SERVICE_PORTS = (8000, 30000, 8080)
_PORTS_TRIED = 1000


@dataclass(frozen=True)
class Addresses:
    """The networks of the cluster with this index. Every node's pods have a /24 of their own."""

    index: int

    @property
    def bridge(self) -> str:
        """The bridge's name."""
        return f"medley{self.index}"

    @property
    def node_network(self) -> ipaddress.IPv4Network:
        """The network of the bridge."""
        return ipaddress.IPv4Network(f"10.244.{self.index * 16}.0/24")

    @property
    def host(self) -> str:
        """The machine's own address on the bridge: the API server and Prometheus listen on it."""
        return str(self.node_network[1])

    @property
    def simulation(self) -> str:
        """The address of the network namespace that answers for simulated pods."""
        return str(self.node_network[2])

    def node(self, number: int) -> str:
        """The address of the real node with this number."""
        return str(self.node_network[10 + number])

    def node_pods(self, number: int) -> ipaddress.IPv4Network:
        """The subnet of this real node's pods."""
        return ipaddress.IPv4Network(f"10.245.{self.index * 16 + number}.0/24")

    @property
    def simulated_pods(self) -> ipaddress.IPv4Network:
        """The subnet of simulated pods."""
        return ipaddress.IPv4Network(f"10.246.{self.index * 16}.0/20")

    @property
    def services(self) -> ipaddress.IPv4Network:
        """The range of cluster IPs."""
        return ipaddress.IPv4Network(f"10.247.{self.index * 16}.0/20")

    @property
    def dns(self) -> str:
        """The cluster IP of the name server."""
        return str(self.services[10])

    @property
    def api_service(self) -> str:
        """The cluster IP of the API server."""
        return str(self.services[1])


def _claims() -> Path:
    return cache_root() / "clusters" / ".indexes"


def claim_index(state_dir: Path) -> int:
    """The index of the cluster with this state folder, claimed if it has none. Claims of vanished clusters lapse."""
    claims = _claims()
    claims.mkdir(parents=True, exist_ok=True)
    with exclusive(claims / "lock"):
        taken: dict[int, str] = {}
        for claim in claims.glob("[0-9]*"):
            owner = claim.read_text()
            if owner == str(state_dir):
                return int(claim.name)
            if Path(owner).is_dir():
                taken[int(claim.name)] = owner
        for index in range(MOST_CLUSTERS):
            if index not in taken:
                (claims / str(index)).write_text(str(state_dir))
                return index
    raise RuntimeError(f"{MOST_CLUSTERS} clusters exist already: {', '.join(sorted(taken.values()))}")


def release_index(state_dir: Path) -> None:
    """Give the index of the cluster with this state folder back."""
    claims = _claims()
    if not claims.is_dir():
        return
    with exclusive(claims / "lock"):
        for claim in claims.glob("[0-9]*"):
            if claim.read_text() == str(state_dir):
                claim.unlink()


def primary_address() -> str:
    """An address of this machine that is not loopback; for clusters that may not make a bridge of their own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def free_port(address: str, preferred: int) -> int:
    """The first port from `preferred` on at which nothing listens at this address.

    One that the kernel picks would be of the range from which it takes the local ports of connections: somebody's next
    connection may have it before it is listened on.
    """
    for port in range(preferred, preferred + _PORTS_TRIED):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port at {address} from {preferred} on")
