"""Faults of a site's process: a full disk, a connection that breaks, a folder in use, and a server that it cannot read."""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.engine.test_federation import Mail, backend_of, federation, resident, two_sites

from fedloom.engine.flower_link import FlowerReply
from fedloom.engine.flower_processes import Security, free_port
from fedloom.engine.participation import WaitingTerms
from fedloom.engine.resident_site import ResidentSite, listen, serve
from fedloom.experiment.experiment import Experiment
from fedloom.runs import site_run
from fedloom.runs.server_run import ListenAddress, serve_experiment
from fedloom.runs.site_run import SiteOptions, run_site
from fedloom.system.errors import UserError
from fedloom.system.progress import Progress
from fedloom.wire.site_messages import SiteMessage, connect_to_socket, receive_bytes, send_bytes

BEGIN = SiteMessage("begin").to_bytes()


class Ended(Exception):
    """Ends a site from outside."""


def served(site: ResidentSite, ask: Callable[[str], None]) -> Exception:
    """Serve a site while `ask` is called with the path of its socket; return the error that ended the site."""
    asked = threading.Event()

    def asking(path: str) -> None:
        with suppress(OSError, EOFError):
            ask(path)
        asked.set()

    def end_when_asked(idle: float) -> None:
        if asked.is_set():
            raise Ended

    with listen() as (listener, path):
        thread = threading.Thread(target=asking, args=(path,))
        thread.start()
        with pytest.raises((Ended, UserError)) as caught:
            serve(site, listener, end_when_asked, seconds=0.05)
    thread.join()  # what is still waiting got an end when the listener closed
    return caught.value


def test_what_cannot_be_listed_does_not_leave_and_ends_the_site() -> None:
    """The same command takes part again when there is space."""
    site, left = resident("north", backend_of()), list[bytes]()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "sites/north/left-this-site.jsonl")

    def ask(path: str) -> None:
        with connect_to_socket(path) as stream:
            send_bytes(stream, BEGIN)
            left.append(receive_bytes(stream))

    site.log_departure = full
    error = served(site, ask)
    assert isinstance(error, UserError)
    assert "sites/north/left-this-site.jsonl: no space is left on the disk" in str(error)
    assert left == []


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x05" + bytes(7) + b"ab"])
def test_a_connection_that_breaks_ends_no_site(content: bytes) -> None:
    """Whatever part of a message came before; the next message is answered."""
    site, left = resident("north", backend_of()), list[bytes]()

    def ask(path: str) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            connection.sendall(content)
        with socket.socket(socket.AF_UNIX) as connection:  # it does not wait for its answer
            connection.connect(path)
            connection.sendall(len(BEGIN).to_bytes(8, "little") + BEGIN)
        with connect_to_socket(path) as stream:
            send_bytes(stream, BEGIN)
            left.append(receive_bytes(stream))

    assert isinstance(served(site, ask), Ended)
    assert [SiteMessage.from_bytes(one).kind for one in left] == ["joined"]


HOLD = """
import sys
from pathlib import Path
from fedloom.runs.run_lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("here", flush=True)
    sys.stdin.read()
"""


def as_site(folder: Path) -> None:
    run_site(SiteOptions("north", folder, "127.0.0.1:1", Security(), (0,)), print)


def as_server(folder: Path) -> None:
    address = ListenAddress("127.0.0.1", free_port(), Security())
    serve_experiment(Experiment(), folder, Progress(None), address, WaitingTerms(join=0.1))


@pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="Flower is not installed")
@pytest.mark.parametrize(("side", "locked"), [(as_site, "."), (as_server, "flower")])
def test_two_processes_do_not_share_a_folder(
    side: Callable[[Path], None], locked: str, tmp_path: Path
) -> None:
    """The second ends at once, before it starts any process of Flower or writes anything."""
    (tmp_path / locked).mkdir(exist_ok=True)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / locked)], **pipes) as other:
        assert other.stdout is not None and other.stdout.readline() == "here\n"
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match="another process is working in it"):
            side(tmp_path)
        other.kill()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("reason", ["its key is that of site west", None])
def test_a_site_that_took_no_part_says_so_at_the_end(
    reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that starts the site sees it by the exit code, whoever refused: the server, or the site itself."""
    monkeypatch.setattr(site_run, "RESTART_SECONDS", 0.1)
    monkeypatch.setattr(site_run, "require_flower", lambda: None)
    place = tmp_path / "socket"
    requests = [SiteMessage("begin", {"version": "0.0"})]
    requests += [SiteMessage("refuse", {"reason": reason})] * (reason is not None)

    def ask() -> None:
        for request in (*requests, SiteMessage("end")):
            with connect_to_socket(str(place)) as stream:
                send_bytes(stream, request.to_bytes())
                receive_bytes(stream)

    shown = list[str]()

    def show(text: str) -> None:
        shown.append(text)

    options = SiteOptions("north", tmp_path, None, Security(), (0,), socket=place)
    thread = threading.Thread(target=lambda: (wait_for(place), ask()))
    thread.start()
    with pytest.raises(UserError, match=f"took no part in the run: {reason or 'the server has fedloom 0.0'}"):
        run_site(options, show)
    thread.join()
    assert "the run is over" in shown


def wait_for(place: Path) -> None:
    """Wait until a site listens at a path."""
    while True:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(place))
            return
        time.sleep(0.01)


def asked(mail: Mail, site: str) -> int:
    """Return how often a site was asked to join."""
    return mail.asked.count((site, "begin"))


def joining(mail: Mail) -> list[tuple[str, Any]]:
    """Wait for all clients, in vain, and return the events."""
    there, noted = federation(mail, WaitingTerms(join=60))
    with pytest.raises(UserError, match="no site that holds client 1 joined"):
        there.enroll()
    return noted


def test_a_site_of_another_version_is_refused_once() -> None:
    """Its refusal is written as its own version writes it, which this one cannot read."""
    mail = two_sites()
    mail.registered = {11: "north", 12: "south"}
    site = mail.nodes_there[12]
    site.answer = lambda content: b"FLE0" + content[4:]  # type: ignore[method-assign]
    refused = [what for kind, what in joining(mail) if kind == "site refused"]
    assert [what["site"] for what in refused] == ["south"]
    assert "another version of fedloom" in refused[0]["reason"]
    assert asked(mail, "south") == 1


def test_a_site_that_is_starting_is_asked_until_it_answers_and_noted_once() -> None:
    mail = two_sites()
    mail.registered = {11: "north", 12: "south"}
    mail.losing = lambda name: None
    send = mail.send

    def failing(node: int, content: bytes, group: str) -> str | None:
        name = send(node, content, group)
        if node == 12 and name is not None and mail.time < 30:
            due, _, _ = mail.on_the_way[name]
            mail.on_the_way[name] = (due, node, FlowerReply(name, b"", "its app does not start"))
        return name

    mail.send = failing  # type: ignore[method-assign]
    there, noted = federation(mail, WaitingTerms(join=60))
    there.enroll()
    assert asked(mail, "south") > 5
    refused = [what for kind, what in noted if kind == "site refused"]
    assert refused == [{"site": "south", "reason": "its app does not start"}]
    assert sorted(there.sites) == ["north", "south"]
