"""Ask a trained model a question, or let it answer many examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch

from fedloom.client.answer_questions import answer_examples, max_tokens_after, score_options
from fedloom.client.site import Question
from fedloom.data.duplicates import normalized_text
from fedloom.data.python_images import python_image
from fedloom.data.record_fields import is_utf8
from fedloom.models.batches import generate
from fedloom.models.example_checks import why_too_long
from fedloom.params import Params
from fedloom.runs.saved_models import SavedModels
from fedloom.runs.site_setup import clause_of
from fedloom.system.errors import UserError
from fedloom.tasks.rendering import render
from fedloom.tasks.score_answers import Answers
from fedloom.tasks.task import clean_text
from fedloom.types import Example, Presence

TOKENS = 64
"""Most tokens of a free answer."""


@dataclass(frozen=True)
class Reply:
    """The answer of a model to a question.

    Attributes:
        answer: The likeliest option, or what the model wrote.
        scores: Option → its probability among the options; None for a free answer.
        method: The method that trained the model.
        client: The client whose own model it is, or None.
    """

    answer: str
    scores: Mapping[str, float] | None
    method: str
    client: int | None


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model of a run.

    Attributes:
        models: The models of the run, which share one base model.
        of: The question that names this model.
    """

    models: SavedModels
    of: Question

    @property
    def method(self) -> str:
        """The method that trained it."""
        return self.of.method

    @property
    def client(self) -> int | None:
        """The client whose own model it is, or None for the model of all."""
        return self.of.client

    @property
    def params(self) -> Params:
        """Its trainable parameters."""
        return self.models.params(self.of)

    def ask(
        self,
        image: Any = None,
        text: str | None = None,
        question: str | None = None,
        options: Sequence[str] = (),
        *,
        max_tokens: int = TOKENS,
    ) -> Reply:
        """Ask a question, in the prompt form with which the model was trained.

        Args:
            image: A path, the bytes of a file, a PIL image or an array of pixels, shape [height, width, 3]; None for none.
            text: A text that belongs to the question; None for none.
            question: The question.
            options: The possible answers, whose likelihoods are compared; empty for a free answer.
            max_tokens: Most tokens of a free answer, ≥ 1.

        Raises:
            UserError: There is no question, an argument is of the wrong kind, the model sees no images, all together is
                longer than what it can take, or the model's output is not finite.
        """
        example = check_question(image, text, question, options)
        vlm, presence = self._live(), [Presence(True, True)]
        settings = self.models.experiment.evaluate
        form = settings.answer if options else "text"
        (conversation,) = render([example], presence, form, clause=self._clause)
        if image is not None and not vlm.family.images:
            raise UserError("image: this model sees no images; ask it about a text")
        most = self.models.experiment.model.max_tokens
        if (reason := why_too_long(vlm, conversation, most)) is not None:
            raise UserError(f"the question with its text and options {reason}")
        if options:
            chances = torch.softmax(
                score_options(vlm, [conversation])[0][: len(options)].double(), 0
            ).tolist()
            if not all(map(isfinite, chances)):
                raise UserError(
                    f"the model {self.method} cannot answer: its output is not finite, because its training failed or "
                    "because model.precision has too small a range; ask another model"
                )
            scores = dict(zip(options, chances, strict=True))
            return Reply(max(scores, key=scores.__getitem__), scores, self.method, self.client)
        tokens = max_tokens_after(vlm, conversation, max_tokens)
        (answer,) = generate(vlm, [conversation], [vlm.connect], max_tokens=tokens)
        return Reply(answer.strip(), None, self.method, self.client)

    def answer(self, examples: Sequence[Example], presence: Sequence[Presence]) -> Answers:
        """Answer examples, as the run answered its test set."""
        vlm = self._live()
        return answer_examples(vlm, examples, presence, self.models.experiment.evaluate, clause=self._clause)

    @property
    def _clause(self) -> str | None:
        experiment = self.models.experiment
        return clause_of(experiment, experiment.method(self.method))

    def _live(self) -> Any:
        """Write this model's values into the shared base model, and return it."""
        tuned = self.models.context.tuned
        tuned.write(self.params)
        return tuned.vlm


def check_question(image: Any, text: str | None, question: str | None, options: Sequence[str]) -> Example:
    """Return a question as an example; see `TrainedModel.ask`.

    Raises:
        UserError: There is no question, or an argument is of the wrong kind.
    """
    if not isinstance(question, str) or not question.strip():
        raise UserError("question: a question is needed, such as question='What is shown?'")
    if text is not None and not isinstance(text, str):
        raise UserError(f"text: expected text, not a {type(text).__name__}")
    if isinstance(options, str) or not all(isinstance(one, str) and one.strip() for one in options):
        raise UserError("options: expected a list of texts, such as ['yes', 'no']")
    known = [("question", question), ("text", text), *(("options", option) for option in options)]
    for name, value in known:
        if value is not None and not is_utf8(value):
            raise UserError(f"{name}: holds a byte or half of a character that is not UTF-8 text")
    if options and len({normalized_text(clean_text(option)) for option in options}) < max(len(options), 2):
        raise UserError("options: at least two answers are needed that differ in more than case and space")
    return Example(
        "question",
        question,
        options[0] if options else "",
        image=None if image is None else python_image(image),
        text=text,
        label=0 if options else None,
        options=tuple(options),
        task="choice" if options else "vqa",
    )
