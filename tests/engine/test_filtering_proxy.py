"""Requests of sites pass the proxy; nothing else reaches what is behind it, however it is written."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from fedloom.engine.filtering_proxy import Refused, filtering_proxy, parse_head
from fedloom.engine.flower_processes import free_port
from fedloom.system.errors import UserError


class Behind:
    """A server that keeps what reaches it, and answers each connection once."""

    def __init__(self) -> None:
        self.port, self.came = 0, list[bytes]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(60)
                content = b""
                try:
                    while not self._whole(content):
                        content += connection.recv(65536) or b"!"
                except TimeoutError:
                    self.came.append(content)
                    continue
                self.came.append(content)  # before the answer, after which the test looks
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    @staticmethod
    def _whole(content: bytes) -> bool:
        head, found, body = content.partition(b"\r\n\r\n")
        if b"chunked" in head:
            return body.endswith(b"0\r\n\r\n")
        length = next((int(one[15:]) for one in head.split(b"\r\n") if one.startswith(b"Content-Length:")), 0)
        return bool(found) and len(body) >= length

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def places() -> Iterator[tuple[int, Behind]]:
    behind, port = Behind(), free_port()
    with filtering_proxy("127.0.0.1", port, behind.port, None, None):
        yield port, behind
    behind.close()


def asked(port: int, content: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(content)
        found = b""
        while more := connection.recv(65536):
            found += more
        return found


def request(path: str, body: bytes = b"", *fields: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: here", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_requests_of_sites_pass_whole(places: tuple[int, Behind]) -> None:
    port, behind = places
    body = bytes(range(256)) * 9000
    assert asked(port, request("/v1/fleet/push-object", body)).endswith(b"ok")
    assert behind.came[0].partition(b"\r\n\r\n")[2] == body
    pieces = b"POST /v1/fleet/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert asked(port, pieces).endswith(b"ok")
    assert behind.came[1].endswith(b"3\r\nabc\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run", "/v1/runtime/pull-task-input", "/", "/v1/fleet/", "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run", "//v1/control/start-run", "/v1/fleet/..%2fcontrol", "/v1/fleet/a/b",
        "/V1/control/x", "/v1/fleet/a?x=/v1/control", "/v1/fleet/a#b", "http://x/v1/control/start-run",
        "/v1/fleet/a;b", "/v1\\control\\x", "/v1/control/start-run/../../fleet/x", "*",
    ],
)  # fmt: skip
def test_no_other_path_is_passed_on(places: tuple[int, Behind], path: str) -> None:
    port, behind = places
    assert asked(port, request(path)).startswith(b"HTTP/1.1 403")
    assert behind.came == []


SECOND = b"POST /v1/control/start-run HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    "content",
    [
        b"POST /v1/fleet/a HTTP/1.1\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n" + SECOND,
        b"POST /v1/fleet/a HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n" + SECOND,
        b"POST /v1/fleet/a HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n" + SECOND,
        b"POST /v1/fleet/a HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n" + SECOND,
        b"POST /v1/fleet/a HTTP/1.1\r\nContent-Length: +5\r\n\r\n" + SECOND,
        b"POST /v1/fleet/a HTTP/1.1\r\nA: b\r\n c: d\r\n\r\n" + SECOND,
        b"POST /v1/fleet/a HTTP/1.1\r\nA: b\n\nPOST /v1/control/x HTTP/1.1\r\n\r\n",
        b"POST /v1/fleet/a HTTP/1.0\r\n\r\n" + SECOND,
        b"CONNECT /v1/fleet/a HTTP/1.1\r\n\r\n" + SECOND,
        b"POST /v1/fleet/a HTTP/1.1\r\nUpgrade: h2c\r\n\r\n" + SECOND,
        b"POST  /v1/fleet/a HTTP/1.1\r\n\r\n" + SECOND,
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(places: tuple[int, Behind], content: bytes) -> None:
    port, behind = places
    assert asked(port, content).startswith(b"HTTP/1.1 400")
    assert behind.came == []


def test_a_second_request_of_a_connection_is_not_passed_on(places: tuple[int, Behind]) -> None:
    port, behind = places
    found = asked(port, request("/v1/fleet/a") + SECOND)
    assert found.count(b"HTTP/1.1") == 1
    assert len(behind.came) == 1
    assert b"control" not in behind.came[0]
    assert b"Connection: close" in behind.came[0]


def test_a_head_without_end_is_refused(places: tuple[int, Behind]) -> None:
    port, behind = places
    with suppress(ConnectionResetError):  # as what was sent is not read to its end
        assert asked(port, b"POST /v1/fleet/a HTTP/1.1\r\nA: " + b"x" * 200_000).startswith(b"HTTP/1.1 431")
    assert behind.came == []


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(UserError, match="cannot be used"):
        with filtering_proxy("127.0.0.1", other.getsockname()[1], 1, None, None):
            pass


def test_names_of_fields_are_read_in_any_case() -> None:
    with pytest.raises(Refused):
        parse_head(b"POST /v1/fleet/a HTTP/1.1\r\ncontent-LENGTH: 1\r\nTRANSFER-encoding: chunked\r\n\r\n")
