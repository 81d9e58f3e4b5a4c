"""A whole run over a quantized decoder, from its plan to its report, and what may not be done with its result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.shares import share

from fedloom.experiment.experiment import Experiment
from fedloom.runs.export_models import export_from_run
from fedloom.runs.plan_run import plan_run
from fedloom.runs.single_run import run_experiment
from fedloom.system.errors import UserError
from fedloom.system.progress import make_progress

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


def experiment(tiny_model: Path, quantize: str | None) -> Experiment:
    values = {
        "name": "quantized",
        "data": {"name": "emoji", "limit": 18, "test_share": 0.03},
        "scenario": {"clients": 3},
        "model": {"path": str(tiny_model), "threads": 1, "quantize": quantize, "precision": "float32"},
        "strategy": {"name": "both", "rank": 2},
        "train": {"rounds": 2, "batch_size": 4, "micro_batch": 2},
        "methods": ["zero-shot", "fedavg"],
    }
    return Experiment.from_json(json.dumps(values))


@pytest.mark.parametrize("kind", share(["nf4", "int8"], every=2))
def test_a_run_over_a_quantized_decoder(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    chosen = experiment(tiny_model, kind)
    plain, planned = plan_run(experiment(tiny_model, None)), plan_run(chosen)
    assert planned.weights["llm"] < plain.weights["llm"]
    assert {part: planned.weights[part] for part in ("encoder", "connector")} == {
        part: plain.weights[part] for part in ("encoder", "connector")
    }
    assert planned.trained == plain.trained
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        run_experiment(chosen, folder, make_progress(quiet=True))
    one, two = ((folder / "adapter/adapter_model.safetensors").read_bytes() for folder in folders)
    assert one == two
    result = json.loads((folders[0] / "result.json").read_text())
    assert set(result["scores"]) == {"zero-shot", "fedavg"}
    export_from_run(folders[0], tmp_path / "adapter", method="fedavg")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    with pytest.raises(
        UserError, match=r"quantized layers \(model\.quantize\).* export the adapter without --merged"
    ):
        export_from_run(folders[0], tmp_path / "merged", method="fedavg", merged=True)
