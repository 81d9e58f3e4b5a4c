"""Run a command that ends when whoever started it ends, however that was: `python guard.py COMMAND...`.

The starter holds the other end of this process's standard input. When that closes, the command is asked to end, and is
killed ten seconds later. Flower's long-lived processes have no such option of their own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

PATIENCE = 10.0
"""Seconds that a command has to end."""


def guard(command: list[str]) -> int:
    """Run a command; return its exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def end(*_: object) -> None:
        child.terminate()
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()

    def watch() -> None:
        while os.read(0, 1):  # not through a buffer, whose lock would be held when this process ends
            pass
        end()

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=watch, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
