"""The small run that faults are injected into: its data, its model, and the result of an undisturbed run."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tests.tiny_model import make_tiny

from fedloom.experiment.experiment import Experiment
from fedloom.run_log import CHECKS
from fedloom.runs.run_setup import Models
from fedloom.runs.single_run import resume_run, run_experiment
from fedloom.system.progress import Progress

METHODS = {
    "fedavg": ("fedavg", "lora"),
    "fedadam": ("fedadam", "both"),
    "scaffold": ("scaffold", "both"),
    "share-connector": ("fedavg", "share-connector"),
}
"""What is trained, by name: a method with nothing, with server state, with client state, and with personal parts."""

EXAMPLES = 12
TIMES = ("seconds", "timers", "started", *CHECKS)


@dataclass(frozen=True)
class World:
    """A folder with data and a model, the name of the method that is trained on them, and the seed."""

    place: Path
    name: str
    seed: int = 0

    @property
    def data(self) -> Path:
        return self.place / "data"

    @property
    def model(self) -> Path:
        return self.place / "model"

    @property
    def experiment(self) -> Experiment:
        method, strategy = METHODS[self.name]
        values = {
            "name": self.name,
            "seed": self.seed,
            "data": {"name": "folder", "root": str(self.data), "test_share": 0.3, "max_rejected": 0.2},
            "scenario": {"clients": 3, "partition": "iid", "pattern": "hybrid"},
            "model": {"path": str(self.model), "threads": 1},
            "strategy": {"name": strategy, "rank": 2},
            "train": {"rounds": 3, "batch_size": 4, "cohort": 2},
            "methods": ["zero-shot", method],
            "evaluate": {"every": 2},
            "engine": {"workers": 1, "side_by_side": 1, "cache": False},
        }
        return Experiment.from_json(json.dumps(values))

    def copy(self, place: Path) -> World:
        """Copy data and model, so that they can be damaged too."""
        shutil.copytree(self.place, place)
        return World(place, self.name, self.seed)

    def run(self, out: Path, models: Models | None = None) -> None:
        run_experiment(self.experiment, out, Progress(None), models)

    def go_on(self, out: Path, models: Models | None = None) -> None:
        """Do what a user does after a fault: resume, or run again if the run had not begun."""
        if (out / "experiment.json").exists():
            resume_run(out, Progress(None), models)
        else:
            self.run(out, models)


def make_world(place: Path, name: str) -> World:
    """Write the data and the model."""
    world = World(place, name)
    world.data.mkdir(parents=True)
    rows = []
    for number in range(EXAMPLES):
        values = np.random.default_rng(number).integers(0, 256, (12, 13, 3), dtype=np.uint8)
        Image.fromarray(values).save(world.data / f"{number}.png")
        row = {
            "image": f"{number}.png",
            "text": f"note {number}",
            "question": "Which?",
            "answer": "ab"[number % 2],
        }
        rows.append(json.dumps(row) + "\n")
    (world.data / "data.jsonl").write_text("".join(rows))
    make_tiny(world.model)
    return world


def outcome(out: Path) -> dict[str, object]:
    """Return the results of a finished run without times: scores, predictions, adapters, and the lines of its log by key."""
    adapters = {
        file.relative_to(out).as_posix(): file.read_bytes()
        for file in (out / "adapter").rglob("adapter_model.*")
    }
    lines = [_timeless(json.loads(line)) for line in (out / "record.jsonl").read_text().splitlines()]
    kept = {
        (line["kind"], line["method"], line.get("client"), line["round"], line.get("slice")): line
        for line in lines
        if line["kind"] in ("round", "evaluation")
    }
    predictions = (out / "predictions.jsonl").read_bytes()
    result = _timeless(json.loads((out / "result.json").read_text()))
    return {"result": result, "record": kept, "predictions": predictions, **adapters}


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in TIMES}
    return [_timeless(one) for one in value] if isinstance(value, list) else value
