"""Prompts: what the text of a question says about the modalities of its example."""

from __future__ import annotations

from typing import Final

from fedloom.types import Example, Presence

AGNOSTIC: Final = "Whatever kinds of evidence there are"
"""The constant clause of the modality-agnostic prompt, the same whichever modality is present."""


PROMPTS: Final[dict[str, str | None]] = {
    "present": None,
    "original": "Given the picture and the text",
    "relaxed": "Given what there is of picture and text",
    "agnostic": AGNOSTIC,
    "strict": "Given all the evidence, whatever kind it is of",
    "none": "",
}
"""Name → what a prompt says about modalities, in its instruction, if it has one, and before its question.

`present` names the modalities that are present (image and text, one of them, or none), as FedMLLM's prompts do.
The other five are its ablation of the prompt strategy: each has a fixed text, and `agnostic`
is the strategy itself. With `none` a free question is asked unchanged, as FedMLLM asks medical ones.

Reference: B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data", arXiv
2411.14717v2, prompt strategy, and the files for its prompt ablation in its public code.

Differs from the paper: the wording is our own; modalities are named before the question instead of after it.
"""


_PRESENT_PHRASES = {
    (True, True): "Given the picture and the text",
    (True, False): "Given the picture",
    (False, True): "Given the text",
    (False, False): "",
}


def modality_phrase(example: Example, present: Presence, clause: str | None = None) -> str:
    """Return what a prompt says about modalities: the clause, or the modalities that are present; "" if none is."""
    if clause is not None:
        return clause
    return _PRESENT_PHRASES[shows_image(example, present), shows_text(example, present)]


def shows_image(example: Example, present: Presence) -> bool:
    """Return whether an example has an image that may be seen."""
    return present.image and example.image is not None


def shows_text(example: Example, present: Presence) -> bool:
    """Return whether an example has a text that may be seen."""
    return present.text and example.text is not None
