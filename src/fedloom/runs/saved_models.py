"""Load the models of a finished run from its checkpoints: of every method, and each client's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedloom.client.site import Question
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.methods import Method
from fedloom.params import Params
from fedloom.report.run_results import FILES
from fedloom.run_log import RunLog
from fedloom.runs.run_context import RunContext
from fedloom.runs.run_folder import METHODS, PLAN, RECORD, Plugged, experiment_to_resume, is_finished
from fedloom.runs.run_setup import loaded_model, models_digest, stages_of
from fedloom.runs.site_setup import make_site
from fedloom.runs.train_method import last_state_of_stage, reported_models
from fedloom.scenarios.plan import Plan
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import json_digest
from fedloom.system.json_files import read_json
from fedloom.system.manifest import check_files, read_manifest
from fedloom.system.progress import Progress
from fedloom.system.terminal import shell_word
from fedloom.tuning.adapters import prepare
from fedloom.tuning.strategies import merged_stage
from fedloom.types import DataSet

UNTRAINED = "zero-shot"
"""The method whose model is the base model."""


@dataclass(frozen=True, eq=False)
class SavedModels:
    """The models of a finished run, over one base model.

    Attributes:
        context: What all methods of the run shared, without its data.
    """

    context: RunContext

    @property
    def experiment(self) -> Experiment:
        """The experiment of the run."""
        return self.context.experiment

    def method(self, name: str | None) -> str:
        """Return the name of a method with a model; None is the one whose adapter the run exported.

        Raises:
            UserError: The run has no such method, or the method has no model.
        """
        from fedloom.config.validation_errors import unknown_name

        chosen = self.experiment.exported if name is None else name
        names = [one for one in self.experiment.methods if one != "linear"]
        if chosen is None:
            raise UserError(
                f"{self.context.folder}: no method of this run is federated; name one: {', '.join(names)}"
            )
        if chosen not in names:
            raise UserError(
                f"{self.context.folder}: {unknown_name('method of this run with a model', chosen, names)}"
            )
        return chosen

    def question(self, method: str, client: int | None) -> Question:
        """Return the question with which a model answers; it names the model and the form of its prompts.

        Args:
            method: A method of the run; see `method`.
            client: The client whose own model it is; None for the model of all clients.

        Raises:
            UserError: The method has no such model, or its checkpoint is damaged.
        """
        context, count = self.context, len(self.context.plan.clients)
        self.require_client(client)
        if method == UNTRAINED:
            return Question(method, 0, context.tuned.start)
        described = context.experiment.method(method)
        alone = client if method == "local" else None
        if method == "local" and client is None:
            raise UserError(f"{method}: each client has a model of its own; choose client 0 to {count - 1}")
        models = self._models(described, method, alone)
        if client in models:
            return models[client]
        if client is None:
            raise UserError(f"{method}: each client keeps a model of its own; choose client 0 to {count - 1}")
        raise UserError(f"{method}: all clients have one model; leave out client {client}")

    def require_client(self, client: int | None) -> None:
        """Raise `UserError` if the run has no such client; None is none in particular."""
        count = len(self.context.plan.clients)
        if client is not None and not 0 <= client < count:
            raise UserError(f"client {client}: the run has clients 0 to {count - 1}")

    def _models(self, described: Method, method: str, alone: int | None) -> dict[int | None, Question]:
        context, faults = self.context, list[str]()
        last = context.stage_count(method) - 1
        state = last_state_of_stage(context, method, alone, last, faults.append)
        if state is None or state.state.round != context.rounds(method)[-1]:
            reason = faults[0] if faults else f"there is no checkpoint of the last round of {method}"
            raise UserError(f"{context.folder}: the model of {method} cannot be loaded: {reason}")
        return reported_models(context, described, method, [(alone, state)])[0]

    def params(self, question: Question) -> Params:
        """Return the trainable parameters of a question's model.

        Raises:
            UserError: What its client keeps is lost, or stays at a site on another machine.
        """
        return self.context.site.model(question)

    def clients_with_models(self, method: str) -> Sequence[int | None]:
        """Return the clients that have models of their own of a method, or [None] where all have one."""
        count = len(self.context.plan.clients)
        if method == UNTRAINED:
            return [None]
        if method == "local":
            return range(count)
        return list(self._models(self.experiment.method(method), method, None))


def open_models(
    folder: Path, changes: Sequence[str] = (), plugins: Plugged = (), progress: Progress | None = None
) -> SavedModels:
    """Load the base model of a finished run, into which its trainable parameters can be written.

    Args:
        folder: The run folder.
        changes: Current places of data and models, such as `model.path=NEW`.
        plugins: Current paths of the run's plug-ins, or the values themselves.
        progress: Shows the loading; None shows nothing.

    Raises:
        UserError: The folder holds no finished run, a file of it is damaged, or the base model is another one than that of the
            run.
    """
    experiment = experiment_to_resume(folder, changes, plugins)
    progress, manifest = progress or Progress(None), read_manifest(folder)
    if manifest is None or not is_finished(folder):
        raise UserError(
            f"{folder} holds a run that is not finished; continue it with `fedloom resume {shell_word(folder)}`"
        )
    check_files(folder, manifest, FILES)
    progress.stage("loading model", 1)
    if manifest.identity.get("base model") != models_digest(experiment):
        raise UserError(
            f"{folder}: the base model, {experiment.model.path!r}, is another one than that of the run; give its place with "
            "--set model.path=PATH"
        )
    tuned = prepare(
        loaded_model(experiment, {}), merged_stage(stages_of(experiment)), experiment.training_seed
    )
    progress.advance()
    data = DataSet(experiment.data.name, (), ())
    plan = _empty_plan(int(read_json(folder / PLAN, {"count": int})["count"]))
    stages = stages_of(experiment)
    site = make_site(experiment, data, plan, tuned, stages, folder / METHODS)
    return SavedModels(
        RunContext(
            experiment, folder, data, plan, site, stages, RunLog(folder / RECORD), progress,
            json_digest(manifest.identity),
        )
    )  # fmt: skip


def _empty_plan(clients: int) -> Plan:
    """Return a plan of clients without examples, which nobody trains with."""
    none = np.zeros(0, np.int64)
    return Plan(none, np.zeros(clients + 1, np.int64), none.astype(bool), none.astype(bool), "")
