"""Check the folder of a data set: missing files, numbers of examples, repeated examples and invalid records.

Unlike loading, a check decodes every image to its last pixel and also reads the part "dev".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from fedloom.config.schema import Data
from fedloom.data import BUNDLED, DATASETS, Loader
from fedloom.data.duplicates import normalized_text, pixel_key
from fedloom.data.fashion_mnist import HOME as FASHION_MNIST
from fedloom.data.licenses import license_of
from fedloom.data.own_folder import folder_has_validation, require_utf8
from fedloom.data.plugin_data import PluginLoader
from fedloom.data.published_data_set import Row, Source
from fedloom.data.record_files import quoted
from fedloom.system.errors import UserError
from fedloom.types import DataSet, Example, Rejected

PARTS = ("train", "dev", "test")


class Number(NamedTuple):
    """A number of examples.

    Attributes:
        part: "train", "dev" or "test".
        of: An answer or a kind; None for the whole part.
        found: The number of valid examples.
        published: The published number, or None.
    """

    part: str
    of: str | None
    found: int
    published: int | None


class Repeat(NamedTuple):
    """Content of one part that is also in an earlier part.

    Attributes:
        what: "id", "image", "text", or "question about the same image".
        part: The later part.
        place: File and line of the record in the later part.
        before_part: The earlier part.
        before: File and line of the record in the earlier part.
    """

    what: str
    part: str
    place: str
    before_part: str
    before: str


@dataclass(frozen=True)
class Report:
    """The result of a check.

    Attributes:
        name: The data set.
        root: The folder.
        variant: The variant, "" if there are none.
        home: Where to get the data set.
        faults: The reasons why the data set cannot be used; empty if it can.
        numbers: Numbers of examples, with the published ones.
        repeats: Content of more than one part.
        rejected: The invalid records, which are skipped.
        license: A sentence about the license; see `fedloom.data.licenses.license_of`.
    """

    name: str
    root: Path | None
    variant: str
    home: str
    faults: tuple[str, ...] = ()
    numbers: tuple[Number, ...] = ()
    repeats: tuple[Repeat, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    license: str = ""

    @property
    def usable(self) -> bool:
        """Whether a run can use the data set."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(replace(self, rejected=())) | {
            "root": None if self.root is None else str(self.root),
            "usable": self.usable,
            "numbers": [number._asdict() for number in self.numbers],
            "repeats": [repeat._asdict() for repeat in self.repeats],
            "rejected": [
                {"file": record.file, "line": record.line, "reason": record.reason}
                for record in self.rejected
            ],
        }


@dataclass(frozen=True)
class _Contents:
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
        max_rejected: Share of invalid records, 0..1, above which the data set counts as unusable.
        datasets: Name → loader.

    Raises:
        UserError: There is no such variant, or the path of the folder cannot be a setting.
    """
    if root is not None:
        require_utf8(root)
    report = _check(name, root, variant, max_rejected, datasets)
    return replace(report, license=license_of(name, root))


def _check(
    name: str, root: Path | None, variant: str | None, max_rejected: float, datasets: Mapping[str, Loader]
) -> Report:
    source = datasets[name]
    if not isinstance(source, Source):
        return _check_other(name, source, root, max_rejected)
    used_variant = source.variant_or_default(variant)
    report = Report(name, root, used_variant, source.home)
    if root is None:
        return replace(report, faults=("no folder was given to check (--root DIR)",))
    if (missing := source.missing_files(root, used_variant)) is not None:
        return replace(report, faults=(missing, *_looks_like(root, name)))
    try:
        contents = _gather(source, root, used_variant)
    except UserError as error:
        return replace(report, faults=(str(error).removeprefix("data.root: "),))
    return replace(
        report,
        faults=tuple(_faults(contents, max_rejected, needs_test=source.has_test_files(root, used_variant))),
        numbers=tuple(_numbers(source, contents, used_variant)),
        repeats=(*contents.repeats, *_repeats(contents)),
        rejected=tuple(contents.rejected),
    )


def _check_other(name: str, load: Loader, root: Path | None, max_rejected: float) -> Report:
    """Check a data set that is bundled, the user's own or a plug-in's by loading it."""
    bundled = name in BUNDLED
    home = "It is bundled with fedloom; no download is needed." if bundled else "It is a folder of your own."
    home = FASHION_MNIST if name == "fashion-mnist" else home
    if isinstance(load, PluginLoader):
        home = f"The loader of {name} belongs to a plug-in; see its documentation."
    report = Report(name, root, "", home)
    if root is not None and bundled and name != "emoji-styles":  # which finds OpenMoji there
        return replace(
            report, faults=("it is bundled with fedloom and read from no folder; leave out --root",)
        )
    try:
        has_part = name == "folder" and root is not None and folder_has_validation(root)
        settings = Data(
            name=name, root=None if root is None else str(root), max_rejected=max_rejected,
            validation="published" if has_part else 0.0,
        )  # fmt: skip
        data = load(settings, 0)
    except UserError as error:
        return replace(report, faults=(str(error).removeprefix("data.root: "),))
    contents = _Contents(rejected=list(data.rejected))
    for part, examples in (("train", data.train), ("dev", data.validation), ("test", data.test)):
        contents.parts[part].extend(
            (example.place or f"example {quoted(example.id)}", example) for example in examples
        )
    faults = tuple(_faults(contents, settings.max_rejected, needs_test=True))
    numbers, repeats = tuple(_part_sizes(data)), tuple(_repeats(contents))
    return replace(report, faults=faults, numbers=numbers, repeats=repeats, rejected=data.rejected)


def _part_sizes(data: DataSet) -> Iterator[Number]:
    yield Number("train", None, len(data.train), None)
    if data.validation:
        yield Number("dev", None, len(data.validation), None)
    yield Number("test", None, len(data.test), None)


def _looks_like(root: Path, name: str) -> Iterator[str]:
    """Yield a fault that names the data set that the folder belongs to, if it is another one."""
    for other, source in DATASETS.items():
        if other != name and isinstance(source, Source):
            for variant in source.variants or ("",):
                if source.missing_files(root, variant) is None:
                    yield f"{root} looks like the folder of {other}"
                    return


def _gather(source: Source, root: Path, variant: str) -> _Contents:
    contents = _Contents()
    ids: dict[str, str] = {}
    first: dict[str, Row] = {}
    for table in source.tables_of(variant):
        for row in source.rows(table, root, variant, PARTS, whole=True):
            if isinstance(row, Row):
                before = first.setdefault(row.example.id, row)
                if before.part != row.part:
                    contents.repeats.append(Repeat("id", row.part, row.place, before.part, before.place))
                row = row.with_unique_id(ids)
            if isinstance(row, Rejected):
                contents.rejected.append(row)
            else:
                contents.parts[row.part].append((row.place, row.example))
    return contents


def _faults(contents: _Contents, max_rejected: float, *, needs_test: bool) -> Iterator[str]:
    count = len(contents.rejected)
    total = count + sum(map(len, contents.parts.values()))
    if count > max_rejected * total:
        verb = "is" if count == 1 else "are"
        yield (
            f"{count:,} of {total:,} records {verb} invalid, more than the {max_rejected:.1%} that a run allows; fix them, or "
            "raise data.max_rejected"
        )
    for part in ("train", "test") if needs_test else ("train",):
        if not contents.parts[part]:
            yield f"no {part} record can be used"


def _numbers(source: Source, contents: _Contents, variant: str) -> Iterator[Number]:
    published = {
        (count.part, count.of): count.number for count in source.counts if count.variant in (None, variant)
    }
    for part, rows in contents.parts.items():
        of = Counter(example.answer if example.options else example.kind for _, example in rows)
        if rows or (part, None) in published:
            yield Number(part, None, len(rows), published.get((part, None)))
        listed = dict.fromkeys([*(name for where, name in published if where == part), *of])
        for name in listed:
            if name is not None:
                yield Number(part, name, of[name], published.get((part, name)))


def _repeats(contents: _Contents) -> Iterator[Repeat]:
    first: dict[Hashable, tuple[str, str]] = {}
    for part, rows in contents.parts.items():
        for place, example in rows:
            for what, key in _content_keys(example):
                before_part, before = first.setdefault((what, key), (part, place))
                if before_part != part:
                    yield Repeat(what, part, place, before_part, before)


def _content_keys(example: Example) -> Iterator[tuple[str, Hashable]]:
    """Yield the type and the key of each content that should not be in two parts."""
    keys = tuple(pixel_key(image) for image in example.pictures)
    for key in keys:
        yield "image", key
    if keys and example.text is None:
        yield "question about the same image", (keys, normalized_text(example.question))
    words = example.text if example.text is not None or keys else example.question
    if words is not None:
        yield "text", normalized_text(words)
