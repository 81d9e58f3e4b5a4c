"""Describe a data set as its owners ship it: where to get it, which files it has, and how a record becomes an example.

A `Source` is a loader, and `fedloom.data.check_folder` compares a folder with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedloom.data.duplicates import content_keys
from fedloom.data.images import FileImage, fully_checked_image, quickly_checked_image
from fedloom.data.loading import divide
from fedloom.data.record_fields import FindImage, InvalidRecord, image_finder
from fedloom.data.record_files import Record, quoted, read_records
from fedloom.system.errors import UserError
from fedloom.types import DataSet, Example, Rejected

if TYPE_CHECKING:
    from fedloom.config.schema import Data


@dataclass(frozen=True, slots=True)
class RecordContext:
    """What makes an example of a record besides the record itself.

    Attributes:
        variant: The variant that is loaded, "" if the data set has none.
        find_image: Finds an image of the data set by its name; raises `InvalidRecord`.
    """

    variant: str
    find_image: FindImage


Make = Callable[[Record, RecordContext], Example | None]
"""(record, context) → example, or None for a record of another variant; raises `InvalidRecord`."""

PartOf = Callable[[dict[str, Any]], str | None]
"""Values of a record → its part, or None if it is not used; raises `InvalidRecord`."""


@dataclass(frozen=True, slots=True)
class Table:
    """Files whose records have one form.

    Attributes:
        part: The part of the records: "train", "dev" (for validation only: never trained or tested on) or "test"; or
            a function that returns the part of a record.
        files: Patterns of the files below the root; the first that matches any file counts. "{variant}" is replaced
            by the variant.
        make: Makes an example of a record.
        image_folders: Folders below the root that are searched for images in this order; at least one must exist.
            Empty if there are no images; "{variant}" is replaced as in `files`.
        variants: The variants that have these files; empty for all.
        optional: Whether the data set can be used without these files.
        ignored: Name of a file that is ignored if there are others.
        read: Reads the records of one file, given its path and its name below the root.
        make_placeholder: Makes a placeholder of an invalid record, for published draws that count it; its images are
            not read. None stands for `make`.
        dev: Whether records with a part of their own may belong to "dev"; for a training table, whether it is the
            owners' validation set, which is trained on unless `data.validation` is published.
    """

    part: str | PartOf
    files: tuple[str, ...]
    make: Make
    image_folders: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    optional: bool = False
    ignored: str = ""
    read: Callable[[Path, str], Iterator[Record | Rejected]] = read_records
    make_placeholder: Make | None = None
    dev: bool = False

    @property
    def has_validation(self) -> bool:
        """Whether some of the records may belong to "dev"."""
        return self.dev or self.part == "dev"


class Count(NamedTuple):
    """A published number of examples.

    Attributes:
        part: "train", "dev" or "test".
        number: How many examples of the part there are.
        of: The answer (if there are options) or the kind that is counted; None counts all.
        variant: The variant that is counted; None if variants make no difference.
    """

    part: str
    number: int
    of: str | None = None
    variant: str | None = None


class Row(NamedTuple):
    """An example with its record and its part."""

    record: Record
    example: Example
    part: str

    @property
    def place(self) -> str:
        """The place of the record in words."""
        return self.record.place

    def with_unique_id(self, ids: dict[str, str]) -> Row | Rejected:
        """Return the row, or an invalid record if its id was used before; the id is added to `ids` with its place."""
        if self.example.id in ids:
            before = ids[self.example.id]
            return self.record.rejected(f"id {quoted(self.example.id)} was used before ({before})")
        ids[self.example.id] = self.place
        return self


@dataclass(frozen=True)
class Source:
    """A published data set, which loads itself when it is called.

    Attributes:
        name: A key of `fedloom.data.DATASETS`.
        title: One sentence about the data set.
        home: One paragraph about where to get the files and where to put them.
        tables: The files.
        counts: Published numbers of examples.
        variants: Names of the variants, the default first; empty for none.
    """

    name: str
    title: str
    home: str
    tables: tuple[Table, ...]
    counts: tuple[Count, ...] = ()
    variants: tuple[str, ...] = ()

    def __call__(self, settings: Data, seed: int) -> DataSet:
        """Load the training set and the test set; if the owners ship no test set, hold one out.

        Valid records are kept in the order of the files. Only the beginning of each image is read: damage further on is
        found by `fedloom data check`, or when the pixels are needed.

        Args:
            settings: `root`, `variant` and `validation` are used, and `test_share` if no test set is shipped.
            seed: Seed of the draw of the test set.

        Raises:
            UserError: There is no root, the variant is unknown, a file or folder is missing, or the validation set
                that the settings ask for is missing.
        """
        if settings.root is None:
            raise UserError(f"data.root: the data set {self.name} needs the path of its folder; {self.home}")
        root, variant = Path(settings.root), self.variant_or_default(settings.variant)
        parts: dict[str, list[Example]] = {"train": [], "test": []}
        rejected: list[Rejected] = []
        drawn: list[Example] = []
        ids: dict[str, str] = {}
        published = settings.validation == "published"
        for table in self.tables_of(variant):
            if published and table.part == "train" and table.dev:
                continue
            for row in self.rows(table, root, variant, tuple(parts)):
                row = row.with_unique_id(ids) if isinstance(row, Row) else row
                if isinstance(row, Row):
                    parts[row.part].append(row.example)
                    drawn += [row.example] * (row.part == "train")
                else:
                    rejected.append(row)
                    drawn += [] if row.example is None or row.example.id in ids else [row.example]
        train, test = tuple(parts["train"]), tuple(parts["test"])
        if len(train) > 1 and not self.has_test_files(root, variant):
            train, test = divide(train, content_keys(train), settings.test_share, seed)
            drawn = []
        # The validation set comes last: an id that it shares with the other parts costs no example of those.
        dev = self._dev(root, variant, ids, rejected) if published else ()
        placeholders = tuple(drawn) if len(drawn) > len(train) else ()
        return DataSet(self.name, train, test, tuple(rejected), placeholders, dev)

    @property
    def has_validation(self) -> bool:
        """Whether the owners ship a validation set."""
        return any(table.has_validation for table in self.tables)

    def _dev(
        self, root: Path, variant: str, ids: dict[str, str], rejected: list[Rejected]
    ) -> tuple[Example, ...]:
        """Read the validation set, and add invalid records to `rejected`."""
        tables = [table for table in self.tables_of(variant) if table.has_validation]
        names = " or ".join(name.format(variant=variant) for table in tables for name in table.files)
        if not any(table_files(table, root, variant) for table in tables):
            raise UserError(
                f"data.validation is published, but {root} holds no {names or 'validation set'}; add it, or give a share "
                "of the training examples, such as 0.1"
            )
        parts = [table.part if isinstance(table.part, str) else "dev" for table in tables]
        rows = (self.rows(table, root, variant, (part,)) for table, part in zip(tables, parts, strict=True))
        kept: list[Example] = []
        for row in chain.from_iterable(rows):
            row = row.with_unique_id(ids) if isinstance(row, Row) else row
            if isinstance(row, Row):
                kept.append(row.example)
            else:
                rejected.append(row)
        return tuple(kept)

    def variant_or_default(self, variant: str | None) -> str:
        """Return the variant, the default for None, "" if there are no variants.

        Raises:
            UserError: The data set does not have this variant.
        """
        if variant is not None and variant not in self.variants:
            allowed = f"one of {', '.join(self.variants)}" if self.variants else "null: it has no variants"
            raise UserError(f"data.variant is {variant!r}, but for {self.name} it can only be {allowed}")
        return variant or next(iter(self.variants), "")

    def tables_of(self, variant: str) -> tuple[Table, ...]:
        """Return the tables of a variant."""
        return tuple(table for table in self.tables if not table.variants or variant in table.variants)

    def has_test_files(self, root: Path, variant: str) -> bool:
        """Return whether a folder holds files of a test set."""
        tables = [table for table in self.tables_of(variant) if table.part not in ("train", "dev")]
        return any(table_files(table, root, variant) for table in tables)

    def rows(
        self, table: Table, root: Path, variant: str, parts: Sequence[str], *, whole: bool = False
    ) -> Iterator[Row | Rejected]:
        """Read the files of a table.

        Args:
            table: One of `tables`.
            root: The folder.
            variant: One of `variants`, or "".
            parts: The parts to read; records of others are ignored.
            whole: Whether to decode every image to its last pixel instead of reading its beginning only.

        Raises:
            UserError: A required file or the folder of images is missing.
        """
        if isinstance(table.part, str) and table.part not in parts:
            return
        paths = table_files(table, root, variant)
        if not paths and not table.optional:
            raise UserError(f"data.root: {self.missing_files(root, variant)}")
        if not paths:
            return
        check = fully_checked_image if whole else quickly_checked_image
        folders = self._folders(table, root, variant)
        context = RecordContext(variant, _search([image_finder(folder, check) for folder in folders]))
        records = (table.read(path, path.relative_to(root).as_posix()) for path in paths)
        for record in chain.from_iterable(records):
            row = _row(record, table, context, parts) if isinstance(record, Record) else record
            if row is not None:
                yield row

    def missing_files(self, root: Path, variant: str) -> str | None:
        """Return a message about the files that a folder lacks, or None if it holds all of them."""
        if not root.is_dir():
            return f"{root} is not a folder"
        lacking = [
            table
            for table in self.tables_of(variant)
            if not table.optional and not table_files(table, root, variant)
        ]
        if not lacking:
            return None
        names = " and ".join(dict.fromkeys(table.files[0].format(variant=variant) for table in lacking))
        return f"{root} is not the folder of {self.name}: it holds no {names}. {self.home}"

    def _folders(self, table: Table, root: Path, variant: str) -> list[Path]:
        names = [name.format(variant=variant) for name in table.image_folders]
        folders = [root / name for name in names if (root / name).is_dir()]
        if names and not folders:
            listed = " and no ".join(names)
            raise UserError(f"data.root: {root} holds no folder {listed} with the images of {self.name}")
        return folders or [root]


def _search(finders: Sequence[FindImage]) -> FindImage:
    """Return a function that searches several folders for an image in turn.

    If no folder has a usable image, the reason is that of a folder with an unusable one, else that of the first.
    """

    def find_image(name: str) -> FileImage:
        reasons: list[InvalidRecord] = []
        for finder in finders:
            try:
                return finder(name)
            except InvalidRecord as reason:
                reasons.append(reason)
        raise next((reason for reason in reasons if not str(reason).endswith("is missing")), reasons[0])

    return find_image


def table_files(table: Table, root: Path, variant: str) -> list[Path]:
    """Return the files of a table, shorter names first, so that client_2 comes before client_10."""
    for pattern in table.files:
        paths = [path for path in root.glob(pattern.format(variant=variant)) if path.is_file()]
        others = [path for path in paths if path.name != table.ignored]
        if paths := others or paths:
            return sorted(paths, key=lambda path: (len(path.name), path.name))
    return []


def _row(record: Record, table: Table, context: RecordContext, parts: Sequence[str]) -> Row | Rejected | None:
    try:
        part = table.part if isinstance(table.part, str) else table.part(record.values)
        example = table.make(record, context) if part in parts else None
    except InvalidRecord as reason:
        return replace(record.rejected(str(reason)), example=_placeholder(record, table, context))
    return Row(record, replace(example, place=record.place), part) if part and example else None


def _placeholder(record: Record, table: Table, context: RecordContext) -> Example | None:
    """Return a placeholder of an invalid training record without reading its image, or None if that is impossible."""
    unread = replace(context, find_image=lambda name: FileImage(Path(name)))
    try:
        part = table.part if isinstance(table.part, str) else table.part(record.values)
        return (table.make_placeholder or table.make)(record, unread) if part == "train" else None
    except Exception:  # a box, for example, needs the size of its image
        return None
