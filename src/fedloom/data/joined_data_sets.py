"""Several published data sets side by side in one folder, as one.

Reference: "FedVLMBench: Benchmarking Federated Fine-Tuning of Vision-Language Models", arXiv 2506.09638,
whose multi-task settings give each task a client of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fedloom.data.published_data_set import Make, PartOf, Reading, Source, Table
from fedloom.data.record_files import Raw
from fedloom.types import Example


def below(
    source: Source,
    folder: str,
    *,
    group: str | None = None,
    variant: str = "",
    parts: tuple[str, ...] = ("train", "test"),
    variants: tuple[str, ...] = (),
) -> Iterator[Table]:
    """Yield a data set's tables as they are when it lies in a folder of another's root.

    Ids begin with the data set's name, so that they stay apart from those of others.

    Args:
        source: The data set.
        folder: The folder, "." for the root itself.
        group: The group of its examples; its name if None.
        variant: Which of its variants; "" is its first.
        parts: The parts that are used.
        variants: The variants of the whole that have it; empty for all.
    """
    variant = source.chosen(variant or None)
    name = group or source.name

    def marking(make: Make) -> Make:
        def marked(raw: Raw, reading: Reading) -> Example | None:
            example = make(raw, replace(reading, variant=variant))
            return example and replace(example, id=f"{source.name}-{example.id}", group=name)

        return marked

    def moved(names: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(one.format(variant=variant) for one in names)
        return names if folder == "." else tuple(f"{folder}/{one}" for one in names)

    for table in source.used(variant):
        if not isinstance(table.part, str) or table.part in parts:
            part = table.part if isinstance(table.part, str) else _only(table.part, parts)
            yield replace(
                table,
                part=part,
                files=moved(table.files),
                pictures=moved(table.pictures),
                make=marking(table.make),
                blank=table.blank and marking(table.blank),
                variants=variants,
                dev=table.dev and "dev" in parts,
            )


def _only(part_of: PartOf, parts: tuple[str, ...]) -> PartOf:
    def part(record: dict[str, Any]) -> str | None:
        found = part_of(record)
        return found if found in parts else None

    return part
