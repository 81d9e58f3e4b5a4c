"""Disturb either side of a real federation at random moments; the result must be that of an undisturbed run in one process."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tests.federated import PATIENCE, FederatedRun, descendants, flower_process

from campaign.world import World, outcome

SITES = {"north": "0,2", "south": "1"}
STOPPED_SECONDS = 10.0


def _site_killed(run: FederatedRun) -> None:
    run.kill("south", signal.SIGKILL)
    run.start_site("south")


def _site_ended(run: FederatedRun) -> None:
    run.kill("south", signal.SIGTERM)
    run.start_site("south")


def _site_stopped(run: FederatedRun) -> None:
    """Stop a site with all of its processes for a while."""
    stopped = descendants(run.processes["south"].pid)
    for how in (signal.SIGSTOP, signal.SIGCONT):
        for pid in stopped:
            try:
                os.kill(pid, how)
            except ProcessLookupError:
                continue
        if how == signal.SIGSTOP:
            time.sleep(STOPPED_SECONDS)


def _server_killed(run: FederatedRun) -> None:
    run.kill("server", signal.SIGKILL)
    run.start_server()


def _server_ended(run: FederatedRun) -> None:
    run.kill("server", signal.SIGTERM)
    run.start_server()


def _superlink_killed(run: FederatedRun) -> None:
    os.kill(flower_process(run, "server", "flower-superlink"), signal.SIGKILL)


def _supernode_killed(run: FederatedRun) -> None:
    os.kill(flower_process(run, "south", "flower-supernode"), signal.SIGKILL)


def _both_killed(run: FederatedRun) -> None:
    """Kill both sides, and start the site before its server."""
    for name in ("server", "south"):
        run.kill(name, signal.SIGKILL)
    run.start_site("south")
    run.start_server()


FAULTS: dict[str, Callable[[FederatedRun], None]] = {
    "site killed": _site_killed,
    "server killed": _server_killed,
    "SuperLink killed": _superlink_killed,
    "SuperNode killed": _supernode_killed,
    "site stopped": _site_stopped,
    "both sides killed": _both_killed,
    "site ended": _site_ended,
    "server ended": _server_ended,
}
"""Kind of fault → what is done to a run that has begun. What ended is started again by the same command."""


def federations(world: World, folder: Path, count: int, seed: int) -> dict[str, list[str]]:
    """Disturb a run over two sites `count` times, each time at a random moment between its first and its last round.

    Args:
        world: The small run.
        folder: An empty folder to work in.
        count: Number of disturbed runs; kinds of faults take turns.
        seed: Decides about the moments.

    Returns:
        Kind of fault → for each fault "same", or the failure.
    """
    world.run(folder / "here")
    wanted, rng = _shared(outcome(folder / "here")), np.random.default_rng(seed)
    experiment = folder / "experiment.json"
    experiment.write_text(world.experiment.to_json())
    seconds = _undisturbed(folder / "undisturbed", experiment)
    outcomes: dict[str, list[str]] = {}
    for number in range(count):
        kind = list(FAULTS)[number % len(FAULTS)]
        moment = float(rng.uniform(0, seconds))
        place = folder / f"run-{number}"
        outcomes.setdefault(kind, []).append(_disturbed(place, experiment, FAULTS[kind], moment, wanted))
    return outcomes


def _undisturbed(place: Path, experiment: Path) -> float:
    """Run over sites without a fault; return the seconds between the last joining and the end of the server."""
    place.mkdir()
    with FederatedRun(place, experiment, SITES) as run:
        run.until(lambda: run.told("server").count("site joined") == len(SITES))
        begun = time.monotonic()
        assert run.wait() == [0, 0, 0], run.told()
        return time.monotonic() - begun


def _disturbed(
    place: Path,
    experiment: Path,
    fault: Callable[[FederatedRun], None],
    moment: float,
    wanted: dict[str, object],
) -> str:
    place.mkdir()
    with FederatedRun(place, experiment, SITES) as run:
        run.until(lambda: run.told("server").count("site joined") == len(SITES))
        end = time.monotonic() + moment
        while time.monotonic() < end and not (place / "there" / "result.json").exists():
            time.sleep(0.1)
        try:
            fault(run)
            code = run.processes["server"].wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return f"after {moment:.1f} s, the server hangs"
        except AssertionError as error:  # it had ended just before
            return "same" if run.processes["server"].wait(PATIENCE) == 0 else str(error)
    if code:
        return f"after {moment:.1f} s, the server ended with exit code {code}"
    got = _shared(outcome(place / "there"))
    odd = [key for key in wanted if got.get(key) != wanted[key]]
    return f"after {moment:.1f} s, different: {', '.join(odd)}" if odd else "same"


def _shared(result: dict[str, Any]) -> dict[str, object]:
    """Return what a run over sites has in common with one in one process: adapters, scores and recorded bytes."""
    adapters = {name: content for name, content in result.items() if name.startswith("adapter/")}
    return {**adapters, "scores": result["result"]["scores"], "bytes": result["result"]["bytes"]}
