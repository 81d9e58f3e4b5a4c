"""Measure a real federation: bytes on the wire, memory of each process, and seconds to go on after each kind of fault.

    python -m benchmarks.federation_costs [SITES]

`fedloom server` and two sites (or as many as given) train a tiny model over loopback without TLS, through relays that count bytes.
Prints JSON: bytes of the connections against recorded bytes per round; the highest resident memory of each kind of process;
and for each kind of fault the seconds until the next round is in the record, beside those of an undisturbed round.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from tests.faulty_relay import FaultyRelay  # noqa: E402
from tests.federated import FederatedRun, descendants  # noqa: E402
from tests.tiny_model import make_tiny  # noqa: E402

from campaign.federations import FAULTS  # noqa: E402

QUIET_ROUNDS = 6
ROLES = (
    "flower-superlink",
    "flower-supernode",
    "flower-superexec",
    "flwr-serverapp",
    "flwr-clientapp",
    "end_with_parent",
)
SAMPLE_SECONDS = 0.2


class Memory(threading.Thread):
    """Sample the highest resident memory of every process of a run, by kind."""

    def __init__(self, run: FederatedRun) -> None:
        super().__init__(daemon=True)
        self.run_, self.ended, self.peak = run, threading.Event(), dict[str, float]()

    def run(self) -> None:
        """Sample until the end."""
        while not self.ended.wait(SAMPLE_SECONDS):
            for name, process in list(self.run_.processes.items()):
                for pid in descendants(process.pid):
                    with suppress(OSError, StopIteration, IndexError):
                        kind = _kind(pid, process.pid, name)
                        status = Path(f"/proc/{pid}/status").read_text().splitlines()
                        line = next(one for one in status if one.startswith("VmHWM"))
                        self.peak[kind] = max(self.peak.get(kind, 0.0), int(line.split()[1]) / 1024)


def _kind(pid: int, side: int, name: str) -> str:
    """Return what a process is: one of fedloom's sides, or one of Flower's programs."""
    if pid == side:
        return "fedloom server" if name == "server" else "fedloom site"
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    programs = [Path(word).name.removesuffix(".py") for word in words[:6]]
    return next((role for role in ROLES if role in programs), programs[0] or "ended")


def experiment_of(folder: Path, sites: int) -> Path:
    """Write an experiment with a client at each site, and more rounds than are measured."""
    make_tiny(folder / "model")
    value = {
        "methods": ["scaffold"],
        "model": {"path": str(folder / "model"), "threads": 1},
        "train": {"rounds": 1000},
        "evaluate": {"every": 0},
        "data": {"name": "shapes", "limit": 8 * sites},
        "scenario": {"clients": sites},
        "engine": {"side_by_side": 1, "workers": 1},
    }
    file = folder / "experiment.json"
    file.write_text(json.dumps(value))
    return file


def last_round(run: FederatedRun) -> int:
    """Return the number of the last round in the record, or -1."""
    return max((int(str(one["round"])) for one in run.events("round")), default=-1)


def await_next_round(run: FederatedRun) -> None:
    """Wait until a round is in the record that is not there now."""
    known = last_round(run)
    while last_round(run) <= known:
        time.sleep(0.05)


def main(count: int) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="costs-")))
        names = ["south", *(f"site-{k}" for k in range(1, count))]
        run = FederatedRun(
            folder, experiment_of(folder, count), {name: str(k) for k, name in enumerate(names)}
        )
        relays = [stack.enter_context(FaultyRelay(run.port)) for _ in names]
        run.ports = {name: relay.port for name, relay in zip(names, relays, strict=True)}
        with run:
            memory = Memory(run)
            memory.start()
            await_next_round(run)
            before, seconds = sum(one.carried for one in relays), list[float]()
            first = len(run.events("round"))
            for _ in range(QUIET_ROUNDS):
                begun = time.monotonic()
                await_next_round(run)
                seconds.append(time.monotonic() - begun)
            carried = sum(one.carried for one in relays) - before
            rounds = run.events("round")[first : first + QUIET_ROUNDS]
            recorded = sum(int(str(one["bytes_up"])) + int(str(one["bytes_down"])) for one in rounds)
            recovery = dict[str, float]()
            for kind, fault in FAULTS.items():
                begun = time.monotonic()
                fault(run)
                await_next_round(run)
                recovery[kind] = round(time.monotonic() - begun, 1)
                await_next_round(run)
            memory.ended.set()
            memory.join()
        print(
            json.dumps(
                {
                    "sites": count,
                    "seconds a round": round(statistics.median(seconds), 2),
                    "bytes a round": {
                        "connections": carried // QUIET_ROUNDS,
                        "recorded": recorded // QUIET_ROUNDS,
                    },
                    "highest memory in MB": {kind: round(one) for kind, one in sorted(memory.peak.items())},
                    "seconds to the next round after": recovery,
                    "load": round(os.getloadavg()[0], 1),
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
