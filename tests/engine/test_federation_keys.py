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


@pytest.mark.parametrize("age", [0, 800])
def test_after_the_command_the_certificate_is_valid_and_names_the_hosts(tmp_path: Path, age: int) -> None:
    """Hosts that are given later are added, and a certificate that has expired is renewed; sites need nothing new."""
    from fedloom.engine.federation_keys import (
        make_keys,
        require_usable,
        server_context,
        server_security,
        site_security,
        trusting_context,
    )

    make_keys(tmp_path, ["a.example.org"], ["north"], datetime.now(UTC) - timedelta(days=age))
    trust = trusting_context(site_security(tmp_path / "site-north"))
    assert make_keys(tmp_path, ["fed.example.org", "[fd00::7]"], ["north"]) == [tmp_path / "server"]
    require_usable(server_security(tmp_path))
    for name in ("a.example.org", "fed.example.org", "fd00::7", "127.0.0.1", "::1"):
        assert shaken(server_context(server_security(tmp_path)), trust, name) is None
    assert make_keys(tmp_path, ["fed.example.org", "fd00::7"], ["north"]) == []
    (tmp_path / "authority" / "ca.key").unlink()
    with pytest.raises(UserError, match=r"does not name b\.example\.org, and .*ca\.key is missing"):
        make_keys(tmp_path, ["b.example.org"], ["north"])


@pytest.mark.parametrize(
    "host", ["fed.example.org:8470", "https://fed.example.org", "10.0.0.7:1", "a b", "münchen.de"]
)
def test_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    from fedloom.engine.federation_keys import make_keys

    with pytest.raises(UserError, match="is not the name or the address of a host"):
        make_keys(tmp_path, [host], ["north"])
    assert list(tmp_path.iterdir()) == []


def test_keys_that_cannot_work_are_named_before_the_start(tmp_path: Path) -> None:
    from fedloom.engine.federation_keys import make_keys, require_usable, server_security, site_security

    ours, theirs, old = (tmp_path / name for name in ("ours", "theirs", "old"))
    for folder in (ours, theirs):
        make_keys(folder, [], ["north"])
        require_usable(server_security(folder))
        require_usable(site_security(folder / "site-north"))
    make_keys(old, [], ["north"], datetime.now(UTC) - timedelta(days=800))
    with pytest.raises(UserError, match=r"server\.crt expired on .*`fedloom keys`"):
        require_usable(server_security(old))
    require_usable(site_security(old / "site-north"))  # the authority outlives the server's certificate
    file, content = ours / "server" / "ca.crt", (ours / "server" / "ca.crt").read_bytes()
    file.write_bytes((theirs / "server" / "ca.crt").read_bytes())
    with pytest.raises(UserError, match="was not signed by the authority"):
        require_usable(server_security(ours))
    file.write_bytes(content)
    (ours / "server" / "server.key").write_bytes((theirs / "server" / "server.key").read_bytes())
    with pytest.raises(UserError, match="is not the certificate of"):
        require_usable(server_security(ours))
    for name, words in (("ca.crt", "holds no certificate"), ("node.key", "holds no private key")):
        (theirs / "site-north" / name).write_bytes(content[:100])
        with pytest.raises(UserError, match=rf"{name} {words}"):
            require_usable(site_security(theirs / "site-north"))
        make_keys(tmp_path / name, [], ["north"])
        (theirs / "site-north" / name).write_bytes((tmp_path / name / "site-north" / name).read_bytes())


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
