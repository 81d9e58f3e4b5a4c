"""Courses in step come to what they come to alone, whoever goes beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom import courses
from fedloom.courses import Course, abreast, drive, settled, timed
from fedloom.types import UserError


def asking(
    numbers: Sequence[int], told: list[str] | None = None, name: str = ""
) -> Course[int, int, list[int]]:
    """Ask for one number after another; what was answered is the end."""
    if told is not None:
        told.append(f"{name} begins")
    found = []
    for number in numbers:
        found += yield [number]
    if told is not None:
        told.append(f"{name} ends")
    return found


def tenfold(asked: Sequence[int]) -> list[int]:
    return [10 * number for number in asked]


@given(st.lists(st.lists(st.integers(), max_size=4), min_size=1, max_size=5), st.integers(1, 6))
def test_each_gets_its_own_answers_in_any_company(numbers: list[list[int]], width: int) -> None:
    most: list[int] = []

    def answer(asked: Sequence[int]) -> list[int]:
        most.append(len(asked))
        return tenfold(asked)

    found = drive(abreast((asking(one) for one in numbers), lambda asked: len(asked) < width), answer)
    assert found == [tenfold(one) for one in numbers]
    assert max(most, default=0) <= width


def test_courses_of_courses_show_everything_that_is_asked() -> None:
    seen: list[list[int]] = []

    def answer(asked: Sequence[int]) -> list[int]:
        seen.append(list(asked))
        return tenfold(asked)

    inner = [abreast([asking([1, 2]), asking([3])], lambda asked: True), asking([4, 5])]
    assert drive(abreast(inner, lambda asked: True), answer) == [[[10, 20], [30]], [40, 50]]
    assert seen == [[1, 3, 4], [2, 5]]


def test_the_next_begins_when_there_is_room_and_not_before() -> None:
    told: list[str] = []
    all_of_them = (asking([0] * count, told, name) for name, count in (("a", 2), ("b", 1), ("c", 1)))
    drive(abreast(all_of_them, lambda asked: len(asked) < 2), tenfold)
    assert told == ["a begins", "b begins", "b ends", "c begins", "a ends", "c ends"]


def test_what_is_not_wanted_is_not_begun() -> None:
    told: list[str] = []
    coming = iter([asking([1], told, "a"), asking([2], told, "b")])
    assert drive(abreast(coming, lambda asked: False), tenfold) == [[10]]
    assert told == ["a begins", "a ends"]
    assert len(list(coming)) == 1


def refusing(after: int) -> Course[int, int, list[int]]:
    yield from asking([7] * after)
    raise UserError("no more")


def test_a_mistake_that_is_settled_stops_nobody_else() -> None:
    first, second = drive(
        abreast([settled(refusing(1)), settled(asking([1, 2]))], lambda asked: True), tenfold
    )
    assert str(first) == "no more" and isinstance(first, UserError)
    assert second == [10, 20]
    with pytest.raises(UserError, match="no more"):
        drive(abreast([refusing(1), asking([1, 2])], lambda asked: True), tenfold)


@dataclass(frozen=True)
class Costly:
    seconds: float


class Watch:
    """A clock that stands still but when it is told to go on."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_time_is_told_by_whose_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Own turns count, and one's share of the answers; waiting for others does not."""
    watch = Watch()
    monkeypatch.setattr(courses, "time", watch)

    def busy(seconds: float, cost: float) -> Course[float, Costly, str]:
        watch.now += seconds
        yield [cost]
        watch.now += seconds
        return "done"

    def answer(asked: Sequence[float]) -> list[Costly]:
        watch.now += sum(asked)
        return [Costly(cost) for cost in asked]

    found = drive(abreast([timed(busy(1, 10)), timed(busy(100, 1000))], lambda asked: True), answer)
    assert found == [("done", 12.0), ("done", 1200.0)]
    assert watch.now == sum(seconds for _, seconds in found)
