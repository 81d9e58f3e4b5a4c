"""Measure the time of a round over Flower, and the share that is Flower's own: `python -m benchmarks.flower_floor 2,5,10 [MEGABYTES]`.

Rounds of messages that sites' apps answer at once take turns with rounds of messages that go to the sites' resident
processes and back, in one run, so that both meet the same machine. Prints a line of JSON with seconds a round for each number
of sites. `federation_costs.py` measures bytes, memory and the time to go on after faults.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

from fedloom.engine.flower_link import FlowerLink, flower_link
from fedloom.engine.flower_processes import Security, free_port, stop, supernode
from fedloom.engine.resident_site import OpenRun, ResidentSite, listen, serve
from fedloom.wire.site_messages import SiteMessage

ROUNDS = 6


def main(sites: int, megabytes: float) -> None:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="floor-")))
        port = free_port()
        link = stack.enter_context(flower_link(port, Security(), home / "server", print))
        for number in range(sites):
            listener, path = stack.enter_context(listen())
            site = ResidentSite(str(number), opened, lambda *_: None, lambda _: None)
            site.answer = lambda content: content  # type: ignore[method-assign]
            threading.Thread(target=_answering, args=(site, listener), daemon=True).start()
            place = home / f"site-{number}"
            node = supernode(f"127.0.0.1:{port}", Security(), {"socket": path}, place)
            stack.callback(stop, node)
        while len(link.nodes()) < sites:
            time.sleep(0.2)
        content = SiteMessage("echo", {}, (bytes(int(megabytes * 1e6)),)).to_bytes()
        taken: dict[str, list[float]] = {"nothing": [], "fedloom": []}
        for _ in range(ROUNDS + 1):
            for action, found in taken.items():
                found.append(round_of(link, action, content if action == "fedloom" else b""))
        print(
            json.dumps(
                {
                    "sites": sites,
                    "load": round(os.getloadavg()[0], 1),
                    "megabytes": megabytes,
                    **{action: [round(one, 2) for one in found[1:]] for action, found in taken.items()},
                    "median": {
                        action: round(statistics.median(found[1:]), 2) for action, found in taken.items()
                    },
                }
            )
        )


def round_of(link: FlowerLink, action: str, content: bytes) -> float:
    """Ask all sites once; return the seconds until all have answered."""
    begun = time.perf_counter()
    waiting = [name for node in link.nodes() if (name := link.send(node, content, action, action))]
    while waiting:
        for reply in link.collect(waiting):
            assert reply.error is None, reply.error
            waiting.remove(reply.message)
        time.sleep(0.1)
    return time.perf_counter() - begun


def opened(begin: SiteMessage) -> AbstractContextManager[OpenRun]:
    raise NotImplementedError


def _answering(site: ResidentSite, listener: socket.socket) -> None:
    with suppress(OSError):  # it is closed at the end
        serve(site, listener, lambda _: None)


if __name__ == "__main__":
    for number in sys.argv[1].split(","):
        main(int(number), float(sys.argv[2]) if len(sys.argv) > 2 else 4.0)
