"""Run a command that ends when its parent process ends, for whatever reason: `python end_with_parent.py COMMAND...`.

The parent holds the other end of this process's standard input. When that closes, the command gets SIGTERM, and SIGKILL
ten seconds later. Flower's long-lived processes have no such option.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

END_SECONDS = 10.0
"""Seconds between SIGTERM and SIGKILL."""


def run_until_parent_ends(command: list[str]) -> int:
    """Run a command and return its exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def end(*_: object) -> None:
        child.terminate()
        try:
            child.wait(END_SECONDS)
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
    sys.exit(run_until_parent_ends(sys.argv[1:]))
