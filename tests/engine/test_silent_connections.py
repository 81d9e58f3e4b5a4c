"""A connection through the proxy that falls silent is given up, whichever side is silent and whatever it was sending."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

import pytest

from fedloom.engine import filtering_proxy as module
from fedloom.engine.filtering_proxy import filtering_proxy
from fedloom.engine.flower_processes import free_port

HEAD = b"POST /v1/fleet/a HTTP/1.1\r\nHost: here\r\n"
SHORT = 0.3


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v1/fl",
        HEAD + b"Content-Length: 9\r\n\r\nabc",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nab",
        HEAD + b"Content-Length: 3\r\n\r\nabc",
    ],
    ids=["in its head", "in its body", "in a chunk", "whole, and the server is silent"],
)
def test_a_silent_connection_is_closed(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEAD_SECONDS", SHORT)
    monkeypatch.setattr(module, "IDLE_SECONDS", SHORT)
    with socket.create_server(("127.0.0.1", 0)) as behind:
        port = free_port()
        with filtering_proxy("127.0.0.1", port, behind.getsockname()[1], None, None):
            with socket.create_connection(("127.0.0.1", port), timeout=600) as connection:
                with suppress(ConnectionResetError, BrokenPipeError):  # it may be closed before all is sent
                    connection.sendall(sent)
                    assert connection.recv(1) == b""


@pytest.mark.slow
def test_a_slow_connection_is_not_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than the limit as a whole, and never longer without a byte."""
    monkeypatch.setattr(module, "IDLE_SECONDS", 20.0)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    with socket.create_server(("127.0.0.1", 0)) as behind:

        def serve() -> None:
            connection, _ = behind.accept()
            with connection:
                while not connection.recv(65536).endswith(b"z"):
                    pass
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        port = free_port()
        with filtering_proxy("127.0.0.1", port, behind.getsockname()[1], None, None):
            with socket.create_connection(("127.0.0.1", port), timeout=600) as connection:
                connection.sendall(HEAD + b"Content-Length: 12\r\n\r\n")
                for byte in b"aaaaaaaaaaaz":
                    time.sleep(2)
                    connection.sendall(bytes([byte]))
                found = b""
                while more := connection.recv(100):
                    found += more
    assert found == answer
