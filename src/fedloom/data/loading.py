"""What a data set's loader is given, and how examples are divided without parting twins."""

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
"""Where the bundled data sets lie."""


Loader = Callable[["Data", int], DataSet]
"""(settings, seed) → data set."""


def divide(
    examples: Sequence[Example], twins: Sequence[Sequence[Hashable]], share: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Divide examples into train and test, alike in answers and with twins on one side.

    Args:
        examples: What to divide; both parts keep this order.
        twins: For each example the things it must not be parted over (an image's key, a base); two
            examples that have one in common, directly or through others, stay together.
        share: Share of test examples, 0..1 exclusive; met as closely as twins allow.
        seed: The experiment's seed; draws come from its stream "split".

    Returns:
        (train, test). One side is empty only where all examples hang together.
    """
    count = min(max(round(share * len(examples)), 1), len(examples) - 1)
    chosen = spread(examples, families(twins), count, stream(seed, "split"))
    return (
        tuple(example for index, example in enumerate(examples) if index not in chosen),
        tuple(example for index, example in enumerate(examples) if index in chosen),
    )


def thin(examples: Sequence[Example], limit: int, seed: int) -> tuple[Example, ...]:
    """Keep exactly min(limit, all) examples in order, alike in answers, from the stream "limit"."""
    alone = [[index] for index in range(len(examples))]
    chosen = spread(examples, alone, min(limit, len(examples)), stream(seed, "limit"))
    return tuple(examples[index] for index in sorted(chosen))


def _stratum(example: Example) -> str:
    return example.answer if example.options else example.group or ""


def spread(
    examples: Sequence[Example], together: Sequence[Sequence[int]], count: int, rng: Generator
) -> set[int]:
    """Choose at most `count` indices in whole families, from every stratum in proportion."""
    strata: dict[str, list[Sequence[int]]] = defaultdict(list)
    for family in together:
        strata[_stratum(examples[family[0]])].append(family)
    names = sorted(strata)
    chosen: set[int] = set()
    seen = 0
    for at in rng.permutation(len(names)):
        stratum = strata[names[at]]
        seen += sum(map(len, stratum))
        # The target is cumulative, so that what one stratum could not give the next one makes up for.
        target = round(count * seen / len(examples))
        for index in rng.permutation(len(stratum)):
            if len(chosen) + len(stratum[index]) <= target:
                chosen.update(stratum[index])
    return chosen


def families(twins: Sequence[Sequence[Hashable]]) -> list[list[int]]:
    """Group indices that are connected by shared keys, each family and the list in index order."""
    parent = list(range(len(twins)))

    def head(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[Hashable, int] = {}
    for index, keys in enumerate(twins):
        for key in keys:
            low, high = sorted((head(first.setdefault(key, index)), head(index)))
            parent[high] = low
    found: dict[int, list[int]] = defaultdict(list)
    for index in range(len(twins)):
        found[head(index)].append(index)
    return list(found.values())
