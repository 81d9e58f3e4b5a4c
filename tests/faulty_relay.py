"""A relay between a site and its server whose faults can be switched on and off: delay, broken and silent connections."""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import suppress

CHUNK = 1 << 16


class FaultyRelay:
    """Pass connections on to a port of the loopback device; ends with the block.

    Args:
        target: The port.
        delay: Seconds by which all bytes come later, in either direction.
        broken: Share of connections that are reset after some of their bytes.
        seed: Decides which.

    Attributes:
        port: The relay's own port.
        silent: Whether connections stay open and carry nothing, as behind a router that lost its table. Those that were
            open or begun meanwhile stay silent for ever.
        counts: Number of connections that were passed on, reset, and silent.
        carried: Bytes that were passed on, in both directions.
    """

    def __init__(self, target: int, delay: float = 0.0, broken: float = 0.0, seed: int = 0) -> None:
        self._target, self._delay, self._broken = target, delay, broken
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.silent = False
        self.counts = {"whole": 0, "reset": 0, "silent": 0}
        self.carried = 0
        self._ended = False

    def __enter__(self) -> FaultyRelay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            left = self._random.randrange(2000) if self._random.random() < self._broken else None
            threading.Thread(target=self._pass, args=(connection, left), daemon=True).start()

    def _pass(self, near: socket.socket, left: int | None) -> None:
        """Pass one connection on; reset it after `left` bytes if that is a number."""
        try:
            far = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            near.close()
            return
        budget = [left]
        back = threading.Thread(target=self._copy, args=(far, near, budget), daemon=True)
        back.start()
        self._copy(near, far, budget)
        back.join()
        fate = "silent" if budget == ["silent"] else "reset" if budget == [-1] else "whole"
        self.counts[fate] += 1
        while fate == "silent" and not self._ended:
            time.sleep(0.2)
        for one in (near, far):
            one.close()

    def _copy(self, source: socket.socket, sink: socket.socket, budget: list[object]) -> None:
        """Copy bytes in one direction until the connection ends, is reset or falls silent."""
        with suppress(OSError):
            while content := source.recv(CHUNK):
                time.sleep(self._delay)
                if self.silent:
                    budget[:] = ["silent"]
                if budget == ["silent"]:
                    return
                if isinstance(budget[0], int):
                    if budget[0] < len(content):
                        budget[:] = [-1]
                        for one in (source, sink):
                            # With this option, closing sends a reset.
                            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                            one.shutdown(socket.SHUT_RDWR)
                        return
                    budget[0] -= len(content)
                sink.sendall(content)
                self.carried += len(content)
        with suppress(OSError):
            if budget != ["silent"]:
                sink.shutdown(socket.SHUT_WR)
