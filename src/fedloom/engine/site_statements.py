"""Read what sites state about themselves and about models, and refuse what no site of this version would send.

Updates are checked by admission (`fedloom.engine.admission`). All else that a site sends is read here, so that a faulty site is
a refused one, and ends no run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fedloom.engine.participation import JoinedSite
from fedloom.engine.remote_site import answers_from_plain
from fedloom.params import Layout
from fedloom.scenarios.declared_examples import KINDS
from fedloom.tasks.score_answers import HEADLINES, Answers
from fedloom.wire.messages import Answer, Missing, answer_from_bytes
from fedloom.wire.site_messages import SiteMessage

MOST_EXAMPLES = 100_000_000
"""Largest number of examples that a client may declare."""

LARGEST_SCORE = 1e300

Read = TypeVar("Read")


def read_statement(
    read: Callable[[Mapping[str, Any]], Read], head: Mapping[str, Any]
) -> tuple[Read | None, str]:
    """Read the head of an answer; return what it states, or None and the reason why that cannot be used."""
    try:
        return read(head), ""
    except ValueError as error:
        return None, f"what it states cannot be used: {error}"


def read_joined(head: Mapping[str, Any], node: int, methods: Sequence[str], *, own_data: bool) -> JoinedSite:
    """Read what a site states when it joins.

    Args:
        head: The head of its answer.
        node: Its node.
        methods: The methods for which it must state profiles.
        own_data: Whether each site brings data of its own.

    Raises:
        ValueError: A value is missing, or is of another form.
    """
    name, clients, profiles = head.get("site"), head.get("clients"), head.get("profiles")
    counts, validation = head.get("counts", {}), head.get("validation", dict.fromkeys(KINDS, 0))
    if not isinstance(name, str) or not name:
        raise ValueError("it states no name")
    if not isinstance(clients, list) or not all(_is_count(one) for one in clients):
        raise ValueError("its clients are not a list of numbers")
    if len(set(clients)) < len(clients):
        raise ValueError("it names a client twice")
    if not isinstance(profiles, dict) or not all(
        _are_profiles(one, len(clients) or 1) for one in profiles.values()
    ):
        raise ValueError("the profiles of its clients are malformed")
    if lacking := [method for method in methods if method not in profiles]:
        raise ValueError(f"it states no profiles for {lacking[0]}")
    if own_data and not (_are_example_counts(counts, 1) and _are_example_counts(validation, 0)):
        raise ValueError("its numbers of examples are malformed")
    return JoinedSite(
        name, node, tuple(clients), profiles, counts if own_data else {}, validation if own_data else {}
    )


def read_scores(head: Mapping[str, Any]) -> dict[str, Any]:
    """Read the scores of a model at a site: the numbers of examples, and scores by name and by task, or why it has none.

    Raises:
        ValueError: A value is missing, or is of another form.
    """
    examples, scores = head.get("examples"), head.get("scores")
    if examples == 0 and isinstance(head.get("reason"), str):
        return {"examples": 0, "reason": head["reason"]}
    tasks = scores.get("tasks", {}) if isinstance(scores, dict) else None
    if not _is_count(examples) or not isinstance(scores, dict) or not isinstance(tasks, dict):
        raise ValueError("its scores are malformed")
    if not set(tasks) <= set(HEADLINES):
        raise ValueError("its scores are those of an unknown task")
    top = {name: value for name, value in scores.items() if name != "tasks"}
    if not all(
        isinstance(some, dict) and all(map(_is_score, some.values())) for some in (top, *tasks.values())
    ):
        raise ValueError("its scores are not finite numbers")
    counts = head.get("counts")
    if counts is None and len(tasks) < 2:
        return {"examples": examples, "scores": scores}
    if not isinstance(counts, dict) or not all(map(_is_count, counts.values())):
        raise ValueError("its numbers of examples of each task are malformed")
    if set(counts) != set(tasks) or sum(counts.values()) != examples:
        raise ValueError("its numbers of examples of each task do not fit its scores")
    return {"examples": examples, "counts": counts, "scores": scores}


def read_answers(reply: SiteMessage, clients: Sequence[int], layout: Layout) -> Iterator[Answer]:
    """Yield the answer of each client in a site's reply; one that cannot be read, or is another client's, is `Missing`."""
    for client, part in zip(clients, reply.parts, strict=False):
        try:
            answer = answer_from_bytes(part, layout)
            if answer.client != client:
                raise ValueError(f"it answered as client {answer.client}")
            yield answer
        except ValueError as error:
            yield Missing(client, f"its site's answer could not be read: {error}")


def read_judged(head: Mapping[str, Any], count: int) -> list[Answers]:
    """Read a site's answers to `count` questions about its clients' models.

    Raises:
        ValueError: A value is missing, or is of another form.
    """
    judged = head.get("judged")
    if not isinstance(judged, list) or len(judged) != count:
        raise ValueError(f"these are not answers to {count} questions")
    try:
        return [answers_from_plain(one) for one in judged]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"its answers are malformed ({error})") from error


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_EXAMPLES


def _are_example_counts(counts: object, least: int) -> bool:
    """Return whether counts are numbers of examples of each kind, at least `least` in all."""
    if not isinstance(counts, dict) or set(counts) != set(KINDS) or not all(map(_is_count, counts.values())):
        return False
    return least <= sum(counts.values()) <= MOST_EXAMPLES


def _are_profiles(values: object, count: int) -> bool:
    """Return whether values are as many profiles (`fedloom.client.site.Profile`), as JSON has them."""
    return isinstance(values, list) and len(values) == count and all(map(_is_profile, values))


def _is_profile(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    examples, images, texts = value
    return _is_count(examples) and examples > 0 and isinstance(images, bool) and isinstance(texts, bool)


def _is_score(value: object) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return -LARGEST_SCORE <= value <= LARGEST_SCORE  # which no NaN is
    return value is None
