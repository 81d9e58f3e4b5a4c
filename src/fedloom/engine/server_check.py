"""Check which interfaces of a server a site can reach."""

from __future__ import annotations

import http.client
import ssl

from fedloom.engine.flower_processes import Security

HIDDEN = (
    "/v1/control/start-run",
    "/v1/control/list-runs",
    "/v1/runtime/pull-task-input",
    "/v1/fleet/../control/start-run",
)
"""Paths that no site may reach, because they allow anyone to run code at all sites."""

SECONDS = 10.0


def check_server(host: str, port: int, security: Security) -> list[tuple[bool, str]]:
    """Request what sites need of a server, and what they must not reach.

    Args:
        host: The server's name or address.
        port: Its port.
        security: How the site's connection is secured.

    Returns:
        For each check, whether it passed and its result in words.
    """
    trust = None if security.plain else ssl.create_default_context(cafile=str(security.authority))
    try:
        status = _status(host, port, trust, "/v1/fleet/ping")
    except ssl.SSLError as error:
        return [(False, f"{host}:{port} does not show a certificate that this site trusts: {error.reason}")]
    except OSError as error:
        return [(False, f"{host}:{port} cannot be reached: {error.strerror or error}")]
    if not status:
        tls = "without TLS" if trust is None else "with TLS"
        return [(False, f"{host}:{port} does not answer {tls} as a server of fedloom does")]
    checks = [
        (
            status != 403,
            f"{host}:{port} is reached{'' if trust is None else ', and its certificate is trusted'}",
        )
    ]
    for path in HIDDEN:
        try:
            status = _status(host, port, trust, path)
        except OSError:
            status = 403  # nothing answered
        checks.append(
            (status == 403, f"{path} is {'refused' if status == 403 else f'answered with {status}'}")
        )
    return checks


def _status(host: str, port: int, trust: ssl.SSLContext | None, path: str) -> int:
    connection = (
        http.client.HTTPConnection(host, port, timeout=SECONDS)
        if trust is None
        else http.client.HTTPSConnection(host, port, timeout=SECONDS, context=trust)
    )
    try:
        connection.request("POST", path, b"")
        return connection.getresponse().status
    except http.client.HTTPException:
        return 0
    finally:
        connection.close()
