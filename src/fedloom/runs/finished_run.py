"""A finished run as a Python value: its scores, rounds, clients and predictions as tables, and its models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom.report.run_results import Run, at, number, read_run
from fedloom.runs.run_folder import REPORT, Plugged, is_finished
from fedloom.runs.typed_table import Table
from fedloom.runs.write_pages import write_pages
from fedloom.system.errors import UserError
from fedloom.system.given_path import given_path
from fedloom.system.terminal import shell_word
from fedloom.tasks.predictions import PREDICTIONS, Prediction, read_predictions

if TYPE_CHECKING:
    from fedloom.runs.saved_models import SavedModels
    from fedloom.runs.trained_model import Reply, TrainedModel


@dataclass(frozen=True, slots=True)
class Score:
    """A score of a method on the test set.

    Attributes:
        method: The method.
        slice: The modalities of the test examples that its model saw: "both", "image" or "text".
        metric: The name of the score.
        value: The score; None if it is undefined. A fraction 0..1, but "cider" 0..10.
        task: The task, or None for the mean over all tasks.
    """

    method: str
    slice: str
    metric: str
    value: float | None
    task: str | None = None


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """A round of a method.

    Attributes:
        method: The method.
        client: The client that trains alone, or None.
        round: Number of the round, from 0.
        loss: Mean training loss of the accepted updates; None if there are none.
        clients: The clients whose updates were accepted or refused.
        refused: Client → the reason why its update was refused.
        missing: Client → the reason why it returned no update.
        bytes_up: Bytes of the updates.
        bytes_down: Bytes of what was sent to clients.
        seconds: Time of the round.
    """

    method: str
    client: int | None
    round: int
    loss: float | None
    clients: tuple[int, ...]
    refused: Mapping[int, str]
    missing: Mapping[int, str]
    bytes_up: int
    bytes_down: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ClientFigures:
    """A client: what it holds, and how well each method does on data like its own.

    Attributes:
        client: Its number.
        group: The group of its examples if clients were divided by group; else None.
        examples: Training examples.
        both: Those of which it sees image and text.
        image_only: Those of which it sees only the image.
        text_only: Those of which it sees only the text.
        scores: Method → score on test examples like its own; None if the test set has none.
    """

    client: int
    group: str | None
    examples: int
    both: int
    image_only: int
    text_only: int
    scores: Mapping[str, float | None]


@dataclass(frozen=True, eq=False)
class ResultFolder(Mapping[str, Any]):
    """The folder of a run or of a sweep; as a mapping, it is the content of `result.json`.

    Attributes:
        folder: The folder.
        result: The content of its `result.json`.
    """

    folder: Path
    result: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.result[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.result)

    def __len__(self) -> int:
        return len(self.result)


@dataclass(frozen=True, eq=False)
class FinishedRun(ResultFolder):
    """A finished run.

    Attributes:
        plugins: Its plug-ins as Python values, or their present paths; empty for the paths of the experiment.
    """

    plugins: Plugged = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of the run, in order."""
        return tuple(self._files.scores)

    @cached_property
    def scores(self) -> Table[Score]:
        """Every score on the test set, by method and slice; with several tasks, also by task."""
        return Table(Score, _scores(self._files.scores))

    @cached_property
    def rounds(self) -> Table[RoundFigures]:
        """Every round of every method."""
        return Table(RoundFigures, map(_round, self._files.rounds))

    @cached_property
    def clients(self) -> Table[ClientFigures]:
        """Every client; of a very large federation, the first ones."""
        scores = self._files.scores
        return Table(ClientFigures, (_client(row, scores) for row in self._files.clients))

    @cached_property
    def predictions(self) -> Table[Prediction]:
        """Every answer of every model. For files that do not fit in memory, see `iter_predictions`."""
        return Table(Prediction, self.iter_predictions())

    def iter_predictions(self) -> Iterator[Prediction]:
        """Yield every answer of every model, of which one at a time is in memory."""
        return read_predictions(self.folder / PREDICTIONS)

    def model(self, method: str | None = None, client: int | None = None) -> TrainedModel:
        """Return a trained model. All models of a run share one base model, which is loaded once.

        Args:
            method: A method of the run; None is the one whose adapter the run exported.
            client: The client, for methods that give each client a model of its own.

        Raises:
            UserError: There is no such model, or the base model is another one than that of the run.
        """
        from fedloom.runs.trained_model import TrainedModel

        models = self._models
        return TrainedModel(models, models.question(models.method(method), client))

    def ask(
        self,
        image: Any = None,
        text: str | None = None,
        question: str | None = None,
        options: Sequence[str] = (),
        *,
        method: str | None = None,
        client: int | None = None,
    ) -> Reply:
        """Ask a trained model a question; see `model` and `fedloom.runs.trained_model.TrainedModel.ask`."""
        return self.model(method, client).ask(image, text, question, options)

    def report(self, out: Path | str | None = None) -> Path:
        """Return the path of the run's report; with `out`, write the report anew, there."""
        if out is None:
            return self.folder / REPORT
        file = given_path(out, "out")
        write_pages(self.folder, file)
        return file

    @cached_property
    def _files(self) -> Run:
        return read_run(self.folder)

    @cached_property
    def _models(self) -> SavedModels:
        from fedloom.runs.saved_models import open_models

        return open_models(self.folder, (), self.plugins)

    def __repr__(self) -> str:
        return f"FinishedRun({str(self.folder)!r}: {', '.join(self.result.get('scores', ()))})"


def load_run(folder: Path | str, plugins: Plugged = ()) -> FinishedRun:
    """Load a finished run.

    Args:
        folder: The run folder.
        plugins: See `FinishedRun`.

    Raises:
        UserError: The folder holds no finished run, or a file of it is damaged.
    """
    folder = given_path(folder, "folder")
    if not isinstance(plugins, list | tuple):
        raise UserError("plugins: expected a list of paths of Python files or of fedloom.Plugins")
    if folder.is_dir() and (folder / "sweep.json").is_file():
        raise UserError(
            f"{folder} is a sweep; load it with fedloom.load_sweep, or one of the runs in {folder / 'cells'}"
        )
    if folder.is_dir() and (folder / "experiment.json").is_file() and not is_finished(folder):
        raise UserError(
            f"{folder} holds a run that is not finished; continue it with `fedloom resume {shell_word(folder)}`"
        )
    return FinishedRun(folder, read_run(folder).result, tuple(plugins))


def scores_of(method: str, part: str, scores: Mapping[str, Any]) -> Iterator[Score]:
    """Yield the scores of a method on one slice, as `fedloom.tasks.score_answers.score` returned them."""
    yield from _numbers(method, part, scores, None)
    tasks = scores.get("tasks") or {}
    if len(tasks) > 1:
        for task, of_task in tasks.items():
            yield from _numbers(method, part, of_task, task)


def _scores(methods: Mapping[str, Any]) -> Iterator[Score]:
    for method, scores in methods.items():
        for part, of_part in (scores.get("slices") or {}).items():
            yield from scores_of(method, part, of_part)


def _numbers(method: str, part: str, scores: Mapping[str, Any], task: str | None) -> Iterator[Score]:
    for name, value in scores.items():
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield Score(method, part, name, value, task)


def _round(line: Mapping[str, Any]) -> RoundFigures:
    refused, missing = (
        {int(one["client"]): str(one["reason"]) for one in line.get(kind) or ()}
        for kind in ("refused", "missing")
    )
    return RoundFigures(
        line["method"],
        line.get("client"),
        line["round"],
        number(line, "loss"),
        tuple(int(one["client"]) for one in line.get("clients") or ()),
        refused,
        missing,
        int(number(line, "bytes_up") or 0),
        int(number(line, "bytes_down") or 0),
        number(line, "seconds") or 0.0,
    )


def _client(row: Mapping[str, Any], methods: Mapping[str, Any]) -> ClientFigures:
    client = int(row["id"])
    size, both, image_only, text_only = (
        int(number(row, name) or 0) for name in ("size", "both", "image_only", "text_only")
    )
    scores = {method: number(at(scores, "clients"), client) for method, scores in methods.items()}
    return ClientFigures(client, row.get("group"), size, both, image_only, text_only, scores)
