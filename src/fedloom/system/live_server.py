"""Serve one page on this machine alone, to those who know a token: one that shows a value, or one that asks for answers."""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fedloom.system.errors import UserError, error_sentence
from fedloom.system.json_files import to_json

HOST = "127.0.0.1"

MOST_BYTES = 70_000_000
"""Bytes of the longest request: the largest image that fedloom reads, in base64."""

Asked = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""A function from the JSON object that a page sends to the one that it gets."""


def live_server(port: int, state: Callable[[], dict[str, Any]]) -> tuple[ThreadingHTTPServer, str]:
    """Return a server of the page that follows a value, which it gets from `/state`; nothing can be changed through it.

    Args:
        port: The port; 0 takes a free one.
        state: Returns the JSON value, each time it is asked for. What it raises is shown on the page.

    Raises:
        UserError: The port is in use.
    """
    page = resources.files("fedloom.system").joinpath("live_page.html").read_text(encoding="utf-8")
    return page_server(port, page, {"/state": state}, {})


def page_server(
    port: int, page: str, values: Mapping[str, Callable[[], Mapping[str, Any]]], asked: Mapping[str, Asked]
) -> tuple[ThreadingHTTPServer, str]:
    """Return a server that is bound to this machine's loopback address, and the address of its page, with its token.

    Args:
        port: The port; 0 takes a free one.
        page: The page, as HTML; the word NONCE in it is replaced.
        values: Path → a function that returns a JSON object, for GET.
        asked: Path → a function from a JSON object to another one, for POST; empty allows no POST.

    Raises:
        UserError: The port is in use.
    """
    try:
        server = _PageServer((HOST, port), _Asking if asked else _Showing)
    except OSError as error:
        raise UserError(
            f"port {port} cannot be used ({error.strerror}); give another one with --port"
        ) from None
    server.page, server.values, server.asked = page, values, asked
    return server, f"http://{HOST}:{server.server_port}/?token={server.token}"


class _PageServer(ThreadingHTTPServer):
    daemon_threads = True
    page: str
    values: Mapping[str, Callable[[], Mapping[str, Any]]]
    asked: Mapping[str, Asked]

    def __init__(self, *place: Any) -> None:
        super().__init__(*place)
        self.token = secrets.token_urlsafe(18)


class _Showing(BaseHTTPRequestHandler):
    """Answers GET and HEAD of the page and the values."""

    server_version, sys_version = "fedloom", ""

    @property
    def _of(self) -> _PageServer:
        assert isinstance(self.server, _PageServer)
        return self.server

    def do_GET(self) -> None:
        """Answer a request."""
        self._show(body=True)

    def do_HEAD(self) -> None:
        """Answer a request without its body."""
        self._show(body=False)

    def _show(self, *, body: bool) -> None:
        path = urlsplit(self.path).path
        if not self._allowed(body):
            return
        if path == "/":
            nonce = secrets.token_urlsafe(16)
            self._send(200, "text/html", self._of.page.replace("NONCE", nonce), body, nonce)
        elif path in self._of.values:
            self._send(200, "application/json", to_json(_value(self._of.values[path])), body)
        else:
            self._send(404, "text/plain", "there is nothing here", body)

    def _allowed(self, body: bool = True) -> bool:
        """Return whether a request comes from this machine with the token; if not, it is refused."""
        own = self._of.server_port
        given = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
        # A page of another origin that resolves its name to this machine still sends its own name.
        if self.headers.get("Host") not in (f"{HOST}:{own}", f"localhost:{own}"):
            self._send(403, "text/plain", "this page is for this machine only", body)
            return False
        if not hmac.compare_digest(given.encode(), self._of.token.encode()):
            words = "the token is missing or wrong; use the address that fedloom printed"
            self._send(403, "text/plain", words, body)
            return False
        return True

    def _send(self, code: int, kind: str, text: str, body: bool = True, nonce: str = "") -> None:
        """Send an answer, with headers that let a page load nothing from elsewhere."""
        content, own = text.encode(), ""
        if nonce:
            own = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'"
        self.send_response(code)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Content-Security-Policy": f"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; {own}",
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing, because addresses hold the token."""


class _Asking(_Showing):
    """Answers POST too."""

    def do_POST(self) -> None:
        """Answer a request with a JSON object."""
        path, length = urlsplit(self.path).path, self.headers.get("Content-Length", "")
        if not self._allowed():
            return
        if path not in self._of.asked:
            self._send(404, "text/plain", "there is nothing here")
        elif self.headers.get("Content-Type") != "application/json":
            self._send(415, "text/plain", "a JSON object is needed")
        elif not length.isdecimal() or int(length) > MOST_BYTES:
            self._send(413, "text/plain", f"at most {MOST_BYTES:,} bytes can be sent")
        else:
            content, answer = self.rfile.read(int(length)), self._of.asked[path]
            self._send(200, "application/json", to_json(_value(lambda: answer(_object(content)))))


def _object(content: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError("a JSON object is needed")
    return value


def _value(make: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return a value, or the reason why there is none; a page goes on after an error."""
    try:
        return make()
    except Exception as error:
        return {"error": error_sentence(error)}
