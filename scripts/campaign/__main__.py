"""Inject faults into a small run and count the outcomes: `python -m campaign` from the folder `scripts`.

    python scripts/campaign [--kills N] [--damages N] [--federations N] [--seed N]

After a kill or a full disk, `fedloom resume` must give the bytes of the undisturbed run. A damaged file must be named,
or change nothing. A run over two sites of which either side, or Flower between them, is killed, ended or stopped must give the
bytes of the run in one process, if Flower is installed. Hostile images, records, model folders, updates and recipes are in `tests/hostile`, and the tests
that try them are run at the end. The exit code is 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import torch  # noqa: E402

from campaign.damage import damages  # noqa: E402
from campaign.federations import federations  # noqa: E402
from campaign.kills import kills  # noqa: E402
from campaign.world import METHODS, make_world  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=240)
    parser.add_argument("--damages", type=int, default=2400)
    parser.add_argument("--federations", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-inputs", action="store_true", help="do not run the tests of hostile inputs")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["FEDLOOM_CACHE"] = f"{temporary}/cache"
        for number, name in enumerate(METHODS):
            place = Path(temporary) / name
            world = make_world(place / "world", name)
            share = chosen.kills // len(METHODS)
            for kind, ends in kills(world, place / "kills", share, chosen.seed + number).items():
                print(f"{name:16} {kind:24} {len(ends):5}  {_counts(Counter(ends))}", flush=True)
                wrong += [f"{name}, {kind}: {end}" for end in ends if end != "same"]
        if chosen.federations and importlib.util.find_spec("flwr") is None:
            print("no run over sites: Flower is not installed", flush=True)
        elif chosen.federations:
            place = Path(temporary) / "federations"
            world = make_world(place / "world", "scaffold")
            for kind, ends in federations(world, place, chosen.federations, chosen.seed).items():
                print(f"{'over two sites':16} {kind:24} {len(ends):5}  {_counts(Counter(ends))}", flush=True)
                wrong += [f"over two sites, {kind}: {end}" for end in ends if end != "same"]
        for number, name in enumerate(("scaffold", "share-connector")):
            place = Path(temporary) / f"damage-{name}"
            world = make_world(place / "world", name)
            outcomes, faults = damages(world, place / "trials", chosen.damages // 2, chosen.seed + number)
            for kind, fates in sorted(outcomes.items()):
                print(f"{name:16} {kind:44} {fates.total():5}  {_counts(fates)}", flush=True)
            wrong += faults
    for line in wrong:
        print(f"WRONG: {line}")
    print(
        f"{chosen.kills} kills and full disks, {chosen.damages} damages, {chosen.federations} federations, {len(wrong)} wrong",
        flush=True,
    )
    inputs = (
        0
        if chosen.no_inputs
        else subprocess.call([sys.executable, "-m", "pytest", "-q", "-k", "hostile"], cwd=ROOT)
    )
    return int(bool(wrong) or bool(inputs))


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common())


if __name__ == "__main__":
    sys.exit(main())
