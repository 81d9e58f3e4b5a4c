"""Choose how many clients of a run train side by side and in how many processes, and run its trainings that way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import chain

from fedloom.client.local_job import Job
from fedloom.engine.client_sampling import draw_cohort
from fedloom.engine.gpu_processes import SeveralGpus
from fedloom.engine.in_process import InProcess
from fedloom.engine.machine_choices import MOST, Choice, Machine, choose, this_machine
from fedloom.engine.ray_actors import RayActors
from fedloom.engine.rounds import Backend, Training, TrainingState, assignments_of, run_rounds
from fedloom.engine.worker_processes import Workers
from fedloom.models.compiled_layers import compiling
from fedloom.models.gradient_checkpointing import gradient_checkpointing
from fedloom.report.tables import is_federated, size
from fedloom.runs.run_context import RunContext
from fedloom.runs.run_folder import MACHINE
from fedloom.runs.site_setup import trains_at_sites
from fedloom.system.errors import UserError, is_of_accelerator
from fedloom.system.manifest import read_sealed, write_sealed
from fedloom.system.progress import Progress
from fedloom.wire.messages import Update


def local_backend(context: RunContext) -> Backend:
    """Return the run's site on this machine as a backend that trains one client after the other on each GPU."""
    here = _in_this_process(context)
    return here if context.gpus is None else SeveralGpus(here, context.gpus)


def _in_this_process(context: RunContext) -> InProcess:
    return InProcess(context.site, processes=workers_of(context))


def backend_of(context: RunContext, name: str) -> Backend:
    """Return the backend of a method's clients: sites on other machines if its clients train there, else this machine."""
    return _remote(context, name) or local_backend(context)


def _remote(context: RunContext, name: str) -> Backend | None:
    at_sites = trains_at_sites(context.experiment.method(name), own_data=context.sites is not None)
    return context.remote if at_sites else None


def run_trainings(context: RunContext, label: str, runs: Sequence[Training]) -> list[TrainingState]:
    """Run the trainings of one stage of a method over the run's model.

    Args:
        context: What all methods of the run share.
        label: The name of what is trained, for the progress bar.
        runs: One training, or several that share nothing but the model (clients that train alone).

    Returns:
        The state of each training at the end.
    """
    left = sum(max(run.left, 0) * len(draw_cohort(run.schedule, 0)) for run in runs)
    context.progress.stage(label, left)
    if not left:
        return [run.training_state for run in runs]
    if (remote := _remote(context, runs[0].method)) is not None:
        return run_rounds(runs, remote)

    choice = choice_of(context, runs)
    trained = show_updates(context.progress, sent=is_federated(runs[0].method))
    inner = replace(_in_this_process(context), rows=choice.rows, trained=trained)
    make_backend = BACKENDS[context.experiment.engine.backend]
    with ExitStack() as stack:
        stack.enter_context(compiling(context.vlm, context.experiment.engine.compile))
        stack.enter_context(gradient_checkpointing(context.vlm, choice.recompute))
        return run_rounds(runs, make_backend(context, inner, choice, _clients(runs)))


def show_updates(progress: Progress, *, sent: bool = True) -> Callable[[Update], None]:
    """Return a function that shows each update: one step, the client's loss, and the bytes of all updates so far if they are sent."""
    received = 0

    def trained(update: Update) -> None:
        nonlocal received
        received += update.length
        progress.advance(1, loss=update.metrics["loss"], **({"up": size(received)} if sent else {}))

    return trained


def _in_process(context: RunContext, inner: InProcess, choice: Choice, clients: int) -> Backend:
    return inner


def _workers(context: RunContext, inner: InProcess, choice: Choice, clients: int) -> Backend:
    if context.gpus is not None:
        return SeveralGpus(inner, context.gpus, recompute=choice.recompute)
    return Workers(inner, choice.workers) if clients > 1 and choice.workers > 1 else inner


def _ray(context: RunContext, inner: InProcess, choice: Choice, clients: int) -> Backend:
    return inner if context.actors is None else RayActors(inner, context.actors, recompute=choice.recompute)


BACKENDS: dict[str, Callable[[RunContext, InProcess, Choice, int], Backend]] = {
    "auto": _workers,
    "in-process": _in_process,
    "workers": _workers,
    "ray": _ray,
}
"""Value of `engine.backend` → (context, the site in this process, how clients train, clients of a round) → the backend."""


def choice_of(context: RunContext, runs: Sequence[Training]) -> Choice:
    """Return how clients train: as the experiment sets it, else as the run did before, else as the machine allows.

    What is chosen by the machine for several clients is written into the run's folder and record, and is used again when the
    run goes on.

    Args:
        context: What the runs belong to.
        runs: The trainings, at least one with rounds left.
    """
    engine, machine = context.experiment.engine, this_machine(context.vlm.device)
    choice = _earlier_choice(context, machine)
    if choice is None:
        cohort = _clients(runs)
        choice = choose(context.tuned, _jobs(context, runs), cohort, machine)
        if cohort > 1:
            precision = str(context.vlm.precision).removeprefix("torch.")
            value = {"machine": asdict(machine), "choice": asdict(choice), "precision": precision}
            write_sealed(context.folder / MACHINE, value, context.folder)
            context.record.append("machine", value)
    rows = choice.rows if engine.side_by_side == "auto" else engine.side_by_side
    workers = choice.workers if engine.workers == "auto" and not engine.compile else workers_of(context)
    recompute = choice.recompute if engine.recompute == "auto" else engine.recompute == "always"
    if engine.backend == "workers" and engine.workers == "auto":
        workers = max(2, workers_of(context))
    return Choice(rows if context.tuned.stackable else 1, workers, recompute)


def _earlier_choice(context: RunContext, machine: Machine) -> Choice | None:
    """Read the choice that was made when the run began; show a message if that was on another kind of machine."""
    file = context.folder / MACHINE
    if not file.exists():
        return None
    value = read_sealed(file)
    if "choice" not in value:
        return None
    before = Machine(**value["machine"])
    if before != machine:
        differences = ", ".join(
            f"{key} {one!r} (now {asdict(machine)[key]!r})"
            for key, one in value["machine"].items()
            if one != asdict(machine)[key]
        )
        context.progress.message(
            f"this run began on another kind of machine: {differences}; its bytes may come out differently"
        )
    return Choice(**value["choice"])


def _jobs(context: RunContext, runs: Sequence[Training]) -> list[Job]:
    """Return at most `MOST` jobs of the trainings' next rounds, on which choices are based."""
    jobs = list[Job]()
    for assignment in chain.from_iterable(assignments_of(run) for run in runs if run.left > 0):
        try:
            jobs.append(context.site.job(assignment))
        except Exception as error:  # that client will be missing, with the reason
            if is_of_accelerator(error):
                raise
        if len(jobs) == MOST:
            break
    return jobs


def _clients(runs: Sequence[Training]) -> int:
    """Count the clients of the trainings' next rounds."""
    return sum(len(draw_cohort(run.schedule, run.round)) for run in runs if run.left > 0)


def workers_of(context: RunContext) -> int:
    """Return how many processes may work at once: one if a process cannot be copied, as on an accelerator.

    With compiled layers there is one, too, since a copy would not keep what it compiled, and with Ray, since a copy would not
    have Ray's threads.

    Raises:
        UserError: A process cannot be copied, and the experiment sets several workers where there are not several GPUs.
    """
    engine = context.experiment.engine
    chosen = engine.workers
    if engine.compile or engine.backend in ("in-process", "ray") or context.gpus is not None:
        return 1
    machine = this_machine(context.vlm.device)
    if chosen == "auto":
        return machine.threads if machine.copies else 1
    if machine.copies:
        return chosen
    if chosen > 1:
        raise UserError(
            "engine.workers: several processes need Linux and a model on the CPU, or several NVIDIA GPUs; set it to 1"
        )
    return 1
