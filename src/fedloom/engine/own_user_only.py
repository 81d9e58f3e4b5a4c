"""Start a process of Flower whose port on the loopback device answers the processes of this user only.

    python -m fedloom.engine.own_user_only flower-superlink --insecure --host 127.0.0.1 --port 9092

Flower listens on TCP and has no login, so any user of the machine could otherwise use its interfaces and run code at all sites.
Linux lists the owner of both ends of each connection of the loopback device; a request whose other end belongs to somebody
else is refused. Other systems list no owners, so there all requests are answered.
"""

# Flower comes with an extra, which need not be installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import import_module
from importlib.metadata import entry_points
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

CONNECTIONS = Path("/proc/net/tcp")
"""The file in which Linux lists the connections of IPv4, with the owner of the near end of each."""

ESTABLISHED = "01"
"""The state of a connection that both ends hold open; in other states its owner may be gone, and is listed as root."""

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]
"""An application of the ASGI standard."""


def owner_of(table: str, near: tuple[str, int], far: tuple[str, int]) -> int | None:
    """Return the user who holds the near end of a connection, or None if there is no such open connection.

    Args:
        table: The content of `CONNECTIONS`.
        near: Address and port of the near end.
        far: Those of the far end.

    Example:
        >>> head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\\n"
        >>> row = "   0: 0100007F:D903 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 71 1\\n"
        >>> owner_of(head + row, ("127.0.0.1", 55555), ("127.0.0.1", 8080))
        1000
    """
    ends = [_spell(*near), _spell(*far)]
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1:3] == ends and fields[3] == ESTABLISHED:
            return int(fields[7])
    return None


def own_user_only(app: App, user: int, connections: Path = CONNECTIONS) -> App:
    """Return an application that answers only requests of a user, and of root.

    Args:
        app: The application that answers them.
        user: The user's number.
        connections: The file that lists connections.
    """

    async def guarded(
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan" or _is_of(scope, user, connections):
            await app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close", "code": 1008})

    return guarded


def _is_of(scope: Message, user: int, connections: Path) -> bool:
    if not scope.get("client") or not scope.get("server"):
        return False
    owner = owner_of(connections.read_text(), tuple(scope["client"]), tuple(scope["server"]))
    return owner in (user, 0)


def _spell(address: str, port: int) -> str:
    """Spell an address and a port as `CONNECTIONS` does: the address in the machine's byte order."""
    return f"{int.from_bytes(IPv4Address(address).packed, sys.byteorder):08X}:{port:04X}"


def main(command: str) -> None:
    """Run a command of Flower with its arguments, and answer the requests of this user only."""
    if CONNECTIONS.exists():
        config: Any = import_module("uvicorn").Config
        plain = config.__init__

        def with_guard(self: Any, app: App, *arguments: Any, **options: Any) -> None:
            plain(self, own_user_only(app, os.getuid()), *arguments, **options)

        config.__init__ = with_guard
    (found,) = entry_points(group="console_scripts", name=command)
    found.load()()


if __name__ == "__main__":
    del sys.argv[0]
    main(sys.argv[0])
