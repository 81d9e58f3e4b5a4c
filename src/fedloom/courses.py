"""Courses of work taken in step, so that what they ask for at the same time can be done together.

A course is a generator. It yields lists of what it asks for, is sent the answers in the same order, and returns what
it came to; in between it reads, scores and writes by itself. A course made of courses is one too: a method of a run,
a run, and the runs of a sweep are all driven by `drive`, and whoever answers sees everything that is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import islice
from typing import Protocol, TypeVar

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")
End = TypeVar("End")

Course = Generator[list[Ask], list[Answer], End]


class Timed(Protocol):
    """An answer that tells what it cost."""

    @property
    def seconds(self) -> float:
        """Seconds of work that were spent on this answer alone."""
        ...


TimedAnswer = TypeVar("TimedAnswer", bound=Timed)


def drive(course: Course[Ask, Answer, End], answer: Callable[[Sequence[Ask]], Sequence[Answer]]) -> End:
    """Take a course to its end, answering what it asks for.

    Example:
        >>> def squares(*numbers: int) -> Course[int, int, int]:
        ...     found = 0
        ...     for number in numbers:
        ...         found += (yield [number])[0]
        ...     return found
        >>> def answer(asked: Sequence[int]) -> list[int]:
        ...     print(asked)
        ...     return [number * number for number in asked]
        >>> drive(abreast([squares(1, 2), squares(3)], lambda asked: True), answer)
        [1, 3]
        [2]
        [5, 9]
    """
    try:
        asked = next(course)
        while True:
            asked = course.send(list(answer(asked)))
    except StopIteration as end:
        return end.value


def abreast(
    courses: Iterable[Course[Ask, Answer, End]], more: Callable[[list[Ask]], bool]
) -> Course[Ask, Answer, list[End]]:
    """Take several courses in step.

    Args:
        courses: The courses, begun in this order.
        more: Says whether to begin one more beside those under way, from what these ask for; one that is not begun
            is not even taken out of `courses`. The first is always begun.

    Returns:
        What those that were begun came to, in their order.
    """
    coming, ended = iter(courses), dict[int, End]()
    under_way: dict[int, Course[Ask, Answer, End]] = {}
    asked: dict[int, list[Ask]] = {}

    def step(k: int, answers: list[Answer] | None) -> None:
        course = under_way[k]
        try:
            asked[k] = next(course) if answers is None else course.send(answers)
        except StopIteration as end:
            ended[k] = end.value
            del under_way[k]

    begun = 0
    while True:
        while begun == 0 or more([one for own in asked.values() for one in own]):
            course = next(coming, None)
            if course is None:
                break
            under_way[begun] = course
            step(begun, None)
            begun += 1
        if not asked:
            return [ended[k] for k in sorted(ended)]
        answers = iter((yield [one for own in asked.values() for one in own]))
        shared = {k: list(islice(answers, len(own))) for k, own in asked.items()}
        asked.clear()
        for k, own in shared.items():
            step(k, own)


def timed(course: Course[Ask, TimedAnswer, End]) -> Course[Ask, TimedAnswer, tuple[End, float]]:
    """Tell also how many seconds a course took: those of its own turns and those of the answers it got."""
    seconds, answers = 0.0, None
    while True:
        begun = time.perf_counter()
        try:
            asked = next(course) if answers is None else course.send(answers)
        except StopIteration as end:
            return end.value, seconds + time.perf_counter() - begun
        seconds += time.perf_counter() - begun
        answers = yield asked
        seconds += sum(answer.seconds for answer in answers)


def settled(course: Course[Ask, Answer, End]) -> Course[Ask, Answer, End | Exception]:
    """Return the exception that ends a course instead of raising it, so that those beside it go on."""
    try:
        return (yield from course)
    except Exception as error:
        return error
