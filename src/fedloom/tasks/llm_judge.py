"""A language model as the judge of free answers: what it is asked, and how its verdict is read.

FedMLLM lets a remote service judge each answer with 0 or 1 from question, truth and reply, and reports the
share of ones for open and closed questions. Here the judge is any function from prompts to replies; a local
causal language model is one (`fedloom.models.judge_model`). Nothing here loads a model.

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
"""Prompts → what the judge says to each."""

JUDGED_TASKS = ("vqa",)
"""Tasks whose answers a judge is asked about."""


def judge_prompt(question: str, truth: str, reply: str) -> str:
    """Ask whether a reply means the same as the right answer.

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


def parse_verdict(said: str) -> bool | Unparsed:
    """Return what the judge decided; `UNPARSED` where it names neither 0 nor 1, or both.

    Example:
        >>> parse_verdict(" 1."), parse_verdict("Verdict: 0"), parse_verdict("0 or 1"), parse_verdict("10")
        (True, False, UNPARSED, UNPARSED)
    """
    found = set(re.findall(r"\d+(?:\.\d+)?", said))
    return found == {"1"} if len(found) == 1 and found <= {"0", "1"} else UNPARSED


def judged_scores(judge: Judge, examples: Sequence[Example], replies: Sequence[str | None]) -> Scores:
    """Let a judge decide about replies.

    An empty reply is wrong without being asked about, and so is one whose verdict cannot be read.

    Args:
        judge: Told each question, its right answer and the reply.
        examples: What was asked.
        replies: What was said to each, None or empty where nothing was.

    Returns:
        "accuracy_judged", the same for each kind of answer ("accuracy_judged_open"), and "unjudged", the
        share of verdicts asked for that could not be read. Fractions 0..1; None where there is nothing.
    """
    asked = [place for place, reply in enumerate(replies) if reply and reply.strip()]
    prompts = [
        judge_prompt(examples[place].question, examples[place].answer, replies[place] or "")
        for place in asked
    ]
    said = judge(prompts) if prompts else []
    verdicts = {place: parse_verdict(text) for place, text in zip(asked, said, strict=True)}
    right = [float(verdicts.get(place) is True) for place in range(len(examples))]
    kinds = sorted({example.kind for example in examples if example.kind is not None})
    by_kind = {
        f"accuracy_judged_{kind}": mean(
            [value for value, example in zip(right, examples, strict=True) if example.kind == kind]
        )
        for kind in kinds
    }
    unread = [float(verdict is UNPARSED) for verdict in verdicts.values()]
    return {"accuracy_judged": mean(right), **by_kind, "unjudged": mean(unread)}
