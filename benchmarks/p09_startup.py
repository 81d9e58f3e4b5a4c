"""P9: the start-up of a command that needs no model, against importing torch."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.harness import Bench, Measured, pairs

TORCH = ("-c", "import torch")
HELP = ("-m", "fedloom", "--help")
IMPORT = ("-c", "import fedloom")


def _python(*arguments: str) -> Callable[[], None]:
    def run() -> None:
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    return run


def against_torch(command: tuple[str, ...]) -> Callable[[], Measured]:
    """Compare a whole command with an interpreter that only imports torch."""

    def measure() -> Measured:
        times = pairs(_python(*command), _python(*TORCH), 9, clock=time.perf_counter)
        return times.cost, times.summary(ours=" ".join(command[-1:]), rival="import torch")

    return measure


def seconds() -> Measured:
    """Measure the wall seconds of `fedloom --help`."""
    times = pairs(_python(*HELP), _python("-c", "pass"), 9, clock=time.perf_counter)
    return times.ours, times.summary(ours="--help", rival="an empty interpreter")


ROWS = {
    "P9-help": Bench("--help / import torch", 0.10, 0.20, against_torch(HELP), higher=False),
    "P9-import": Bench("import fedloom / torch", 0.10, 0.20, against_torch(IMPORT), higher=False),
    "P9-seconds": Bench("seconds of --help", 0.3, None, seconds, higher=False, unit="s"),
}
