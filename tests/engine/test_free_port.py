"""Ports for Flower's processes are free, and not those that the system gives to others in the meantime."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from fedloom.engine import flower_processes
from fedloom.engine.flower_processes import PORTS, free_port


def test_a_port_that_is_in_use_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as used:
        port = int(used.getsockname()[1])
        monkeypatch.setattr(flower_processes, "PORTS", range(port, port + 1))
        assert free_port() != port


def test_the_system_gives_no_such_port_to_others() -> None:
    """Two processes asked the system for a port; it gave both the same one, since the first did not listen yet."""
    assert free_port() in PORTS
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not given.exists():
        pytest.skip("this system does not list its ports")
    low, high = map(int, given.read_text().split())
    assert not set(PORTS) & set(range(low, high + 1))
