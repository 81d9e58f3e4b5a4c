"""Reach a site in another process over a pair of pipes, which carry all messages as bytes.

The server's half is a backend; the site's half, `serve`, answers requests until its input ends. Eight bytes with its length
precede each request and reply. If a site ends early, its clients are missing and the run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch

from fedloom.client.site import Profile, Question
from fedloom.engine.rounds import Backend
from fedloom.params import Layout, Params
from fedloom.system.timing import Clock
from fedloom.tasks import UNPARSED
from fedloom.tasks.score_answers import Answers
from fedloom.wire.framing import prepend_field, split_field
from fedloom.wire.messages import Answer, Assignment, Missing, answer_from_bytes
from fedloom.wire.site_messages import receive_bytes, send_bytes

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
        return [Profile(*fields) for fields in json.loads(self._ask(DESCRIBE, method.encode()))]

    def answer(self, questions: Sequence[Question]) -> list[Answers]:
        """Answer questions, all about the same examples, each with its own model."""
        for question in questions:
            self._send(ANSWER, question_to_bytes(question))
        self._send(ANSWER, b"")
        return [answers_from_plain(values) for values in json.loads(self._receive())]

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
        """Let clients train one after the other; once the site has failed, all further clients are `Missing`."""
        for assignment in assignments:
            answer = self._answer_to(TRAIN, assignment)
            clock.lap("site")
            yield answer

    def measure(self, assignments: Iterable[Assignment], probe: str) -> Iterator[Answer]:
        """Run a probe of `fedloom.client.client_measurements` at each client."""
        return (self._answer_to(MEASURE, assignment, probe) for assignment in assignments)

    def _answer_to(self, kind: int, assignment: Assignment, probe: str = "") -> Answer:
        try:
            request = prepend_field(probe.encode(), assignment.to_bytes())
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
        send_bytes(self.requests, bytes([kind]) + content)

    def _receive(self) -> bytes:
        return receive_bytes(self.replies)


def serve(backend: Backend, layout: Layout, requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer a server's requests until they end.

    Args:
        backend: The site, and how its clients train.
        layout: Names and shapes of what is exchanged.
        requests: The requests that `Remote` sends.
        replies: The stream to which answers are written.
    """
    questions = list[Question]()
    while True:
        try:
            request = receive_bytes(requests)
        except EOFError:
            return
        kind, content = request[0], request[1:]
        if kind == START:
            send_bytes(replies, Assignment("", 0, 0, 0, backend.start(content.decode())).to_bytes())
        elif kind == DESCRIBE:
            send_bytes(replies, json.dumps(list(backend.describe(content.decode()))).encode())
        elif kind in (TRAIN, MEASURE):
            probe, message = split_field(content)
            assignments = [Assignment.from_bytes(message, layout)]
            (answer,) = (
                backend.train(assignments, Clock())
                if kind == TRAIN
                else backend.measure(assignments, probe.decode())
            )
            send_bytes(replies, answer.to_bytes())
        elif content:
            questions.append(question_from_bytes(content, layout))
        else:
            send_bytes(
                replies,
                json.dumps([answers_to_plain(answers) for answers in backend.answer(questions)]).encode(),
            )
            questions.clear()


def question_to_bytes(question: Question) -> bytes:
    """Return a question as bytes."""
    assignment = Assignment(
        question.method, question.stage, 0, question.client or 0, question.params, since=question.since
    )
    fields = json.dumps(
        [question.client is not None, question.test, question.slice, question.own_share]
    ).encode()
    return prepend_field(fields, assignment.to_bytes())


def question_from_bytes(content: bytes, layout: Layout) -> Question:
    """Read a question that `question_to_bytes` wrote.

    Raises:
        ValueError: The bytes are damaged, or for another layout.
    """
    fields, content = split_field(content)
    has_client, test, slice, own_share = json.loads(fields)
    sent = Assignment.from_bytes(content, layout)
    client = sent.client if has_client else None
    return Question(sent.method, sent.stage, sent.params, client, sent.since, test, slice, own_share)


def answers_to_plain(answers: Answers) -> list[Any]:
    """Return answers as values that JSON can hold."""
    plain = [
        None if answer is UNPARSED else list(answer) if isinstance(answer, tuple) else answer
        for answer in answers.answers
    ]
    chances = [None if row is None else row.tolist() for row in answers.probabilities]
    return [plain, chances, answers.replies, answers.answer_form]


def answers_from_plain(values: list[Any]) -> Answers:
    """Return the answers of which `answers_to_plain` returned the values."""
    answers, chances, replies, form = values
    return Answers(
        tuple(
            UNPARSED if answer is None else tuple(answer) if isinstance(answer, list) else answer
            for answer in answers
        ),
        tuple(None if row is None else torch.tensor(row, dtype=torch.float64).numpy() for row in chances),
        tuple(replies),
        form,
    )
