"""Train the clients of a site in this process over one frozen model: one after the other, or several side by side.

Both ways lead to the same updates; side by side is faster where a client's batch is too small to keep the CPU busy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from fedloom.client.answer_questions import WHOLE, Share
from fedloom.client.local_job import Job
from fedloom.client.local_training import can_train_together, train
from fedloom.client.site import Profile, Question, Site
from fedloom.params import Params
from fedloom.system.errors import client_failure, is_of_accelerator, is_out_of_memory
from fedloom.system.timing import Clock
from fedloom.tasks.score_answers import Answers
from fedloom.wire.messages import Answer, Assignment, Missing, Update

WINDOW = 4
"""Number of blocks of clients that are formed at once, so that similar clients train side by side."""


def ignore(update: Update) -> None:
    """Do nothing with an update."""


@dataclass(frozen=True)
class InProcess:
    """A backend that swaps clients' parameters into one model.

    Attributes:
        site: The site.
        rows: Number of clients that train side by side, ≥ 1; 1 is one after the other.
        trained: Called with every update, for progress.
        processes: Processes that answer questions at once, ≥ 1.
        share: Which part of the questions is answered; see `fedloom.client.answer_questions.Share`.
    """

    site: Site
    rows: int = 1
    trained: Callable[[Update], None] = ignore
    processes: int = 1
    share: Share = WHOLE

    def start(self, method: str) -> Params:
        """Return the parameters of a method's first round."""
        return self.site.method(method).start

    def describe(self, method: str) -> Sequence[Profile]:
        """Return the profile of each client, by its number."""
        return self.site.method(method).profiles

    def answer(self, questions: Sequence[Question]) -> list[Answers]:
        """Answer questions, all about the same examples, each with its own model."""
        return self.site.answer(questions, self.processes, self.share)

    def measure(self, assignments: Iterable[Assignment], probe: str) -> Iterator[Answer]:
        """Run a probe at each client, in the order of `assignments`; a client that raises is `Missing`.

        Raises:
            Exception: Memory of an accelerator ran out, as in `train`.
        """
        for assignment in assignments:
            try:
                yield self.site.measure(self.site.job(assignment), probe)
            except (Exception, SystemExit) as error:  # a rule from outside may call sys.exit
                if is_of_accelerator(error):
                    raise
                yield Missing(assignment.client, client_failure(error))

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
        """Train clients and yield their updates in the order of `assignments`; a client that raises is `Missing`.

        The time of a block is divided evenly among its clients, and counted when a client's answer is yielded: assignments
        of several trainings may be mixed, and each training counts its own time.
        """
        remaining, own = iter(assignments), Clock(self.site.tuned.flat.device.type)
        while True:
            clock.lap("load")
            own.skip()
            window = list(islice(remaining, self.rows * WINDOW if self.rows > 1 else 1))
            if not window:
                return
            jobs, done = dict[int, Job](), dict[int, tuple[Answer, Mapping[str, float]]]()
            for k, assignment in enumerate(window):
                try:
                    jobs[k] = self.site.job(assignment)
                except (Exception, SystemExit) as error:
                    if is_of_accelerator(error):
                        raise
                    done[k] = Missing(assignment.client, client_failure(error)), {}
            own.lap("load")
            reading = _share(own, len(window))
            for block in blocks(jobs, self.rows):
                answers = self._answers([jobs[k] for k in block], own)
                share = _share(own, len(block))
                for k, answer in zip(block, answers, strict=True):
                    if isinstance(answer, Update):
                        self.trained(answer)
                    done[k] = answer, share
            clock.skip()
            for k in range(len(window)):
                answer, share = done.pop(k)
                clock.add(reading)
                clock.add(share)
                yield answer

    def _answers(self, jobs: Sequence[Job], clock: Clock) -> list[Answer]:
        """Train clients side by side; if one raises, train each alone to find out which.

        Raises:
            Exception: Memory ran out for several side by side, or on an accelerator, where every client would lack it. Fewer
                rows would round differently, so they are not tried.
        """
        try:
            ends = train(self.site.tuned, jobs, clock)
            updates: list[Answer] = [self.site.update(*pair) for pair in zip(jobs, ends, strict=True)]
            clock.lap("load")
            return updates
        except (Exception, SystemExit) as error:
            if is_of_accelerator(error) or (is_out_of_memory(error) and len(jobs) > 1):
                raise
            if len(jobs) == 1:
                return [Missing(jobs[0].client, client_failure(error))]
        return [answer for job in jobs for answer in self._answers([job], clock)]


def _share(clock: Clock, jobs: int) -> Mapping[str, float]:
    """Take the seconds that a clock has counted, and divide them by a number of jobs."""
    return {name: seconds / jobs for name, seconds in clock.take().items()}


def blocks(jobs: Mapping[int, Job], rows: int) -> list[list[int]]:
    """Group jobs into blocks with similar numbers of steps and modalities, so that few rows are idle.

    Returns:
        Blocks of at most `rows` keys of `jobs`; together they hold every key once. The jobs of a block can train together.
    """
    groups: list[list[int]] = []
    for k, job in jobs.items():
        group = next((group for group in groups if can_train_together(job, jobs[group[0]])), None)
        if group is None:
            groups.append([k])
        else:
            group.append(k)
    result: list[list[int]] = []
    for group in groups:
        group.sort(key=lambda k: (*_shape(jobs[k]), k))
        result += [group[start : start + rows] for start in range(0, len(group), rows)]
    return result


def _shape(job: Job) -> tuple[int, float, float]:
    """Return a job's steps, its share of conversations with an image, and the mean length of their texts."""
    count = len(job.conversations)
    images = sum(conversation.picture is not None for conversation in job.conversations)
    return (
        job.steps,
        images / count,
        sum(len(conversation.user) for conversation in job.conversations) / count,
    )


@dataclass(frozen=True)
class TrainsElsewhere:
    """The part of a backend that trains in other processes and does everything else in this one.

    Attributes:
        inner: The site in this process, the number of clients that train side by side, and what is called after updates.
    """

    inner: InProcess

    def start(self, method: str) -> Params:
        """See `Backend`."""
        return self.inner.start(method)

    def describe(self, method: str) -> Sequence[Profile]:
        """See `Backend`."""
        return self.inner.describe(method)

    def answer(self, questions: Sequence[Question]) -> list[Answers]:
        """See `Backend`."""
        return self.inner.answer(questions)

    def measure(self, assignments: Iterable[Assignment], probe: str) -> Iterator[Answer]:
        """See `Backend`."""
        return self.inner.measure(assignments, probe)
