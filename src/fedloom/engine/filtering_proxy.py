"""The proxy in front of Flower: it passes on the requests of sites, and refuses all others.

Flower serves sites, users and its own processes on one port, and anyone who reaches the users' interface can run code at
all sites. So Flower listens on the loopback device only, and this proxy, on the address that sites know, passes on paths
below `/v1/fleet/`. Requests are parsed strictly: one for each connection, with a plain path and one length; a request that
can be read in two ways is refused.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from fedloom.system.errors import UserError

HEAD = 64 * 1024
"""Largest number of bytes in the head of a request."""

CHUNK = 1 << 20
HEAD_SECONDS = 30.0
"""Seconds within which a client must send the head of its request."""

IDLE_SECONDS = 60.0
"""Seconds without a byte after which a connection is given up; Flower's clients wait for an answer for at most 30."""

ALLOWED = re.compile(rb"/v1/fleet/[a-z0-9-]+")
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\x80-\xff\t]*)")
REFUSED = "HTTP/1.1 {} {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Request:
    """The head of a request that is passed on.

    Attributes:
        head: The head as it is passed on.
        length: Bytes of the body; None if it comes in chunks.
    """

    head: bytes
    length: int | None


class Refused(Exception):
    """A request that is not passed on.

    Attributes:
        status: The number and the text of the answer.
    """

    def __init__(self, number: int, words: str) -> None:
        super().__init__(words)
        self.status = (number, words)


def parse_head(head: bytes) -> Request:
    """Parse the head of a request.

    Args:
        head: All bytes up to the empty line, which is included.

    Raises:
        Refused: The request is not passed on.

    Example:
        >>> parse_head(b"GET /v1/fleet/ping HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n").length
        0
    """
    first, *lines = head[: -len(b"\r\n\r\n")].split(b"\r\n")
    words = first.split(b" ")
    if len(words) != 3 or words[0] not in (b"GET", b"POST") or words[2] != b"HTTP/1.1":
        raise Refused(400, "Bad Request")
    if not ALLOWED.fullmatch(words[1]):
        raise Refused(403, "Forbidden")
    kept, lengths, chunked = [first], list[bytes](), list[bytes]()
    for line in lines:
        match = FIELD.fullmatch(line)
        if match is None:
            raise Refused(400, "Bad Request")
        name, value = match[1].lower(), match[2].strip()
        if name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            chunked.append(value)
        if name in (b"upgrade", b"expect"):
            raise Refused(400, "Bad Request")
        if name not in (b"connection", b"keep-alive", b"proxy-connection", b"te"):
            kept.append(line)
    if len(lengths) + len(chunked) > 1 or any(not re.fullmatch(rb"[0-9]{1,15}", one) for one in lengths):
        raise Refused(400, "Bad Request")
    if chunked and chunked != [b"chunked"]:
        raise Refused(400, "Bad Request")
    kept.append(b"Connection: close")
    return Request(b"\r\n".join(kept) + b"\r\n\r\n", None if chunked else int(lengths[0]) if lengths else 0)


async def _pass_on(
    target: int, trust: ssl.SSLContext | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Pass one request on, and its answer back."""
    up: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(HEAD_SECONDS) as limit:

            def moved() -> None:
                limit.reschedule(asyncio.get_running_loop().time() + IDLE_SECONDS)

            try:
                request = parse_head(await reader.readuntil(b"\r\n\r\n"))
            except asyncio.LimitOverrunError:
                raise Refused(431, "Request Header Fields Too Large") from None
            moved()
            answer, up = await asyncio.open_connection("127.0.0.1", target, ssl=trust, limit=HEAD)
            up.write(request.head)
            if request.length is None:
                await _pass_chunks(reader, up, moved)
            else:
                await _pass_bytes(reader, up, request.length, moved)
            while content := await answer.read(CHUNK):
                writer.write(content)
                await writer.drain()
                moved()
    except Refused as refused:
        writer.write(REFUSED.format(*refused.status).encode())
    except TimeoutError:  # one of the two is silent, and may not take what is left either
        for one in (up, writer):
            if one is not None:
                one.transport.abort()
    except (OSError, EOFError):  # one of the two has ended
        pass
    finally:
        for one in (up, writer):
            if one is not None:
                with suppress(OSError, ssl.SSLError):
                    one.close()
                    await one.wait_closed()


async def _pass_bytes(
    reader: asyncio.StreamReader, up: asyncio.StreamWriter, count: int, moved: Callable[[], None]
) -> None:
    while count:
        content = await reader.read(min(count, CHUNK))
        if not content:
            raise EOFError
        count -= len(content)
        up.write(content)
        await up.drain()
        moved()


async def _pass_chunks(
    reader: asyncio.StreamReader, up: asyncio.StreamWriter, moved: Callable[[], None]
) -> None:
    """Pass on a body in chunks, up to its last one; trailers are refused."""
    while True:
        line = await reader.readuntil(b"\r\n")
        if not re.fullmatch(rb"[0-9a-fA-F]{1,15}\r\n", line):
            raise Refused(400, "Bad Request")
        size = int(line, 16)
        up.write(line)
        await _pass_bytes(reader, up, size + 2 if size else 0, moved)
        if not size:
            if await reader.readexactly(2) != b"\r\n":
                raise Refused(400, "Bad Request")
            up.write(b"\r\n")
            await up.drain()
            return


@contextmanager
def filtering_proxy(
    host: str, port: int, target: int, identity: ssl.SSLContext | None, trust: ssl.SSLContext | None
) -> Iterator[None]:
    """Run the proxy in a thread while the block runs.

    Args:
        host: The address at which sites reach it.
        port: Its port.
        target: Flower's port on the loopback device.
        identity: The server's certificate and key; None means no TLS.
        trust: Checks Flower's certificate; None means no TLS.

    Raises:
        UserError: The address cannot be used.
    """
    loop, ready = asyncio.new_event_loop(), threading.Event()
    failed = list[OSError]()
    stopped = asyncio.Event()

    async def listen() -> None:
        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _pass_on(target, trust, reader, writer)

        try:
            server = await asyncio.start_server(one, host, port, ssl=identity, limit=HEAD)
        except OSError as error:
            failed.append(error)
            ready.set()
            return
        ready.set()
        async with server:
            await stopped.wait()
            server.close()

    def work() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(listen())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=work, daemon=True, name="filtering proxy")
    thread.start()
    ready.wait()
    if failed:
        thread.join()
        raise UserError(
            f"--listen: {f'[{host}]' if ':' in host else host}:{port} cannot be used: {failed[0].strerror or failed[0]}"
        )
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(10)
