"""Score the models of a finished run on other data, or compute other metrics from its predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedloom.config.validation_errors import unknown_name
from fedloom.data.python_data import examples_of
from fedloom.plugins.plugins import Plugins
from fedloom.runs.finished_run import FinishedRun, Score, scores_of
from fedloom.runs.modality_slices import SLICES, slices_of
from fedloom.runs.run_folder import experiment_to_resume
from fedloom.runs.run_identity import contents_of
from fedloom.runs.run_setup import checked_data, load_run_data
from fedloom.runs.saved_models import SavedModels, open_models
from fedloom.runs.trained_model import TrainedModel
from fedloom.runs.typed_table import Table
from fedloom.system.errors import UserError
from fedloom.system.manifest import Manifest, read_manifest
from fedloom.system.progress import Progress
from fedloom.tasks import Metric
from fedloom.tasks.predictions import Prediction, answers_of, predictions
from fedloom.tasks.score_answers import score
from fedloom.types import DataSet, Example


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of models on some examples, and their answers.

    Attributes:
        scores: The scores, by method and slice.
        predictions: The answers.
        skipped: A sentence for each record of the data that could not be used.
    """

    scores: Table[Score]
    predictions: Table[Prediction]
    skipped: tuple[str, ...] = ()


def evaluate(
    run: FinishedRun,
    data: Any,
    methods: Sequence[str] | None,
    client: int | None,
    metrics: Mapping[str, Any],
    *,
    plugins: Sequence[str] = (),
    changes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Score models; see `fedloom.evaluate`.

    Args:
        run: The run.
        data: Its data.
        methods: The methods, or None.
        client: The client, or None.
        metrics: Name → function or metric.
        plugins: Files of plug-ins with further metrics.
        changes: Current places of data and models.
        progress: Shows the loading and the answering; None shows nothing.
    """
    own = _metrics(metrics, plugins)
    if isinstance(methods, str):
        raise UserError(f"methods: expected a list of names, such as [{methods!r}]")
    if data is None:
        return _from_predictions(run, methods, client, own, changes)
    progress = progress or Progress(None)
    models = open_models(run.folder, changes, run.plugins, progress)
    loaded = checked_data(models.experiment, models.context.vlm, examples_of(data), progress, complete=False)
    examples, skipped = loaded.data.examples, tuple(map(str, loaded.data.rejected))
    if not examples:
        where = data if isinstance(data, str | Path) else "they"
        reason = "; ".join(skipped[:5]) or f"{where} hold{'s' if where is data else ''} no records"
        raise UserError(f"data: no example can be used: {reason}")
    scores, rows = list[Score](), list[Prediction]()
    parts, named = slices_of(examples), list(_with_models(models, methods, client))
    progress.stage("evaluation", len(named) * len(parts))
    for method in named:
        model = TrainedModel(models, models.question(method, None if method == "zero-shot" else client))
        for part in parts:
            judged = model.answer(examples, [SLICES[part]] * len(examples))
            scores += scores_of(method, part, score(examples, judged, own))
            rows += predictions(method, model.client, part, examples, judged)
            progress.advance()
    return Evaluation(Table(Score, scores), Table(Prediction, rows), skipped)


def _with_models(models: SavedModels, methods: Sequence[str] | None, client: int | None) -> Iterator[str]:
    """Yield the given methods, or else all that have a model of the client, or of all clients if it is None."""
    for method in methods if methods is not None else models.experiment.methods:
        if methods is not None:
            yield models.method(method)
        elif method != "linear" and (method == "zero-shot" or client in models.clients_with_models(method)):
            yield method


def _metrics(metrics: Mapping[str, Any], plugins: Sequence[str]) -> Mapping[str, Metric]:
    from fedloom.plugins.plugins import combine_plugins

    added = [Plugins.of(metrics=metrics)] if metrics else []
    return combine_plugins([*(str(Path(file).absolute()) for file in plugins), *added]).metrics


def _from_predictions(
    run: FinishedRun,
    methods: Sequence[str] | None,
    client: int | None,
    metrics: Mapping[str, Metric],
    changes: Sequence[str],
) -> Evaluation:
    """Score what the models of a run answered, without answering again."""
    for name in methods or ():
        if name not in run.methods:
            raise UserError(f"{run.folder}: {unknown_name('method of this run', name, run.methods)}")
    experiment, manifest = experiment_to_resume(run.folder, changes, run.plugins), read_manifest(run.folder)
    test = {
        example.id: example for example in unchanged_test_set(run.folder, load_run_data(experiment), manifest)
    }
    models: dict[tuple[str, int | None, str], list[Prediction]] = {}
    for row in run.iter_predictions():
        if row.client == client and (methods is None or row.method in methods):
            models.setdefault((row.method, row.client, row.slice), []).append(row)
    if not models:
        whose = "a model of all clients" if client is None else f"a model of client {client}'s own"
        raise UserError(
            f"{run.folder}: no prediction is of {whose}, with {', '.join(methods or run.methods)}"
        )
    scores = [
        one
        for (method, _, part), rows in models.items()
        for one in scores_of(
            method, part, score([test[row.example] for row in rows], answers_of(rows), metrics)
        )
    ]
    return Evaluation(
        Table(Score, scores), Table(Prediction, (row for rows in models.values() for row in rows))
    )


def unchanged_test_set(folder: Path, data: DataSet, manifest: Manifest | None) -> Sequence[Example]:
    """Return the test set of a run.

    Raises:
        UserError: It is not as it was when the run began.
    """
    now = contents_of(data)
    for name in ("test examples", "test images"):
        if manifest is not None and manifest.identity.get(name) != now[name]:
            raise UserError(
                f"{folder}: the {name} have changed since the run; give their place with --set data.root=PATH"
            )
    return data.test
