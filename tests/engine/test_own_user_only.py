"""Flower's port answers the processes of its own user only."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedloom.engine.own_user_only import CONNECTIONS, own_user_only, owner_of

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
NEAR, FAR = ("127.0.0.1", 40000), ("127.0.0.1", 9092)


def row(near: str, far: str, state: str, user: int) -> str:
    return f"   1: {near} {far} {state} 00000000:00000000 00:00000000 00000000  {user}        0 71 1 0 20 4\n"


def written(user: int, state: str = "01") -> str:
    """A list with both ends of one connection, of which the far one belongs to the user of the server, 7."""
    ends = [f"{'0100007F' if sys.byteorder == 'little' else '7F000001'}:{port:04X}" for port in (40000, 9092)]
    return HEAD + row(ends[1], ends[0], state, 7) + row(ends[0], ends[1], state, user)


@pytest.mark.parametrize(
    ("table", "owner"),
    [
        (written(1000), 1000),
        (written(0), 0),
        (HEAD, None),
        (written(0, "06"), None),
        (written(0, "04"), None),
    ],
    ids=["open", "root", "unknown", "closed", "closing"],
)
def test_the_owner_is_that_of_the_near_end_of_an_open_connection(table: str, owner: int | None) -> None:
    """A closed connection is listed as root's, whoever had it."""
    assert owner_of(table, NEAR, FAR) == owner


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as near, listener.accept()[0] as far:
            yield near, far


@pytest.mark.skipif(not CONNECTIONS.exists(), reason="this system does not list the owners of connections")
def test_the_owner_of_a_real_connection_is_this_user(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    near, far = connection
    assert owner_of(CONNECTIONS.read_text(), near.getsockname(), far.getsockname()) == os.getuid()


def answered(scope: dict[str, Any], table: Path, user: int) -> list[Any]:
    """Return what a guarded application sends; the application itself sends its name."""
    sent = list[Any]()

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send("the application")

    asyncio.run(own_user_only(app, user, table)(scope, receive, send))
    return sent


@pytest.mark.parametrize(("owner", "passes"), [(1000, True), (0, True), (1001, False)])
def test_requests_of_other_users_are_refused(tmp_path: Path, owner: int, passes: bool) -> None:
    table = tmp_path / "tcp"
    table.write_text(written(owner))
    scope = {"type": "http", "client": NEAR, "server": FAR}
    sent = answered(scope, table, 1000)
    assert (sent == ["the application"]) == passes
    assert passes or sent[0]["status"] == 403
    assert (answered({**scope, "type": "websocket"}, table, 1000) == ["the application"]) == passes


def test_a_request_whose_connection_is_not_listed_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    table.write_text(HEAD)
    for ends in ({"client": NEAR, "server": FAR}, {"client": None, "server": FAR}, {}):
        assert answered({"type": "http", **ends}, table, 1000)[0]["status"] == 403
    assert answered({"type": "lifespan"}, table, 1000) == ["the application"]
