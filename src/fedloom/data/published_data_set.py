"""A data set as its owners ship it, described as a value: what to get where, which files, how a record reads.

One value serves twice: called, it is a loader like any other; `fedloom.data.check_folder` compares a folder with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedloom.data.duplicates import marks
from fedloom.data.images import FileImage, glanced_image, whole_image
from fedloom.data.loading import divide
from fedloom.data.record_fields import Bad, Locate, locator
from fedloom.data.record_files import Raw, read_records, shown
from fedloom.system.errors import UserError
from fedloom.types import DataSet, Example, Rejected

if TYPE_CHECKING:
    from fedloom.config.schema import Data


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known besides the record itself while one is read.

    Attributes:
        variant: Which variant is wanted, "" where the data set has none.
        picture: Finds an image of the data set by its name; raises `Bad`.
    """

    variant: str
    picture: Locate


Make = Callable[[Raw, Reading], Example | None]
"""(record, reading) → example, or None for a record that another variant has; raises `Bad`."""

PartOf = Callable[[dict[str, Any]], str | None]
"""Values of a record → its part, or None for one that is not used; raises `Bad`."""


@dataclass(frozen=True, slots=True)
class Table:
    """Files of records.

    Attributes:
        part: The part they belong to: "train", "dev" (for validation only: never trained or tested on) or "test"; or
            how a record tells its part.
        files: Where they may lie below the root, as patterns; the first that finds anything counts. In them
            "{variant}" stands for the variant.
        make: Makes an example of a record.
        pictures: Folders below the root in which images are looked for, one after another; at least one
            must be there. Empty for none; "{variant}" is as in `files`.
        variants: The variants that have these files; empty for all.
        optional: Whether the data set can be used without them.
        spare: Name of a file that is left out where there are others.
        read: Reads one file, given its path and its name below the root.
        blank: Makes what is known of a record that `make` refuses, for published draws that count it; it gets images
            unread. None takes `make`.
        dev: Whether records that tell their part may be of the part "dev"; of a table to train on, whether it is the
            owners' validation part, which is trained on unless `data.validation` is published.
    """

    part: str | PartOf
    files: tuple[str, ...]
    make: Make
    pictures: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    optional: bool = False
    spare: str = ""
    read: Callable[[Path, str], Iterator[Raw | Rejected]] = read_records
    blank: Make | None = None
    dev: bool = False

    @property
    def validates(self) -> bool:
        """Whether some of its records are of the part "dev"."""
        return self.dev or self.part == "dev"


class Count(NamedTuple):
    """A published number of examples.

    Attributes:
        part: Of this part,
        number: there are so many
        of: with this answer (of options) or of this kind; None counts all,
        variant: in this variant; None where variants make no difference.
    """

    part: str
    number: int
    of: str | None = None
    variant: str | None = None


class Row(NamedTuple):
    """An example, the record it came from, and the part it belongs to."""

    raw: Raw
    example: Example
    part: str

    @property
    def place(self) -> str:
        """Where the record stands, in words."""
        return self.raw.place

    def once(self, ids: dict[str, str]) -> Row | Rejected:
        """Reject the record if its id was used before; `ids` remembers ids and places."""
        if self.example.id in ids:
            before = ids[self.example.id]
            return self.raw.rejected(f"id {shown(self.example.id)} was used before ({before})")
        ids[self.example.id] = self.place
        return self


@dataclass(frozen=True)
class Source:
    """A published data set.

    Attributes:
        name: A key of `fedloom.data.DATASETS`.
        title: One sentence about it.
        home: Where to get it and what to put where, one paragraph.
        tables: Its files.
        counts: Published numbers to compare with.
        variants: Names of its variants, the default first; empty for none.
    """

    name: str
    title: str
    home: str
    tables: tuple[Table, ...]
    counts: tuple[Count, ...] = ()
    variants: tuple[str, ...] = ()

    def __call__(self, settings: Data, seed: int) -> DataSet:
        """Load the training and the test part; where the owners ship no test part, hold one out.

        Records without a fault are kept in the order of the files. Of images only the beginning is read: damage
        further on is found by `fedloom data check`, or when the pixels are needed.

        Args:
            settings: `root`, `variant` and `validation` are read, and `test_share` where nothing is shipped to test on.
            seed: Decides what is held out.

        Raises:
            UserError: No root, an unknown variant, a file or folder that is not there, or no validation part where one
                is asked for.
        """
        if settings.root is None:
            raise UserError(f"data.root: the data set {self.name} needs the path of its folder; {self.home}")
        root, variant = Path(settings.root), self.chosen(settings.variant)
        parts: dict[str, list[Example]] = {"train": [], "test": []}
        rejected: list[Rejected] = []
        drawn: list[Example] = []
        ids: dict[str, str] = {}
        published = settings.validation == "published"
        for table in self.used(variant):
            if published and table.part == "train" and table.dev:
                continue
            for row in self.rows(table, root, variant, tuple(parts)):
                row = row.once(ids) if isinstance(row, Row) else row
                if isinstance(row, Row):
                    parts[row.part].append(row.example)
                    drawn += [row.example] * (row.part == "train")
                else:
                    rejected.append(row)
                    drawn += [] if row.example is None or row.example.id in ids else [row.example]
        train, test = tuple(parts["train"]), tuple(parts["test"])
        if len(train) > 1 and not self.tests(root, variant):
            train, test = divide(train, marks(train), settings.test_share, seed)
            drawn = []
        # Last, so that an id which is used twice costs no example of the other parts.
        dev = self._dev(root, variant, ids, rejected) if published else ()
        counted = tuple(drawn) if len(drawn) > len(train) else ()
        return DataSet(self.name, train, test, tuple(rejected), counted, dev)

    @property
    def validates(self) -> bool:
        """Whether the owners ship a validation part."""
        return any(table.validates for table in self.tables)

    def _dev(
        self, root: Path, variant: str, ids: dict[str, str], rejected: list[Rejected]
    ) -> tuple[Example, ...]:
        """Read the validation part; invalid records are added to `rejected`."""
        tables = [table for table in self.used(variant) if table.validates]
        names = " or ".join(name.format(variant=variant) for table in tables for name in table.files)
        if not any(found(table, root, variant) for table in tables):
            raise UserError(
                f"data.validation is published, but {root} holds no {names or 'validation part'}; add it, or give a share "
                "of the training examples, such as 0.1"
            )
        parts = [table.part if isinstance(table.part, str) else "dev" for table in tables]
        rows = (self.rows(table, root, variant, (part,)) for table, part in zip(tables, parts, strict=True))
        kept: list[Example] = []
        for row in chain.from_iterable(rows):
            row = row.once(ids) if isinstance(row, Row) else row
            if isinstance(row, Row):
                kept.append(row.example)
            else:
                rejected.append(row)
        return tuple(kept)

    def chosen(self, variant: str | None) -> str:
        """Return the variant meant, "" where there are none.

        Raises:
            UserError: There is no such variant.
        """
        if variant is not None and variant not in self.variants:
            known = f"one of {', '.join(self.variants)}" if self.variants else "null: it has no variants"
            raise UserError(f"data.variant is {variant!r}, but of {self.name} it can only be {known}")
        return variant or next(iter(self.variants), "")

    def used(self, variant: str) -> tuple[Table, ...]:
        """Return the tables that a variant has."""
        return tuple(table for table in self.tables if not table.variants or variant in table.variants)

    def tests(self, root: Path, variant: str) -> bool:
        """Return whether there are files to test on."""
        known = [table for table in self.used(variant) if table.part not in ("train", "dev")]
        return any(found(table, root, variant) for table in known)

    def rows(
        self, table: Table, root: Path, variant: str, parts: Sequence[str], *, whole: bool = False
    ) -> Iterator[Row | Rejected]:
        """Read the files of a table.

        Args:
            table: One of `tables`.
            root: The folder.
            variant: One of `variants`, or "".
            parts: Which parts are wanted; records of others are passed over.
            whole: Whether to decode every image to its last pixel instead of reading its beginning only.

        Raises:
            UserError: A needed file or the folder of images is not there.
        """
        if isinstance(table.part, str) and table.part not in parts:
            return
        paths = found(table, root, variant)
        if not paths and not table.optional:
            raise UserError(f"data.root: {self.missing(root, variant)}")
        if not paths:
            return
        look = whole_image if whole else glanced_image
        folders = self._folders(table, root, variant)
        reading = Reading(variant, _search([locator(folder, look) for folder in folders]))
        records = (table.read(path, path.relative_to(root).as_posix()) for path in paths)
        for record in chain.from_iterable(records):
            row = _row(record, table, reading, parts) if isinstance(record, Raw) else record
            if row is not None:
                yield row

    def missing(self, root: Path, variant: str) -> str | None:
        """Return which of this data set's files a folder lacks, or None if they are all there."""
        if not root.is_dir():
            return f"{root} is not a folder"
        lost = [
            table for table in self.used(variant) if not table.optional and not found(table, root, variant)
        ]
        if not lost:
            return None
        names = " and ".join(dict.fromkeys(table.files[0].format(variant=variant) for table in lost))
        return f"{root} is not the folder of {self.name}: it holds no {names}. {self.home}"

    def _folders(self, table: Table, root: Path, variant: str) -> list[Path]:
        names = [name.format(variant=variant) for name in table.pictures]
        there = [root / name for name in names if (root / name).is_dir()]
        if names and not there:
            told = " and no ".join(names)
            raise UserError(f"data.root: {root} holds no folder {told} with the pictures of {self.name}")
        return there or [root]


def _search(places: Sequence[Locate]) -> Locate:
    """Look for an image in one place after another; if it is nowhere, the reason is that of the first place.

    The reason why an image cannot be used goes before its being missing elsewhere.
    """

    def picture(name: str) -> FileImage:
        reasons: list[Bad] = []
        for locate in places:
            try:
                return locate(name)
            except Bad as bad:
                reasons.append(bad)
        raise next((bad for bad in reasons if not str(bad).endswith("is missing")), reasons[0])

    return picture


def found(table: Table, root: Path, variant: str) -> list[Path]:
    """Find the files of a table, shorter names first, so that client_2 comes before client_10."""
    for pattern in table.files:
        paths = [path for path in root.glob(pattern.format(variant=variant)) if path.is_file()]
        others = [path for path in paths if path.name != table.spare]
        if paths := others or paths:
            return sorted(paths, key=lambda path: (len(path.name), path.name))
    return []


def _row(record: Raw, table: Table, reading: Reading, parts: Sequence[str]) -> Row | Rejected | None:
    try:
        part = table.part if isinstance(table.part, str) else table.part(record.values)
        example = table.make(record, reading) if part in parts else None
    except Bad as bad:
        return replace(record.rejected(str(bad)), example=_blank(record, table, reading))
    return Row(record, replace(example, place=record.place), part) if part and example else None


def _blank(record: Raw, table: Table, reading: Reading) -> Example | None:
    """Return what is known of a bad training record, with its image unread, or None where that is too little."""
    unread = replace(reading, picture=lambda name: FileImage(Path(name)))
    try:
        part = table.part if isinstance(table.part, str) else table.part(record.values)
        return (table.blank or table.make)(record, unread) if part == "train" else None
    except Exception:  # boxes, for one, ask an image for its size
        return None
