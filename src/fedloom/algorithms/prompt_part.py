"""The choice of prompts that name the modalities of an example in other words, or not at all; see `fedloom.tasks.prompts.PROMPTS`."""

from __future__ import annotations

from fedloom.algorithms.entry import Entry

VARIANTS = ("present", "original", "relaxed", "agnostic", "strict", "none")
"""The keys of `fedloom.tasks.prompts.PROMPTS`."""


def prompt(*, variant: str = "agnostic") -> str:
    """Return the key of `fedloom.tasks.prompts.PROMPTS` that words the prompts.

    Args:
        variant: agnostic is FedMLLM's strategy, the others are its ablation.

    Raises:
        ValueError: There is no such variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}; there are {', '.join(VARIANTS)}")
    return variant


ENTRIES = {
    "prompt": Entry(
        prompt,
        "prompt",
        "prompt",
        "The instruction does not name the modalities of each example; by default it uses the same words whatever is there "
        "(FedMLLM).",
    )
}
