"""Prompts that say nothing, or something else, of an example's modalities; `fedloom.tasks.base.PROMPTS` words them."""

from __future__ import annotations

from fedloom.algorithms.entry import Entry


def prompt(*, variant: str = "agnostic") -> str:
    """Return the key of `fedloom.tasks.base.PROMPTS` that words the prompts.

    Args:
        variant: agnostic is FedMLLM's strategy, the others are its ablation.
    """
    return variant


ENTRIES = {
    "prompt": Entry(
        prompt,
        "prompt",
        "prompt",
        "The instruction does not name the evidence of each example; by default it uses the same words whatever evidence "
        "is there (FedMLLM).",
    )
}
