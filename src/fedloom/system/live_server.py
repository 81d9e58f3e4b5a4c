"""Serve one page and one JSON value on this machine alone, to those who know a token; nothing can be changed through it."""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fedloom.system.errors import UserError
from fedloom.system.json_files import to_json

HOST = "127.0.0.1"


def live_server(port: int, state: Callable[[], dict[str, Any]]) -> tuple[ThreadingHTTPServer, str]:
    """Return a server that is bound to this machine's loopback address, and the address of its page, with its token.

    Args:
        port: The port; 0 takes a free one.
        state: Returns the JSON value, each time it is asked for. What it raises is shown on the page.

    Raises:
        UserError: The port is in use.
    """
    token = secrets.token_urlsafe(18)
    page = resources.files("fedloom.system").joinpath("live_page.html").read_text(encoding="utf-8")

    class Handler(BaseHTTPRequestHandler):
        """Answers GET and HEAD of the page and the value."""

        server_version, sys_version = "fedloom", ""

        def do_GET(self) -> None:
            """Answer a request."""
            self._answer(body=True)

        def do_HEAD(self) -> None:
            """Answer a request without its body."""
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            own = server.server_port
            parts = urlsplit(self.path)
            given = parse_qs(parts.query).get("token", [""])[0]
            # A page of another origin that resolves its name to this machine still sends its own name.
            if self.headers.get("Host") not in (f"{HOST}:{own}", f"localhost:{own}"):
                self._send(403, "text/plain", "this page is for this machine only", body)
            elif not hmac.compare_digest(given.encode(), token.encode()):
                self._send(
                    403,
                    "text/plain",
                    "the token is missing or wrong; use the address that fedloom printed",
                    body,
                )
            elif parts.path == "/":
                nonce = secrets.token_urlsafe(16)
                self._send(200, "text/html", page.replace("NONCE", nonce), body, nonce)
            elif parts.path == "/state":
                self._send(200, "application/json", to_json(_state(state)), body)
            else:
                self._send(404, "text/plain", "there is nothing here", body)

        def _send(self, code: int, kind: str, text: str, body: bool, nonce: str = "") -> None:
            content = text.encode()
            self.send_response(code)
            own = (
                f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'" if nonce else ""
            )
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

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise UserError(
            f"port {port} cannot be used ({error.strerror}); give another one with --port"
        ) from None
    server.daemon_threads = True
    return server, f"http://{HOST}:{server.server_port}/?token={token}"


def _state(state: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return state()
    except (UserError, OSError, json.JSONDecodeError) as error:
        return {"error": str(error)}
