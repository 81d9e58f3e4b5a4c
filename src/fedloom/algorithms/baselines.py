"""Baselines: what federated algorithms are compared with, by name."""

from __future__ import annotations

from typing import NamedTuple


class Baseline(NamedTuple):
    """A method that is not federated.

    Attributes:
        label: Its name in reports.
        about: What it is, in one sentence.
    """

    label: str
    about: str


BASELINES = {
    "zero-shot": Baseline("zero-shot", "The pretrained model without training on this data."),
    "linear": Baseline(
        "linear baseline",
        "A linear classifier on edges, colors and words, trained on the pooled data of all clients.",
    ),
    "local": Baseline("local (mean)", "Each client trains alone; scores are means over clients."),
    "centralized": Baseline(
        "centralized",
        "One training run on the pooled data of all clients, as a baseline for federated training.",
    ),
}
"""Name → baseline, in the order of reports."""
