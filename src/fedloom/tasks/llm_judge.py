"""Let a language model judge free answers: the prompt, and the parsing of its verdict.

In FedMLLM a remote service judges each answer with 0 or 1, given question, right answer and reply, and the paper reports
the share of ones for open and closed questions. Here the judge is any function from prompts to replies, such as a local
causal language model (`fedloom.models.judge_model`). This module does not load models.

Reference: B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data", arXiv
2411.14717v2, accuracy of medical answers.

Differs from the paper: our own words; the model is local and decodes greedily, so a verdict is repeatable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from fedloom.tasks.metrics import mean
from fedloom.tasks.task import UNPARSED, Scores, Unparsed, clean_text
from fedloom.types import Example

Judge = Callable[[Sequence[str]], list[str]]
"""Prompts → the replies of the judge."""

JUDGED_TASKS = ("vqa",)
"""Tasks whose answers are judged."""


def judge_prompt(question: str, truth: str, reply: str) -> str:
    """Return the prompt that asks whether a reply means the same as the right answer.

    Example:
        >>> print(judge_prompt("Which organ is shown?", "liver", "It is the liver."))
        Decide whether a reply to a question is correct. It is correct if it means the same as the reference.
        Question: Which organ is shown?
        Reference: liver
        Reply: It is the liver.
        Say 1 if the reply is correct and 0 if it is not. Say nothing else.
    """
    return "\n".join(
        [
            "Decide whether a reply to a question is correct. "
            "It is correct if it means the same as the reference.",
            f"Question: {clean_text(question)}",
            f"Reference: {clean_text(truth)}",
            f"Reply: {clean_text(reply)}",
            "Say 1 if the reply is correct and 0 if it is not. Say nothing else.",
        ]
    )


def parse_verdict(verdict: str) -> bool | Unparsed:
    """Return the decision of the judge, or `UNPARSED` if it names neither 0 nor 1, or both.

    Example:
        >>> parse_verdict(" 1."), parse_verdict("Verdict: 0"), parse_verdict("0 or 1"), parse_verdict("10")
        (True, False, UNPARSED, UNPARSED)
    """
    numbers = set(re.findall(r"\d+(?:\.\d+)?", verdict))
    return numbers == {"1"} if len(numbers) == 1 and numbers <= {"0", "1"} else UNPARSED


def judged_scores(judge: Judge, examples: Sequence[Example], replies: Sequence[str | None]) -> Scores:
    """Compute the scores of replies with a judge.

    Empty replies are wrong and not judged; replies whose verdict cannot be parsed are wrong too.

    Args:
        judge: The judge.
        examples: The questions.
        replies: The reply to each question, None or empty if there is none.

    Returns:
        "accuracy_judged", the same for each kind of answer ("accuracy_judged_open"), and "unjudged", the
        share of verdicts that could not be parsed. Fractions 0..1; None for a mean of no values.
    """
    judged = [place for place, reply in enumerate(replies) if reply and reply.strip()]
    prompts = [
        judge_prompt(examples[place].question, examples[place].answer, replies[place] or "")
        for place in judged
    ]
    texts = judge(prompts) if prompts else []
    verdicts = {place: parse_verdict(text) for place, text in zip(judged, texts, strict=True)}
    right = [float(verdicts.get(place) is True) for place in range(len(examples))]
    kinds = sorted({example.kind for example in examples if example.kind is not None})
    by_kind = {
        f"accuracy_judged_{kind}": mean(
            [value for value, example in zip(right, examples, strict=True) if example.kind == kind]
        )
        for kind in kinds
    }
    unparsed = [float(verdict is UNPARSED) for verdict in verdicts.values()]
    return {"accuracy_judged": mean(right), **by_kind, "unjudged": mean(unparsed)}
