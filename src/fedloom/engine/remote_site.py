"""Reach a site in another process over a pair of pipes, which carry all messages as bytes.

The server's half is a backend; the site's half, `serve`, answers requests until its input ends. Requests and replies have the
form of the messages of sites on other machines, and eight bytes with its length precede each. If a site ends early, its
clients are missing and the run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch

from fedloom.client.site import Profile, Question
from fedloom.engine.rounds import Backend
from fedloom.engine.timed_answers import from_bytes, timed, to_bytes
from fedloom.params import Layout, Params
from fedloom.system.errors import UserError, error_sentence
from fedloom.system.timing import Clock
from fedloom.tasks import UNPARSED
from fedloom.tasks.score_answers import Answers
from fedloom.wire.framing import prepend_field, split_field
from fedloom.wire.messages import Answer, Assignment, Missing
from fedloom.wire.site_messages import SiteMessage, receive_bytes, send_bytes


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
        (content,) = self._ask(SiteMessage("start", {"method": method})).parts
        return Assignment.from_bytes(content, self.layout).params

    def describe(self, method: str) -> Sequence[Profile]:
        """Return the profile of each client, by its number."""
        profiles = self._ask(SiteMessage("describe", {"method": method})).head["profiles"]
        return [Profile(*fields) for fields in profiles]

    def answer(self, questions: Sequence[Question]) -> list[Answers]:
        """Answer questions, all about the same examples, each with its own model."""
        return judged_of(self._ask(answer_request(questions)))

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
        """Let clients train one after the other; once the site has failed, all further clients are `Missing`."""
        for assignment in assignments:
            answer = self._answer_to(SiteMessage("train", {}, (assignment.to_bytes(),)), assignment.client)
            clock.lap("site")
            yield answer

    def measure(self, assignments: Iterable[Assignment], probe: str) -> Iterator[Answer]:
        """Run a probe of `fedloom.client.client_measurements` at each client."""
        return (
            self._answer_to(SiteMessage("measure", {"probe": probe}, (one.to_bytes(),)), one.client)
            for one in assignments
        )

    def _answer_to(self, request: SiteMessage, client: int) -> Answer:
        try:
            (content,) = self._ask(request).parts
            answer, _ = from_bytes(content, self.layout)
            if answer.client != client:
                raise ValueError(f"it answered as client {answer.client}")
            return answer
        except (OSError, EOFError, ValueError) as error:
            return Missing(client, f"its site failed: {error}")

    def _ask(self, request: SiteMessage) -> SiteMessage:
        send_bytes(self.requests, request.to_bytes())
        return receive_reply(self.replies)


def receive_reply(replies: IO[bytes]) -> SiteMessage:
    """Read the reply of `serve` to a request.

    Raises:
        UserError: The site refused the request.
        EOFError: The site has ended.
        ValueError: The bytes are damaged.
    """
    reply = SiteMessage.from_bytes(receive_bytes(replies))
    if reply.kind == "refused":
        raise UserError(str(reply.head["reason"]))
    return reply


def serve(answer: Callable[[SiteMessage], SiteMessage], requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer a server's requests until they end; an error is an answer, too.

    Args:
        answer: Request → answer, such as `reply_to` with a backend.
        requests: The requests.
        replies: The stream to which answers are written.
    """
    while True:
        try:
            request = receive_bytes(requests)
        except EOFError:
            return
        try:
            reply = answer(SiteMessage.from_bytes(request))
        except Exception as error:
            reply = SiteMessage("refused", {"reason": error_sentence(error)})
        send_bytes(replies, reply.to_bytes())


def reply_to(backend: Backend, layout: Layout, request: SiteMessage) -> SiteMessage:
    """Return a site's reply to a request.

    Args:
        backend: The site, and how its clients train.
        layout: Names and shapes of what is exchanged.
        request: The request.

    Raises:
        ValueError: There is no such request, or its parts are damaged.
    """
    head, parts = request.head, request.parts
    if request.kind == "start":
        start = Assignment("", 0, 0, 0, backend.start(head["method"]))
        return SiteMessage("answered", {}, (start.to_bytes(),))
    if request.kind == "describe":
        return SiteMessage("answered", {"profiles": list(backend.describe(head["method"]))})
    if request.kind == "answer":
        questions = [question_from_bytes(one, layout) for one in parts]
        return SiteMessage(
            "answered", {"judged": [answers_to_plain(one) for one in backend.answer(questions)]}
        )
    if request.kind not in ("train", "measure"):
        raise ValueError(f"there is no request {request.kind!r}")
    assignments = [Assignment.from_bytes(one, layout) for one in parts]
    if request.kind == "train":
        return SiteMessage("answered", {}, tuple(map(to_bytes, timed(backend, assignments))))
    results = backend.measure(assignments, head["probe"])
    return SiteMessage("answered", {}, tuple(to_bytes((one, {})) for one in results))


def answer_request(questions: Sequence[Question], **head: Any) -> SiteMessage:
    """Return the request to answer questions."""
    return SiteMessage("answer", head, tuple(map(question_to_bytes, questions)))


def judged_of(reply: SiteMessage) -> list[Answers]:
    """Return the answers of the reply to `answer_request`."""
    return [answers_from_plain(values) for values in reply.head["judged"]]


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
