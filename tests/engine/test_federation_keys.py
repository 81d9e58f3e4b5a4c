"""Keys of a federation: who trusts whom, who can read what, and what happens when sites are added."""

from __future__ import annotations

import importlib.util
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedloom.engine.filtering_proxy import filtering_proxy
from fedloom.engine.flower_processes import Security, free_port
from fedloom.engine.server_check import check_server
from fedloom.system.errors import UserError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("cryptography") is None,
    reason="cryptography is not installed; it comes with `pip install 'fedloom[flower]'`",
)


def shaken(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> str | None:
    """Shake hands; return why it failed, or None."""
    one, other = socket.socketpair()
    failed: list[str] = []

    def serve() -> None:
        try:
            with server.wrap_socket(one, server_side=True):
                pass
        except (ssl.SSLError, OSError):
            one.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(other, server_hostname=name):
            pass
    except (ssl.SSLError, OSError) as error:
        failed.append(str(error))
    thread.join()
    return failed[0] if failed else None


def test_a_site_trusts_its_server_and_no_other(tmp_path: Path) -> None:
    from fedloom.engine.federation_keys import (
        make_keys,
        server_context,
        server_security,
        site_security,
        trusting_context,
    )

    make_keys(tmp_path / "a", ["fed.example.org", "10.0.0.7"], ["north"])
    make_keys(tmp_path / "b", ["fed.example.org"], ["north"])
    ours, theirs = (server_context(server_security(tmp_path / one)) for one in "ab")
    trust = trusting_context(site_security(tmp_path / "a" / "site-north"))
    for name in ("fed.example.org", "10.0.0.7", "127.0.0.1", "localhost"):
        assert shaken(ours, trust, name) is None
    assert "verify failed" in str(shaken(theirs, trust, "fed.example.org"))
    assert "not valid for" in str(shaken(ours, trust, "other.example.org"))


def test_a_certificate_that_has_expired_is_refused(tmp_path: Path) -> None:
    from fedloom.engine.federation_keys import (
        make_keys,
        server_context,
        server_security,
        site_security,
        trusting_context,
    )

    make_keys(tmp_path, [], ["north"], datetime.now(UTC) - timedelta(days=4000))
    trust = trusting_context(site_security(tmp_path / "site-north"))
    assert "expired" in str(shaken(server_context(server_security(tmp_path)), trust, "localhost"))


def test_only_owners_read_secrets(tmp_path: Path) -> None:
    from fedloom.engine.federation_keys import make_keys

    make_keys(tmp_path, [], ["north"])
    secrets = list(tmp_path.rglob("*.key"))
    assert {one.relative_to(tmp_path).as_posix() for one in secrets} == {
        "authority/ca.key",
        "server/server.key",
        "site-north/node.key",
    }
    assert {stat.S_IMODE(one.stat().st_mode) for one in secrets} == {0o600}
    assert sorted(one.name for one in (tmp_path / "site-north").iterdir()) == ["ca.crt", "node.key"]


def test_sites_are_added_without_changing_what_is_there(tmp_path: Path) -> None:
    from fedloom.engine.federation_keys import make_keys, server_security

    make_keys(tmp_path, [], ["north"])
    before = {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()}
    (tmp_path / "authority" / "ca.key").unlink()  # it is kept elsewhere, and not needed for a site
    made = make_keys(tmp_path, [], ["north", "south"])
    assert made == [tmp_path / "site-south"]
    assert all(path.read_bytes() == content for path, content in before.items() if path.exists())
    assert [one.stem for one in server_security(tmp_path).public] == ["north", "south"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    from fedloom.engine.federation_keys import make_keys, server_security, site_security

    with pytest.raises(UserError, match=r"ca\.crt is missing; `fedloom keys`"):
        site_security(tmp_path)
    with pytest.raises(UserError, match=r"ca\.crt is missing"):
        server_security(tmp_path)
    with pytest.raises(UserError, match="cannot name a site"):
        make_keys(tmp_path, [], ["../x"])
    assert list(tmp_path.iterdir()) == []


def test_a_checkup_finds_what_a_site_must_not_reach(tmp_path: Path) -> None:
    """Behind the front all is well; the same server without the front is not."""
    from fedloom.engine.federation_keys import make_keys, server_context, server_security, site_security

    make_keys(tmp_path, [], ["north"])
    security = site_security(tmp_path / "site-north")
    with socket.create_server(("127.0.0.1", 0)) as behind:

        def answer() -> None:
            while True:
                try:
                    connection, _ = behind.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        open_port, port = behind.getsockname()[1], free_port()
        with filtering_proxy("127.0.0.1", port, open_port, server_context(server_security(tmp_path)), None):
            found = check_server("127.0.0.1", port, security)
            assert all(good for good, _ in found), found
            assert len(found) > 3
            ((good, told),) = check_server("127.0.0.1", port, Security())
            assert not good
            assert "does not answer without TLS" in told
            make_keys(tmp_path / "other", [], ["north"])
            ((good, told),) = check_server(
                "127.0.0.1", port, site_security(tmp_path / "other" / "site-north")
            )
            assert not good
            assert "does not show a certificate that this site trusts" in told
        found = check_server("127.0.0.1", open_port, Security())
        assert [good for good, _ in found] == [True, *[False] * (len(found) - 1)]
    ((good, told),) = check_server("127.0.0.1", free_port(), security)
    assert not good
    assert "cannot be reached" in told
