"""Check which interfaces of a server a site can reach."""

from __future__ import annotations

import base64
import http.client
import ssl
import time
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies_environment
from urllib.request import proxy_bypass_environment as bypasses  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]

from fedloom.engine.flower_processes import Security, hosts_without_proxy

HIDDEN = (
    "/v1/control/start-run",
    "/v1/control/list-runs",
    "/v1/runtime/pull-task-input",
    "/v1/fleet/../control/start-run",
)
"""Paths that no site may reach, because they allow anyone to run code at all sites."""

PING = "/v1/fleet/ping"

SECONDS = 10.0

AHEAD, BEHIND = 5, 305
"""Seconds by which a site's clock may be ahead of its server's, and behind it: Flower refuses what a site signed later or earlier."""


@dataclass(frozen=True)
class _Answer:
    """A server's answer: its status, 0 if it is not HTTP, and seconds by which this clock is ahead of the server's."""

    status: int
    ahead: float | None


def join_address(host: str, port: int) -> str:
    """Return HOST:PORT, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def connection_problem(host: str, port: int, security: Security) -> str | None:
    """Return why a site cannot work with a server, or None if their connection and their clocks are right.

    Args:
        host: The server's name or address.
        port: Its port.
        security: How the site's connection is secured.
    """
    address, proxy = join_address(host, port), None if security.plain else _proxy(host)
    try:
        answer = _ask(host, port, security, PING)
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", None) or error.reason
        return f"{address} does not show a certificate that this site trusts: {reason}"
    except OSError as error:
        through = f" through the proxy {proxy.hostname} of HTTPS_PROXY" if proxy else ""
        return f"{address} cannot be reached{through}: {error.strerror or error}"
    if not answer.status:
        tls = "without TLS" if security.plain else "with TLS"
        return f"{address} does not answer {tls} as a server of fedloom does"
    if answer.ahead is None or -BEHIND < answer.ahead < AHEAD:
        return None
    difference = timedelta(seconds=round(abs(answer.ahead)))
    return (
        f"this machine's clock is {difference} {'ahead of' if answer.ahead > 0 else 'behind'} that of the server, and may be "
        f"at most {AHEAD} seconds ahead and {BEHIND} behind; set it, for example with NTP"
    )


def check_server(host: str, port: int, security: Security) -> list[tuple[bool, str]]:
    """Request what sites need of a server, and what they must not reach.

    Args:
        host: The server's name or address.
        port: Its port.
        security: How the site's connection is secured.

    Returns:
        For each check, whether it passed and its result in words.
    """
    if problem := connection_problem(host, port, security):
        return [(False, problem)]
    status = _ask(host, port, security, PING).status
    checks = [
        (
            status != 403,
            f"{join_address(host, port)} is reached, {'' if security.plain else 'its certificate is trusted, '}and the clocks agree",
        )
    ]
    for path in HIDDEN:
        try:
            status = _ask(host, port, security, path).status
        except OSError:
            status = 403  # nothing answered
        checks.append(
            (status == 403, f"{path} is {'refused' if status == 403 else f'answered with {status}'}")
        )
    return checks


def _ask(host: str, port: int, security: Security, path: str) -> _Answer:
    """Send a request on the way that Flower's SuperNode takes: with TLS, through the proxy of the environment."""
    proxy = None if security.plain else _proxy(host)
    at, to = (proxy.hostname or "", proxy.port or 80) if proxy else (host, port)
    if security.plain:
        connection = http.client.HTTPConnection(at, to, timeout=SECONDS)
    else:
        trust = ssl.create_default_context(cafile=str(security.authority))
        connection = http.client.HTTPSConnection(at, to, timeout=SECONDS, context=trust)
    if proxy:
        connection.set_tunnel(host, port, _login(proxy))
    try:
        connection.request("POST", path, b"")
        answer = connection.getresponse()
        return _Answer(answer.status, _ahead(answer.getheader("Date")))
    except http.client.HTTPException:
        return _Answer(0, None)
    finally:
        connection.close()


def _proxy(host: str) -> SplitResult | None:
    """Return the HTTP proxy through which connections with TLS to a host go, or None."""
    proxies = getproxies_environment()
    address = proxies.get("https") or proxies.get("all") or ""
    parts = urlsplit(address if "://" in address else f"http://{address}")
    direct = not address or bypasses(host, {"no": hosts_without_proxy()})
    return None if direct or parts.scheme != "http" else parts


def _login(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def _ahead(date: str | None) -> float | None:
    """Return the seconds by which this machine's clock is ahead of the time in an answer's head."""
    try:
        return None if date is None else time.time() - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
