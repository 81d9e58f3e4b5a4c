"""Compare a folder with what the owners of a data set ship: files, numbers, repeats, and what is skipped.

Unlike loading, a check decodes every image to its last pixel and also reads the dev part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from fedloom.config.schema import Data
from fedloom.data import BUNDLED, DATASETS, Loader
from fedloom.data.duplicates import alike, look_of
from fedloom.data.fashion_mnist import HOME as FASHION_MNIST
from fedloom.data.own_folder import validates_folder
from fedloom.data.plugin_data import PluginLoader
from fedloom.data.published_data_set import Row, Source
from fedloom.data.record_files import shown
from fedloom.system.errors import UserError
from fedloom.types import DataSet, Example, Rejected

PARTS = ("train", "dev", "test")


class Number(NamedTuple):
    """How many examples there are of something.

    Attributes:
        part: "train", "dev" or "test".
        of: An answer or a kind; None for all of the part.
        found: So many can be used.
        published: So many there should be; None where nothing was published.
    """

    part: str
    of: str | None
    found: int
    published: int | None


class Repeat(NamedTuple):
    """Something of one part that an earlier one has too.

    Attributes:
        what: "id", "picture", "text", or "question about the same picture".
        part: The later part.
        place: The record there, by file and line.
        before_part: The earlier part.
        before: The record there.
    """

    what: str
    part: str
    place: str
    before_part: str
    before: str


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        name: The data set.
        root: The folder.
        variant: The variant, "" where there are none.
        home: Where to get the data set.
        faults: Why it cannot be used; empty where it can.
        numbers: Counts of examples, beside the published ones.
        repeats: What is in more than one part.
        rejected: Records that are skipped.
    """

    name: str
    root: Path | None
    variant: str
    home: str
    faults: tuple[str, ...] = ()
    numbers: tuple[Number, ...] = ()
    repeats: tuple[Repeat, ...] = ()
    rejected: tuple[Rejected, ...] = ()

    @property
    def usable(self) -> bool:
        """Return whether a run could start with it."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(replace(self, rejected=())) | {
            "root": None if self.root is None else str(self.root),
            "usable": self.usable,
            "numbers": [number._asdict() for number in self.numbers],
            "repeats": [repeat._asdict() for repeat in self.repeats],
            "rejected": [{"file": one.file, "line": one.line, "reason": one.reason} for one in self.rejected],
        }


@dataclass(frozen=True)
class _Found:
    """Examples by part, each with its place; invalid records; and ids of more than one part."""

    parts: Mapping[str, list[tuple[str, Example]]] = field(
        default_factory=lambda: {part: [] for part in PARTS}
    )
    rejected: list[Rejected] = field(default_factory=list)
    repeats: list[Repeat] = field(default_factory=list)


def check(
    name: str,
    root: Path | None,
    variant: str | None = None,
    max_rejected: float = 0.01,
    datasets: Mapping[str, Loader] = DATASETS,
) -> Report:
    """Check a data set.

    Args:
        name: A key of `datasets`.
        root: Its folder; None asks only where to get it.
        variant: Which of its variants; None is the first.
        max_rejected: Share of invalid records, 0..1, above which it counts as unusable.
        datasets: Name → loader.

    Raises:
        UserError: There is no such variant.
    """
    source = datasets[name]
    if not isinstance(source, Source):
        return _check_other(name, source, root, max_rejected)
    chosen = source.chosen(variant)
    report = Report(name, root, chosen, source.home)
    if root is None:
        return replace(report, faults=("no folder was given to check (--root DIR)",))
    if (missing := source.missing(root, chosen)) is not None:
        return replace(report, faults=(missing, *_looks_like(root, name)))
    try:
        found = _gather(source, root, chosen)
    except UserError as error:
        return replace(report, faults=(str(error).removeprefix("data.root: "),))
    return replace(
        report,
        faults=tuple(_faults(found, max_rejected, needs_test=source.tests(root, chosen))),
        numbers=tuple(_numbers(source, found, chosen)),
        repeats=(*found.repeats, *_repeats(found)),
        rejected=tuple(found.rejected),
    )


def _check_other(name: str, load: Loader, root: Path | None, max_rejected: float) -> Report:
    """Check a data set that is bundled, the user's own, or a plug-in's by loading it."""
    bundled = name in BUNDLED
    home = "It is bundled with fedloom; no download is needed." if bundled else "It is a folder of your own."
    home = FASHION_MNIST if name == "fashion-mnist" else home
    if isinstance(load, PluginLoader):
        home = f"The loader of {name} comes with a plug-in; see there."
    report = Report(name, root, "", home)
    try:
        theirs = name == "folder" and root is not None and validates_folder(root)
        settings = Data(
            name=name, root=None if root is None else str(root), max_rejected=max_rejected,
            validation="published" if theirs else 0.0,
        )  # fmt: skip
        data = load(settings, 0)
    except UserError as error:
        return replace(report, faults=(str(error).removeprefix("data.root: "),))
    found = _Found(rejected=list(data.rejected))
    for part, examples in (("train", data.train), ("dev", data.validation), ("test", data.test)):
        found.parts[part].extend((one.place or f"example {shown(one.id)}", one) for one in examples)
    faults = tuple(_faults(found, settings.max_rejected, needs_test=True))
    numbers, repeats = tuple(_part_sizes(data)), tuple(_repeats(found))
    return replace(report, faults=faults, numbers=numbers, repeats=repeats, rejected=data.rejected)


def _part_sizes(data: DataSet) -> Iterator[Number]:
    yield Number("train", None, len(data.train), None)
    if data.validation:
        yield Number("dev", None, len(data.validation), None)
    yield Number("test", None, len(data.test), None)


def _looks_like(root: Path, name: str) -> Iterator[str]:
    """Name the data set whose folder this is instead."""
    for other, source in DATASETS.items():
        if other != name and isinstance(source, Source):
            for variant in source.variants or ("",):
                if source.missing(root, variant) is None:
                    yield f"{root} looks like the folder of {other}"
                    return


def _gather(source: Source, root: Path, variant: str) -> _Found:
    found = _Found()
    ids: dict[str, str] = {}
    first: dict[str, Row] = {}
    for table in source.used(variant):
        for row in source.rows(table, root, variant, PARTS, whole=True):
            if isinstance(row, Row):
                before = first.setdefault(row.example.id, row)
                if before.part != row.part:
                    found.repeats.append(Repeat("id", row.part, row.place, before.part, before.place))
                row = row.once(ids)
            if isinstance(row, Rejected):
                found.rejected.append(row)
            else:
                found.parts[row.part].append((row.place, row.example))
    return found


def _faults(found: _Found, max_rejected: float, *, needs_test: bool) -> Iterator[str]:
    count = len(found.rejected)
    total = count + sum(map(len, found.parts.values()))
    if count > max_rejected * total:
        yield f"{count:,} of {total:,} records are bad, more than the {max_rejected:.1%} that a run allows"
    for part in ("train", "test") if needs_test else ("train",):
        if not found.parts[part]:
            yield f"no {part} record can be used"


def _numbers(source: Source, found: _Found, variant: str) -> Iterator[Number]:
    published = {
        (count.part, count.of): count.number for count in source.counts if count.variant in (None, variant)
    }
    for part, rows in found.parts.items():
        of = Counter(example.answer if example.options else example.kind for _, example in rows)
        if rows or (part, None) in published:
            yield Number(part, None, len(rows), published.get((part, None)))
        listed = dict.fromkeys([*(name for where, name in published if where == part), *of])
        for name in listed:
            if name is not None:
                yield Number(part, name, of[name], published.get((part, name)))


def _repeats(found: _Found) -> Iterator[Repeat]:
    first: dict[Hashable, tuple[str, str]] = {}
    for part, rows in found.parts.items():
        for place, example in rows:
            for what, key in _marks(example):
                before_part, before = first.setdefault((what, key), (part, place))
                if before_part != part:
                    yield Repeat(what, part, place, before_part, before)


def _marks(example: Example) -> Iterator[tuple[str, Hashable]]:
    """Yield what should not be in two parts."""
    looks = tuple(look_of(picture) for picture in example.pictures)
    for look in looks:
        yield "picture", look
    if looks and example.text is None:
        yield "question about the same picture", (looks, alike(example.question))
    words = example.text if example.text is not None or looks else example.question
    if words is not None:
        yield "text", alike(words)
