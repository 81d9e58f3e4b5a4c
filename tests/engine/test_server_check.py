"""What keeps a site from working with a server is named: its certificate, its clock, or that it is not there."""

from __future__ import annotations

import importlib.util
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.request import proxy_bypass_environment

import pytest

from fedloom.engine.flower_processes import LOOPBACK, Security, environment
from fedloom.engine.server_check import AHEAD, BEHIND, connection_problem

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("cryptography") is None,
    reason="cryptography is not installed; it comes with `pip install 'fedloom[flower]'`",
)


@contextmanager
def server(context: ssl.SSLContext | None, ahead: float) -> Iterator[int]:
    """Answer every request; the server's clock is so many seconds ahead of this one."""

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response_only(404)
            self.send_header("Date", formatdate(time.time() + ahead, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

    listening = HTTPServer(("127.0.0.1", 0), Answering)
    if context is not None:
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield listening.server_address[1]
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def problem(folder: Path, ahead: float, begin: datetime | None = None) -> str | None:
    from fedloom.engine.federation_keys import make_keys, server_context, server_security, site_security

    make_keys(folder, [], ["north"], *([] if begin is None else [begin]))
    with server(server_context(server_security(folder)), ahead) as port:
        return connection_problem("127.0.0.1", port, site_security(folder / "site-north"))


@pytest.mark.parametrize(
    ("ahead", "words"),
    [
        (0, None),
        (BEHIND - 30, None),
        (BEHIND + 30, "clock is 0:05:3"),
        (86400 + 1830, "clock is 1 day, 0:30:"),
        (-AHEAD - 30, "clock is 0:00:3"),
    ],
)
def test_a_clock_that_flower_refuses_is_named(tmp_path: Path, ahead: float, words: str | None) -> None:
    """A site signs the time of each request: Flower accepts what was signed up to 305 seconds before it, or 5 after."""
    found = problem(tmp_path, ahead)
    if words is None:
        assert found is None
        return
    assert words in str(found)
    assert f" {'behind' if ahead > 0 else 'ahead of'} that of the server" in str(found)


@pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="Flower is not installed")
def test_the_limits_are_those_of_flower() -> None:
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    assert (AHEAD, BEHIND) == (SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE)


def test_without_keys_clocks_count_too() -> None:
    """Flower makes a key for a site that has none, and signs with it."""
    with server(None, 86400) as port:
        assert "that of the server" in str(connection_problem("127.0.0.1", port, Security()))


@pytest.mark.parametrize(
    ("begin", "words"),
    [
        (timedelta(days=4000), "certificate has expired"),
        (timedelta(days=-30), "certificate is not yet valid"),
    ],
)
def test_a_certificate_outside_its_time_is_named(tmp_path: Path, begin: timedelta, words: str) -> None:
    """Seen from a site whose clock is years off, any certificate is."""
    assert words in str(problem(tmp_path, 0, datetime.now(UTC) - begin))


@contextmanager
def forwarding_proxy(target: int) -> Iterator[tuple[str, list[str]]]:
    """Forward every CONNECT to a port of this machine; yield the proxy's address and the hosts that were asked for."""
    asked = list[str]()

    def pipe(one: socket.socket, other: socket.socket) -> None:
        try:
            while content := one.recv(65536):
                other.sendall(content)
        except OSError:
            pass

    class Forwarding(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            asked.append(self.path)
            self.send_response_only(200)
            self.end_headers()
            with socket.create_connection(("127.0.0.1", target)) as there:
                back = threading.Thread(target=pipe, args=(there, self.connection))
                back.start()
                pipe(self.connection, there)
                there.shutdown(socket.SHUT_WR)
                back.join()

    listening = HTTPServer(("127.0.0.1", 0), Forwarding)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}", asked
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def test_a_server_is_reached_on_the_way_that_flower_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's SuperNode uses the proxy of the environment, so the check of its way does."""
    from fedloom.engine.federation_keys import make_keys, server_context, server_security, site_security

    make_keys(tmp_path, ["fed.invalid"], ["north"])
    security = site_security(tmp_path / "site-north")
    for name in ("no_proxy", "NO_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    context = server_context(server_security(tmp_path))
    with server(context, 0) as port, forwarding_proxy(port) as (proxy, asked):
        monkeypatch.setenv("https_proxy", proxy)
        assert connection_problem("fed.invalid", 8470, security) is None
        assert asked == ["fed.invalid:8470"]
        assert connection_problem("127.0.0.1", port, security) is None
        assert len(asked) == 1, "the loopback device is reached without it"
        monkeypatch.setenv("no_proxy", "fed.invalid")
        assert "fed.invalid:8470 cannot be reached: " in str(
            connection_problem("fed.invalid", 8470, security)
        )
    monkeypatch.delenv("no_proxy")
    assert "through the proxy 127.0.0.1" in str(connection_problem("fed.invalid", 8470, security))


@pytest.mark.parametrize("named", [None, "example.org", "*"])
def test_processes_of_flower_use_no_proxy_on_this_machine(
    named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    if named is not None:
        monkeypatch.setenv("NO_PROXY", named)
    there = environment(tmp_path)
    assert there["no_proxy"] == there["NO_PROXY"]
    for host in (*LOOPBACK, *filter(None, [named])):
        assert proxy_bypass_environment(host, {"no": there["no_proxy"]})
