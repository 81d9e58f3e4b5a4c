"""Answer questions with a model: choose the likeliest option, or generate a reply and parse it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedloom.client.answer_passes import passes
from fedloom.models.batches import Connect, encode, generate, option_scores
from fedloom.models.decoder_inputs import max_positions
from fedloom.models.load_model import Vlm
from fedloom.models.teacher_forcing import teacher_forced
from fedloom.system.processes import run_forked, threads_per_process
from fedloom.tasks import TASKS, UNPARSED, Answer, Unparsed
from fedloom.tasks.rendering import render
from fedloom.tasks.score_answers import Answers
from fedloom.types import Conversation, Example, Presence

if TYPE_CHECKING:
    from fedloom.config.schema import Evaluate

BATCH_SIZE = 32
"""Conversations in one pass, over all clients that answer side by side; fewer where they would take too much memory, see
`fedloom.client.answer_passes`."""

PACKED = 2048
"""Most tokens of a question's options in one pass, unless a single option has more: a pass takes time and memory that
grow with their square. Options beyond that take further passes."""

Share = tuple[int, int]
"""A part of the questions: its number, from 0 on, and the number of parts. Batches are formed of all questions and then dealt
to the parts, so answers do not depend on the number of parts."""

WHOLE: Share = (0, 1)
"""All questions."""


def answer_examples(
    vlm: Vlm,
    examples: Sequence[Example],
    presence: Sequence[Presence],
    settings: Evaluate,
    *,
    clause: str | None = None,
) -> Answers:
    """Answer every example with the live model; see `answer_rows`."""
    return answer_rows(vlm, [vlm.connect], examples, presence, settings, clause=clause)[0]


def answer_rows(
    vlm: Vlm,
    connects: Sequence[Connect],
    examples: Sequence[Example],
    presence: Sequence[Presence],
    settings: Evaluate,
    *,
    clause: str | None = None,
    workers: int = 1,
    share: Share = WHOLE,
) -> list[Answers]:
    """Answer every example with each of K clients' adapters that lie side by side in the model.

    Options are compared by likelihood unless the settings say "generate"; all other answers are generated, or
    teacher-forced if the settings say so. Questions of similar length share a batch, which changes no answer.

    Args:
        vlm: The model.
        connects: The K clients' connectors.
        examples: The questions.
        presence: The modalities that each example shows.
        settings: Form of the answer and way of choosing it.
        clause: What prompts say of the modalities; None names those that are present.
        workers: Processes that answer at once; more than one needs `fedloom.system.processes.can_fork`.
        share: Which part of the examples is answered.

    Returns:
        Each client's answers; those to other parts are `UNPARSED`, with neither reply nor probabilities, and so is an answer
        where the model's output is not finite.
    """
    conversations = render(examples, presence, settings.answer, clause=clause)
    rows = range(len(connects))
    answers: list[list[Answer | Unparsed]] = [[UNPARSED] * len(examples) for _ in rows]
    replies: list[list[str | None]] = [[None] * len(examples) for _ in rows]
    probabilities: list[list[NDArray[np.float64] | None]] = [[None] * len(examples) for _ in rows]
    for row, k, result in _results(vlm, connects, conversations, settings, workers, share):
        if isinstance(result, str):
            replies[row][k] = result
            answers[row][k] = TASKS[examples[k].task].parse(result, examples[k], answer_form=settings.answer)
        elif all(map(isfinite, result)):  # argmax of NaN would be an option as any other
            chances = np.array(result)
            answers[row][k], probabilities[row][k] = int(chances.argmax()), chances
    return [
        Answers(tuple(answers[row]), tuple(probabilities[row]), tuple(replies[row]), settings.answer)
        for row in rows
    ]


Result = tuple[int, int, str | list[float]]
"""Client's row, number of the question, and a reply or the probabilities of the options."""


def _results(
    vlm: Vlm,
    connects: Sequence[Connect],
    conversations: Sequence[Conversation],
    settings: Evaluate,
    workers: int,
    share: Share,
) -> Iterator[Result]:
    """Yield the results of a share of the questions, which are answered in batches by length, here or in several processes."""
    scored = [bool(question.options) and settings.scoring == "likelihood" for question in conversations]
    order = sorted(
        range(len(conversations)),
        key=lambda k: (scored[k], conversations[k].picture is None, len(conversations[k].user), k),
    )
    size = max(1, BATCH_SIZE // len(connects))
    batches = [
        [k for k in order[start : start + size] if scored[k] is kind]
        for start in range(0, len(order), size)
        for kind in (False, True)
    ]
    batches = [numbers for numbers in batches if numbers][share[0] :: share[1]]

    def answer(numbers: Sequence[int]) -> list[Result]:
        batch = [conversations[k] for k in numbers]
        pairs = [(row, k) for row in range(len(connects)) for k in numbers]
        if not scored[numbers[0]]:
            replies = _replies(vlm, connects, batch, settings)
            return [(row, k, reply) for (row, k), reply in zip(pairs, replies, strict=True)]
        scores = [
            row_scores[: len(conversations[k].options)].double()
            for (_, k), row_scores in zip(pairs, score_options(vlm, batch, connects), strict=True)
        ]
        return [
            (row, k, torch.softmax(row_scores, 0).tolist())
            for (row, k), row_scores in zip(pairs, scores, strict=True)
        ]

    def messages(number: int) -> Iterator[bytes]:
        yield from (json.dumps(answer(numbers)).encode() for numbers in batches[number::workers])

    workers = min(workers, len(batches))
    if workers > 1:
        for conversation, likely in zip(conversations, scored, strict=True):
            if likely:  # tokenized here once, and not in every copy again
                encode(vlm, conversation, conversation.options)
        parts = [partial(messages, number) for number in range(workers)]
        for _, message in run_forked(parts, threads_per_process(workers)):
            yield from map(tuple, json.loads(message))
    else:
        for numbers in batches:
            yield from answer(numbers)


def score_options(
    vlm: Vlm, batch: Sequence[Conversation], connects: Sequence[Connect] | None = None
) -> Tensor:
    """Score every option as `fedloom.models.batches.option_scores` does, in as many passes as `PACKED` requires."""
    pieces = [_pieces(vlm, conversation) for conversation in batch]
    clients = 1 if connects is None else len(connects)
    scores = torch.zeros(clients, len(batch), max(len(conversation.options) for conversation in batch))
    for number in range(max(map(len, pieces))):
        left = [(k, own[number]) for k, own in enumerate(pieces) if number < len(own)]
        for some in passes(vlm, [_width(vlm, batch[k], piece) for k, piece in left], clients):
            part = [
                batch[k] if len(pieces[k]) == 1 else replace(batch[k], options=batch[k].options[piece])
                for k, piece in left[some]
            ]
            partial_scores = option_scores(vlm, part, connects).view(clients, len(part), -1)
            for at, (k, piece) in enumerate(left[some]):
                scores[:, k, piece] = partial_scores[:, at, : piece.stop - piece.start]
    return scores.flatten(0, 1)


def _width(vlm: Vlm, conversation: Conversation, piece: slice) -> int:
    """Return the tokens of a question with some of its options."""
    encoded = encode(vlm, conversation, conversation.options)
    return len(encoded.prompt) + sum(map(len, encoded.answers[piece]))


def _pieces(vlm: Vlm, conversation: Conversation) -> list[slice]:
    """Divide a question's options, in their order, into runs of at most `PACKED` tokens and of at least one option."""
    starts, room = [0], PACKED
    for number, answer in enumerate(encode(vlm, conversation, conversation.options).answers):
        if len(answer) > room and number > starts[-1]:
            starts, room = [*starts, number], PACKED
        room -= len(answer)
    return [slice(*ends) for ends in pairwise([*starts, len(conversation.options)])]


def _replies(
    vlm: Vlm, connects: Sequence[Connect], batch: Sequence[Conversation], settings: Evaluate
) -> list[str]:
    """Return the reply to every question, client after client."""
    replies = [[""] * len(batch) for _ in connects]
    for most, places in _by_length(vlm, batch, settings).items():
        some = [batch[place] for place in places]
        if settings.scoring == "teacher-forced":
            answer_all = partial(teacher_forced, vlm)
            widths = [
                _width(vlm, replace(conversation, options=(conversation.answer,)), slice(1))
                for conversation in some
            ]
        else:
            answer_all = partial(generate, vlm, max_tokens=most)
            widths = [len(encode(vlm, conversation, []).prompt) + most for conversation in some]
        for run in passes(vlm, widths, len(connects)):
            asked = places[run]
            texts = answer_all(some[run], connects=connects)
            for number, text in enumerate(texts):
                replies[number // len(asked)][asked[number % len(asked)]] = text
    return [reply for row in replies for reply in row]


def _by_length(vlm: Vlm, batch: Sequence[Conversation], settings: Evaluate) -> dict[int, list[int]]:
    """Return most tokens of a reply → the places of the questions that may have so many.

    They are the longest right answer of the batch plus a half of it and a few, or as many as the model has positions for after the
    question's own prompt: a long prompt must not cut the replies to others. Teacher forcing gives replies a length of its own.
    """
    if settings.scoring == "teacher-forced":
        return {0: list(range(len(batch)))}
    longest = max(len(vlm.tokenizer(conversation.answer)["input_ids"]) for conversation in batch)
    places: dict[int, list[int]] = {}
    for place, conversation in enumerate(batch):
        most = max_tokens_after(vlm, conversation, longest + longest // 2 + 4)
        places.setdefault(most, []).append(place)
    return places


def max_tokens_after(vlm: Vlm, conversation: Conversation, tokens: int) -> int:
    """Return a number of tokens, or as many as the model has positions for after a prompt if these are fewer; ≥ 1."""
    positions = max_positions(vlm)
    if positions is None:
        return tokens
    return max(1, min(tokens, positions - len(encode(vlm, conversation, []).prompt)))
