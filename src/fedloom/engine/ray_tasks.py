"""Do pieces of work that need each other's results in no way by Ray, each in one of a few processes that keep what they loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from typing import Any

from fedloom.engine.ray_cluster import Wanted, connected, room
from fedloom.failures import first_line, sentence

TRIES = 3
"""Processes that may die over a piece of work before it has failed."""

Work = Callable[..., str | None]
"""(what this process loaded before, arguments …) → why the work failed, or None."""


class Process:
    """A process's side."""

    def __init__(self, work: Work, threads: int, place: str) -> None:
        import torch

        torch.set_num_threads(threads)
        with suppress(OSError):  # a folder that this node lacks
            os.chdir(place)
        self._work, self._loaded = work, dict[str, Any]()

    def do(self, arguments: Sequence[Any]) -> str | None:
        """Do a piece of work, and return why it failed, or None."""
        try:
            return self._work(self._loaded, *arguments)
        except Exception as error:
            return sentence(error)


def spread(
    work: Work, arguments: Mapping[int, Sequence[Any]], wanted: Wanted
) -> Iterator[tuple[int, bool, str | None]]:
    """Do pieces of work, as many at once as there are processes; one whose process dies is done again by another.

    Args:
        work: A function of a module that all nodes have.
        arguments: Number of a piece → what `work` is given: plain values.
        wanted: How many processes, and what each has.

    Yields:
        (number, False, None) where a piece is begun, and (number, True, why it failed or None) where it has ended.

    Raises:
        UserError: Ray is not there, or has no room for a process.
    """
    with connected(wanted) as ray:
        handles = [_process(ray, work, wanted) for _ in range(min(room(ray, wanted), len(arguments)))]
        waiting, deaths = [*arguments], dict.fromkeys(arguments, 0)
        flying: dict[Future[str | None], tuple[int, int]] = {}
        idle = [*range(len(handles))]
        try:
            while waiting or flying:
                while idle and waiting:
                    number, at = waiting.pop(0), idle.pop()
                    flying[handles[at].do.remote(arguments[number]).future()] = number, at
                    if not deaths[number]:
                        yield number, False, None
                done = next(iter(wait(flying, return_when=FIRST_COMPLETED).done))
                number, at = flying.pop(done)
                idle.append(at)
                try:
                    failed = done.result()
                except ray.exceptions.RayError as error:
                    handles[at] = _process(ray, work, wanted)
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


def _process(ray: Any, work: Work, wanted: Wanted) -> Any:
    made = ray.remote(Process).options(num_cpus=wanted.threads, num_gpus=wanted.gpus, max_restarts=0)
    return made.remote(work, wanted.threads, os.getcwd())
