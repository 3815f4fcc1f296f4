"""Engines of tests and benchmarks listen where no connection comes from."""

from __future__ import annotations

import socket
from pathlib import Path

from engine_ports import free_port

FROM = 19900


def test_it_is_the_first_port_at_which_nothing_listens():
    first = free_port(FROM)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        assert free_port(FROM) > first
    assert free_port(FROM) == first


def test_no_connection_gets_its_local_port_from_there():
    least = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert free_port(FROM) < least
