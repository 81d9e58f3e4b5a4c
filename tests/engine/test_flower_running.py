"""A SuperLink and SuperNodes that run already are used as they are; Flower's ports answer only their own user."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.federated import PATIENCE

from fedloom.engine.flower_processes import Security, free_port, stop, superlink, supernode
from fedloom.engine.own_user_only import CONNECTIONS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("flwr") is None,
        reason="Flower is not installed; `pip install 'fedloom[flower]'`",
    ),
]

NOBODY = 65534


@pytest.fixture
def running(tmp_path: Path) -> Iterator[int]:
    """The port of a SuperLink without TLS that somebody runs."""
    port = free_port()
    process = superlink(port, Security(), tmp_path / "operator")
    yield port
    stop(process)


def status(port: int, user: int) -> bytes:
    """Request Flower's interface for users as another user; return the first line of the answer."""
    "127.0.0.1".encode("idna")  # loads what the other user may not read
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setuid(user)
            with socket.create_connection(("127.0.0.1", port), 120) as connection:
                connection.sendall(
                    b"POST /v1/control/list-runs HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n"
                )
                os.write(writing, connection.recv(1000).partition(b"\r\n")[0])
        except OSError as error:
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as answer:
        return answer.read()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
@pytest.mark.skipif(not CONNECTIONS.exists(), reason="this system does not list the owners of connections")
def test_another_user_of_the_machine_cannot_use_flower(running: int) -> None:
    assert status(running, NOBODY) == b"HTTP/1.1 403 Forbidden"
    assert status(running, os.getuid()).startswith(b"HTTP/1.1 ")
    assert b"403" not in status(running, os.getuid())


def test_a_run_over_flower_that_runs_already(tiny_model: Path, tmp_path: Path, running: int) -> None:
    """Each site listens at a socket that the configuration of a running SuperNode names."""
    value = {
        "methods": ["fedavg"],
        "model": {"path": str(tiny_model), "threads": 1},
        "train": {"rounds": 1},
        "data": {"name": "shapes", "limit": 16},
        "scenario": {"clients": 2},
        "engine": {"side_by_side": 1, "workers": 1},
    }
    file = tmp_path / "experiment.json"
    file.write_text(json.dumps(value))
    fedloom = [sys.executable, "-m", "fedloom"]
    subprocess.run(
        [*fedloom, "run", str(file), "--out", str(tmp_path / "here"), "--quiet"],
        check=True,
        capture_output=True,
    )
    sites, nodes = {"north": "1", "south": "0"}, list[subprocess.Popen[bytes]]()
    address = f"127.0.0.1:{running}"
    where = ["--superlink", address, "--insecure", "--out", str(tmp_path / "there")]
    commands = {"server": [*fedloom, "server", str(file), *where]}
    for site, clients in sites.items():
        path = str(tmp_path / f"{site}.socket")
        nodes.append(supernode(address, Security(), {"socket": path}, tmp_path / f"node-{site}"))
        commands[site] = [*fedloom, "site", "--name", site, "--clients", clients, "--socket", path]
        commands[site] += ["--out", str(tmp_path / site)]
    processes = {
        name: subprocess.Popen(command, stderr=(tmp_path / f"{name}.log").open("wb"))
        for name, command in commands.items()
    }
    try:
        told = {name: tmp_path / f"{name}.log" for name in processes}
        for name, process in processes.items():
            assert process.wait(PATIENCE) == 0, (name, *(log.read_text() for log in told.values()))
        assert all(node.poll() is None for node in nodes), "what somebody else runs goes on"
    finally:
        for process in processes.values():
            process.terminate()
        for node in nodes:
            stop(node)
    adapter = "adapter/adapter_model.safetensors"
    assert (tmp_path / "here" / adapter).read_bytes() == (tmp_path / "there" / adapter).read_bytes()
    assert not (tmp_path / "there" / "flower" / "superlink.log").exists()
