"""Reach a site in another process over a pair of pipes: whatever goes between them goes as bytes.

The server's half is a backend; the site's half, `serve`, answers requests until its input ends. Before each request and
reply go eight bytes with its length. A site that ends early leaves its clients missing, and the run goes on.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch

from fedloom.client.site import Profile, Question
from fedloom.engine.rounds import Backend
from fedloom.framing import prefixed, split
from fedloom.messages import Answer, Assignment, Missing, answer_from_bytes
from fedloom.params import Layout, Params
from fedloom.record import Clock
from fedloom.tasks import UNPARSED
from fedloom.tasks.scoring import Judged

SIZE = struct.Struct("<Q")
START, DESCRIBE, TRAIN, MEASURE, ANSWER = b"sdtma"


@dataclass(frozen=True)
class Remote:
    """A backend whose site is another process.

    Attributes:
        requests: The input of the process that runs `serve`.
        replies: Its output.
        layout: Names and shapes of what is exchanged.
    """

    requests: IO[bytes]
    replies: IO[bytes]
    layout: Layout

    def start(self, method: str) -> Params:
        """Return the parameters of a method's first round."""
        return Assignment.from_bytes(self._ask(START, method.encode()), self.layout).params

    def describe(self, method: str) -> Sequence[Profile]:
        """Return the profile of each client, by its number."""
        return [Profile(*one) for one in json.loads(self._ask(DESCRIBE, method.encode()))]

    def answer(self, questions: Sequence[Question]) -> list[Judged]:
        """Answer questions, all about the same examples, each with its own model."""
        for one in questions:
            self._send(ANSWER, question_bytes(one))
        self._send(ANSWER, b"")
        return [judged_from(one) for one in json.loads(self._receive())]

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
        """Let clients train one after the other; where the site has failed, a client and those after it are `Missing`."""
        for assignment in assignments:
            answer = self._answered(TRAIN, assignment)
            clock.lap("site")
            yield answer

    def measure(self, assignments: Iterable[Assignment], probe: str) -> Iterator[Answer]:
        """Measure a probe of `fedloom.client.probes` at each client."""
        return (self._answered(MEASURE, assignment, probe) for assignment in assignments)

    def _answered(self, kind: int, assignment: Assignment, probe: str = "") -> Answer:
        try:
            request = prefixed(probe.encode(), assignment.to_bytes())
            answer = answer_from_bytes(self._ask(kind, request), self.layout)
            if answer.client != assignment.client:
                raise ValueError(f"it answered as client {answer.client}")
            return answer
        except (OSError, EOFError, ValueError) as error:
            return Missing(assignment.client, f"its site failed: {error}")

    def _ask(self, kind: int, content: bytes) -> bytes:
        self._send(kind, content)
        return self._receive()

    def _send(self, kind: int, content: bytes) -> None:
        _write(self.requests, bytes([kind]) + content)

    def _receive(self) -> bytes:
        return _read(self.replies)


def serve(backend: Backend, layout: Layout, requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer a server's requests until they end.

    Args:
        backend: The site, and how its clients train.
        layout: Names and shapes of what is exchanged.
        requests: What `Remote` sends.
        replies: Where answers go.
    """
    questions = list[Question]()
    while True:
        try:
            request = _read(requests)
        except EOFError:
            return
        kind, content = request[0], request[1:]
        if kind == START:
            _write(replies, Assignment("", 0, 0, 0, backend.start(content.decode())).to_bytes())
        elif kind == DESCRIBE:
            _write(replies, json.dumps(list(backend.describe(content.decode()))).encode())
        elif kind in (TRAIN, MEASURE):
            probe, message = split(content)
            asked = [Assignment.from_bytes(message, layout)]
            (answer,) = (
                backend.train(asked, Clock()) if kind == TRAIN else backend.measure(asked, probe.decode())
            )
            _write(replies, answer.to_bytes())
        elif content:
            questions.append(question_from(content, layout))
        else:
            _write(replies, json.dumps([judged_plain(one) for one in backend.answer(questions)]).encode())
            questions.clear()


def question_bytes(question: Question) -> bytes:
    """Write a question as bytes."""
    one = question
    asked = Assignment(one.method, one.stage, 0, one.client or 0, one.params, since=one.since)
    return prefixed(json.dumps([one.client is not None, one.test, one.slice]).encode(), asked.to_bytes())


def question_from(content: bytes, layout: Layout) -> Question:
    """Read what `question_bytes` wrote.

    Raises:
        ValueError: The bytes are damaged, or for another layout.
    """
    fields, content = split(content)
    has_client, test, slice = json.loads(fields)
    asked = Assignment.from_bytes(content, layout)
    client = asked.client if has_client else None
    return Question(asked.method, asked.stage, asked.params, client, asked.since, test, slice)


def judged_plain(judged: Judged) -> list[Any]:
    """Write answers as plain values."""
    answers = [
        None if one is UNPARSED else list(one) if isinstance(one, tuple) else one for one in judged.answers
    ]
    chances = [None if one is None else one.tolist() for one in judged.probabilities]
    return [answers, chances, judged.replies, judged.answer_form]


def judged_from(plain: list[Any]) -> Judged:
    """Read what `judged_plain` wrote."""
    answers, chances, replies, form = plain
    return Judged(
        tuple(UNPARSED if one is None else tuple(one) if isinstance(one, list) else one for one in answers),
        tuple(None if one is None else torch.tensor(one, dtype=torch.float64).numpy() for one in chances),
        tuple(replies),
        form,
    )


def _write(stream: IO[bytes], content: bytes) -> None:
    stream.write(SIZE.pack(len(content)))
    stream.write(content)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    """Read a request or reply.

    Raises:
        EOFError: The other side has ended.
    """
    head = stream.read(SIZE.size)
    if len(head) < SIZE.size:
        raise EOFError("it has ended")
    (size,) = SIZE.unpack(head)
    content = stream.read(size)
    if len(content) < size:
        raise EOFError("it has ended")
    return content
