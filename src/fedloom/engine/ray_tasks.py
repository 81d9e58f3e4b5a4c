"""Run independent tasks on a Ray cluster, in a few processes that keep what they loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from typing import Any

from fedloom.engine.ray_cluster import ActorRequest, actor_count, connect
from fedloom.system.errors import error_sentence, first_line

TRIES = 3
"""Number of processes that may die over a task before it has failed."""

Work = Callable[..., str | None]
"""(values that this process loaded before, arguments …) → the reason for which the work failed, or None."""


class Process:
    """The side of a process."""

    def __init__(self, work: Work, threads: int, place: str) -> None:
        import torch

        torch.set_num_threads(threads)
        with suppress(OSError):  # a folder that this node lacks
            os.chdir(place)
        self._work, self._loaded = work, dict[str, Any]()

    def do(self, arguments: Sequence[Any]) -> str | None:
        """Run a task, and return the reason for which it failed, or None."""
        try:
            return self._work(self._loaded, *arguments)
        except Exception as error:
            return error_sentence(error)


def run_tasks(
    work: Work, arguments: Mapping[int, Sequence[Any]], request: ActorRequest
) -> Iterator[tuple[int, bool, str | None]]:
    """Run tasks, as many at once as there are processes; a task whose process dies is run again by another.

    Args:
        work: A function of a module that all nodes have.
        arguments: Number of a task → the arguments of `work`, which are plain values.
        request: The number of processes, and what each takes.

    Yields:
        (number, False, None) when a task begins, and (number, True, the reason for which it failed or None) when it has ended.

    Raises:
        UserError: Ray is not installed or not reached, or has no room for a process.
    """
    with connect(request) as ray:
        handles = [
            _process(ray, work, request) for _ in range(min(actor_count(ray, request), len(arguments)))
        ]
        waiting, deaths = [*arguments], dict.fromkeys(arguments, 0)
        running: dict[Future[str | None], tuple[int, int]] = {}
        idle = [*range(len(handles))]
        try:
            while waiting or running:
                while idle and waiting:
                    number, at = waiting.pop(0), idle.pop()
                    running[handles[at].do.remote(arguments[number]).future()] = number, at
                    if not deaths[number]:
                        yield number, False, None
                done = next(iter(wait(running, return_when=FIRST_COMPLETED).done))
                number, at = running.pop(done)
                idle.append(at)
                try:
                    failed = done.result()
                except ray.exceptions.RayError as error:
                    handles[at] = _process(ray, work, request)
                    deaths[number] += 1
                    if deaths[number] < TRIES:
                        waiting.insert(0, number)
                        continue
                    failed = f"{TRIES} processes died over it, the last one so: {first_line(error)}"
                yield number, True, failed
        finally:
            for handle in handles:
                with suppress(Exception):
                    ray.kill(handle)


def _process(ray: Any, work: Work, request: ActorRequest) -> Any:
    remote = ray.remote(Process).options(num_cpus=request.threads, num_gpus=request.gpus, max_restarts=0)
    return remote.remote(work, request.threads, os.getcwd())
