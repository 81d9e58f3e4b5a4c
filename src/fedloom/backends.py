"""Choose how many clients of a run train side by side and in how many processes, and train them so."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from itertools import chain

from fedloom.client.job import Job
from fedloom.engine.in_process import InProcess
from fedloom.engine.machine import MOST, Choice, Machine, choose, this_machine
from fedloom.engine.rounds import Backend, Run, Standing, assignments_of, draw_cohort, run_rounds
from fedloom.engine.workers import Workers
from fedloom.folder import MACHINE
from fedloom.manifest import read_sealed, write_sealed
from fedloom.messages import Update
from fedloom.models.compiled import compiling
from fedloom.models.recompute import recomputing
from fedloom.setting import Setting
from fedloom.types import UserError


def local_backend(setting: Setting) -> InProcess:
    """Return the run's site as a backend that trains one client after the other."""
    return InProcess(setting.site, processes=workers_of(setting))


def backend_of(setting: Setting, name: str) -> Backend:
    """Return where a method's clients are: at sites elsewhere if there are any and it is federated, else here."""
    if setting.elsewhere is not None and setting.experiment.method(name).federated:
        return setting.elsewhere
    return local_backend(setting)


def train_runs(setting: Setting, label: str, runs: Sequence[Run]) -> list[Standing]:
    """Train the servers of one stage of a method over the run's model.

    Args:
        setting: What all methods of the run share.
        label: The name of what is trained, for the progress bar.
        runs: One training, or several that share nothing but the model (clients that train alone).

    Returns:
        Where each stands at the end.
    """
    left = sum(max(run.left, 0) * len(draw_cohort(run.schedule, 0)) for run in runs)
    setting.progress.stage(label, left)
    if not left:
        return [run.standing for run in runs]
    if not isinstance(there := backend_of(setting, runs[0].method), InProcess):
        return run_rounds(runs, there)

    def trained(update: Update) -> None:
        setting.progress.advance(1, loss=update.metrics["loss"])

    choice = choice_of(setting, runs)
    inner = replace(local_backend(setting), rows=choice.rows, trained=trained)
    several = _clients(runs) > 1 and choice.workers > 1
    with ExitStack() as changed:
        for tuned in (setting.tuned, *setting.twins):
            changed.enter_context(compiling(tuned.vlm, setting.experiment.engine.compile))
            changed.enter_context(recomputing(tuned.vlm, choice.recompute))
        return run_rounds(runs, Workers(inner, choice.workers, setting.twins) if several else inner)


def choice_of(setting: Setting, runs: Sequence[Run]) -> Choice:
    """Return how clients train: as the experiment says, else as the run did before, else as the machine decides.

    What the machine decides for several clients is written into the run's folder and record, and is used again when the
    run goes on.

    Args:
        setting: What the runs belong to.
        runs: The trainings, at least one with rounds left.
    """
    engine, machine = setting.experiment.engine, this_machine(setting.vlm.device)
    held = _held(setting, machine)
    if held is None:
        cohort = _clients(runs)
        held = choose(setting.tuned, _jobs(setting, runs), cohort, machine)
        if cohort > 1:
            value = {"machine": asdict(machine), "choice": asdict(held)}
            write_sealed(setting.folder / MACHINE, value, setting.folder)
            setting.record.append("machine", value)
    rows = held.rows if engine.side_by_side == "auto" else engine.side_by_side
    workers = held.workers if engine.workers == "auto" and not engine.compile else workers_of(setting)
    recompute = held.recompute if engine.recompute == "auto" else engine.recompute == "always"
    workers = len(setting.twins) + 1 if setting.twins else workers
    return Choice(rows if setting.tuned.stackable else 1, workers, recompute)


def _held(setting: Setting, machine: Machine) -> Choice | None:
    """Read what was decided when the run began; show a message where that was on another kind of machine."""
    file = setting.folder / MACHINE
    if not file.exists():
        return None
    value = read_sealed(file)
    before = Machine(**value["machine"])
    if before != machine:
        differences = ", ".join(
            f"{key} {one!r} (now {asdict(machine)[key]!r})"
            for key, one in value["machine"].items()
            if one != asdict(machine)[key]
        )
        setting.progress.message(
            f"this run began on another kind of machine: {differences}; its bytes may come out differently"
        )
    return Choice(**value["choice"])


def _jobs(setting: Setting, runs: Sequence[Run]) -> list[Job]:
    """Return at most `MOST` jobs of the runs' next rounds, on which choices are based."""
    jobs = list[Job]()
    for assignment in chain.from_iterable(assignments_of(run) for run in runs if run.left > 0):
        with suppress(Exception):  # that client will be missing, with the reason
            jobs.append(setting.site.job(assignment))
        if len(jobs) == MOST:
            break
    return jobs


def _clients(runs: Sequence[Run]) -> int:
    """Count the clients of the runs' next rounds."""
    return sum(len(draw_cohort(run.schedule, run.round)) for run in runs if run.left > 0)


def workers_of(setting: Setting) -> int:
    """Return how many processes may work at once: one where a process cannot be copied, as on an accelerator.

    With compiled layers there is one, too: a copy would not keep what it compiled.

    Raises:
        UserError: The experiment wants more than there are devices where a process cannot be copied.
    """
    chosen, devices = setting.experiment.engine.workers, len(setting.twins) + 1
    if setting.experiment.engine.compile:
        return 1
    machine = this_machine(setting.vlm.device)
    if chosen == "auto":
        return machine.threads if machine.copies else 1
    if machine.copies:
        return chosen
    if chosen > devices:
        raise UserError(
            "engine.workers: several processes need Linux and a model on the CPU, and several devices are not "
            f"here; set it to {devices}"
        )
    return 1
