"""Opens sites of other processes for tests, Ray's actors among them, which import it by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tests.clients import asked_about, real_site, tune

from fedloom.client.client_memory import Files
from fedloom.client.site import Site
from fedloom.system.errors import UserError
from fedloom.types import Conversation

CLIENTS = 6


@contextmanager
def opened(model: str, name: str, folder: str, killing: int, times: int) -> Iterator[Site]:
    """Open a site; one client kills its process as often as a number of files says, and then trains."""
    torch.set_num_threads(1)

    def conversations(client: int) -> Sequence[Conversation]:
        deaths = len([*Path(folder).glob("killed-*")])
        if client == killing and deaths < times:
            (Path(folder) / f"killed-{deaths}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return asked_about(client)

    yield real_site(
        tune(Path(model)), name, memory=Files(Path(folder)), conversations=conversations, clients=CLIENTS
    )


@contextmanager
def failing(reason: str) -> Iterator[Site]:
    """Fail to open a site."""
    raise UserError(reason)
    yield


def piece(loaded: dict[str, int], folder: str, number: int) -> str | None:
    """Do a piece of work: 1 kills its process once, 2 kills every one, 3 raises; others succeed."""
    loaded["pieces"] = loaded.get("pieces", 0) + 1
    file = Path(folder) / f"{number}-{len([*Path(folder).glob(f'{number}-*')])}"
    file.write_text(str(loaded["pieces"]))
    if (number == 1 and file.name == "1-0") or number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    if number == 3:
        raise UserError("it is broken")
    return None
