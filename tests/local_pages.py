"""A page that fedloom serves to this machine, in a thread, and requests to it."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer
from urllib.parse import urlsplit


@contextmanager
def serving(server: HTTPServer, address: str) -> Iterator[tuple[str, str]]:
    """Serve until the block ends; yield host and port, and the query of the address, which has the token."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    parts = urlsplit(address)
    try:
        yield parts.netloc, parts.query
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def request(
    place: str, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Return the status, the headers by their names in lower case, and the body of an answer."""
    connection = http.client.HTTPConnection(place, timeout=600)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
