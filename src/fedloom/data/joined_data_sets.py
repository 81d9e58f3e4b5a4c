"""Join several published data sets, which lie side by side in one folder.

Reference: "FedVLMBench: Benchmarking Federated Fine-Tuning of Vision-Language Models", arXiv 2506.09638,
whose multi-task settings give each task a client of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fedloom.data.published_data_set import Make, PartOf, RecordContext, Source, Table
from fedloom.data.record_files import Record
from fedloom.types import Example


def tables_below(
    source: Source,
    folder: str,
    *,
    group: str | None = None,
    variant: str = "",
    parts: tuple[str, ...] = ("train", "test"),
    variants: tuple[str, ...] = (),
) -> Iterator[Table]:
    """Yield the tables of a data set that lies in a folder below the root of another one.

    Ids begin with the data set's name, so that they differ from those of others.

    Args:
        source: The data set.
        folder: The folder below the root, "." for the root itself.
        group: The group of the examples; the data set's name if None.
        variant: A variant of the data set, "" for the default.
        parts: The parts to use.
        variants: The variants of the joined data set that contain this one; empty for all.
    """
    variant = source.variant_or_default(variant or None)
    name = group or source.name

    def with_group(make: Make) -> Make:
        def make_in_group(record: Record, context: RecordContext) -> Example | None:
            example = make(record, replace(context, variant=variant))
            return example and replace(example, id=f"{source.name}-{example.id}", group=name)

        return make_in_group

    def moved(names: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(name.format(variant=variant) for name in names)
        return names if folder == "." else tuple(f"{folder}/{name}" for name in names)

    for table in source.tables_of(variant):
        if not isinstance(table.part, str) or table.part in parts:
            part = table.part if isinstance(table.part, str) else _restricted_to(table.part, parts)
            yield replace(
                table,
                part=part,
                files=moved(table.files),
                image_folders=moved(table.image_folders),
                make=with_group(table.make),
                make_placeholder=table.make_placeholder and with_group(table.make_placeholder),
                variants=variants,
                dev=table.dev and "dev" in parts,
            )


def _restricted_to(part_of: PartOf, parts: tuple[str, ...]) -> PartOf:
    def part(record: dict[str, Any]) -> str | None:
        own = part_of(record)
        return own if own in parts else None

    return part
