"""The signature of loaders, and divisions of examples that keep near-duplicates in one part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.random import Generator

from fedloom.seeds import stream
from fedloom.types import DataSet, Example

if TYPE_CHECKING:
    from fedloom.config.schema import Data

FILES = Path(__file__).parent / "files"
"""The folder of the bundled data sets."""


Loader = Callable[["Data", int], DataSet]
"""(settings, seed) → data set."""


def divide(
    examples: Sequence[Example], keys: Sequence[Sequence[Hashable]], share: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Divide examples into train and test with similar answers, and keep near-duplicates in one part.

    Args:
        examples: The examples; both parts keep their order.
        keys: For each example the keys of its near-duplicates (an image's key, a base); examples that share
            a key, directly or through others, stay together.
        share: Share of test examples, 0 < share < 1; met as closely as near-duplicates allow.
        seed: The experiment's seed; draws come from its stream "split".

    Returns:
        (train, test). The test set is empty if every group of connected examples is larger than the share.
    """
    count = min(max(round(share * len(examples)), 1), len(examples) - 1)
    chosen = stratified_sample(examples, connected_groups(keys), count, stream(seed, "split"))
    return (
        tuple(example for index, example in enumerate(examples) if index not in chosen),
        tuple(example for index, example in enumerate(examples) if index in chosen),
    )


def subsample(examples: Sequence[Example], limit: int, seed: int) -> tuple[Example, ...]:
    """Draw min(limit, all) examples, similar in answers and in their order, from the stream "limit"."""
    groups = [[index] for index in range(len(examples))]
    chosen = stratified_sample(examples, groups, min(limit, len(examples)), stream(seed, "limit"))
    return tuple(examples[index] for index in sorted(chosen))


def _stratum(example: Example) -> str:
    return example.answer if example.options else example.group or ""


def stratified_sample(
    examples: Sequence[Example], groups: Sequence[Sequence[int]], count: int, rng: Generator
) -> set[int]:
    """Draw at most `count` indices in whole groups, from every stratum in proportion."""
    strata: dict[str, list[Sequence[int]]] = defaultdict(list)
    for group in groups:
        strata[_stratum(examples[group[0]])].append(group)
    names = sorted(strata)
    chosen: set[int] = set()
    seen = 0
    for at in rng.permutation(len(names)):
        stratum = strata[names[at]]
        seen += sum(map(len, stratum))
        # The target is cumulative, so that the next stratum makes up for what this one cannot give.
        target = round(count * seen / len(examples))
        for index in rng.permutation(len(stratum)):
            if len(chosen) + len(stratum[index]) <= target:
                chosen.update(stratum[index])
    return chosen


def connected_groups(keys: Sequence[Sequence[Hashable]]) -> list[list[int]]:
    """Group the indices that are connected by shared keys, each group and the list in index order."""
    parent = list(range(len(keys)))

    def head(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[Hashable, int] = {}
    for index, own in enumerate(keys):
        for key in own:
            low, high = sorted((head(first.setdefault(key, index)), head(index)))
            parent[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(keys)):
        groups[head(index)].append(index)
    return list(groups.values())
