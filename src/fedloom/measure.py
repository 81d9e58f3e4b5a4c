"""Score a model as the report shows it: by modality slice, over all test examples, and for each client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.client.evaluate import EvaluateSettings, Judged, judge_rows, right, score
from fedloom.models.batch import Connect
from fedloom.models.load import Vlm
from fedloom.scenarios.plan import Plan, Share
from fedloom.types import Example, Presence

SLICES = {"both": Presence(True, True), "image": Presence(True, False), "text": Presence(False, True)}
"""What of its evidence a test example shows."""


def slices_of(examples: Sequence[Example]) -> list[str]:
    """List the slices a data set has, the fullest first: without text (or images) there is only one."""
    images = any(example.image is not None for example in examples)
    texts = any(example.text is not None for example in examples)
    return list(SLICES) if images and texts else ["image"] if images else ["text"]


def answer_slice(
    vlm: Vlm,
    connects: Sequence[Connect],
    examples: Sequence[Example],
    name: str,
    settings: EvaluateSettings,
    *,
    clause: str | None,
) -> list[Judged]:
    """Answer all test examples with the evidence of one slice, with each client's adapters."""
    presence = [SLICES[name]] * len(examples)
    return judge_rows(vlm, connects, examples, presence, settings, clause=clause)


def figures(
    train: Sequence[Example], test: Sequence[Example], plan: Plan, answers: Mapping[str, Judged]
) -> dict[str, Any]:
    """Gather the scores of one model: the fullest slice on top, every slice, and every client.

    Args:
        train: Training examples, which the plan divides.
        test: Test examples.
        plan: Who holds what.
        answers: Judged answers to `test` by slice, the fullest first.
    """
    scores = {name: score(test, judged) for name, judged in answers.items()}
    correct = {name: right(test, judged) for name, judged in answers.items()}
    clients = [expected_accuracy(share, train, test, correct) for share in plan.clients]
    return {**scores[next(iter(scores))], "slices": scores, "clients": clients}


def expected_accuracy(
    share: Share,
    train: Sequence[Example],
    test: Sequence[Example],
    correct: Mapping[str, NDArray[np.float64]],
) -> float | None:
    """Estimate a model's accuracy on data like one client's own.

    Σ_{c, s} p_k(c, s) · accuracy(c, s), with p_k(c, s) the share of client k's training examples of class c
    that show the evidence s, and accuracy(c, s) measured on all test examples of class c. That uses the
    whole test set for every client. Classes without a test example are left out of the sum and the rest is
    scaled up; None if none is left.
    """
    kinds = np.array([_kind(example) for example in test])
    wanted: Counter[tuple[str, str]] = Counter()
    for index, image, text in zip(share.indices, share.image, share.text, strict=True):
        wanted[_kind(train[index]), _slice(bool(image), bool(text), correct)] += 1
    total, gained = 0, 0.0
    for (kind, name), count in sorted(wanted.items()):
        places = kinds == kind
        if places.any():
            total += count
            gained += count * float(correct[name][places].mean())
    return gained / total if total else None


def _kind(example: Example) -> str:
    return example.answer if example.options else example.group or example.task


def _slice(image: bool, text: bool, known: Mapping[str, Any]) -> str:
    name = "both" if image and text else "image" if image else "text"
    return name if name in known else next(iter(known))
